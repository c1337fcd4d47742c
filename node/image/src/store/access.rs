//! Who may use an image that is here without its registry being asked again: the kubelet's records of pulls, with
//! its default policy that images which did not come for a pod are everybody's.
//! <https://kubernetes.io/docs/concepts/containers/images/#ensureimagepullcredentialverification>

use rimward_node_pod::outside::{Image, RegistryAuth, SecretSource};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Inner, StoredImage};
use crate::content::hex_digest;
use crate::{keyring, name};

/// Of one image, as many as the kubelet learns.
const SECRETS_MAX: usize = 100;

/// Whom an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Whoever can name it: it was imported, or pulled by hand.
    #[default]
    Preloaded,
    /// Every pod: its registry gave it without asking who asks.
    Everybody,
    /// Pods that have one of these.
    Secrets(Vec<PulledWith>),
}

/// A credential that has opened an image's repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledWith {
    secret: SecretSource,
    /// Of user and password.
    hash: String,
}

impl PulledWith {
    fn of(auth: &RegistryAuth) -> Option<Self> {
        let mut hash = Sha256::new();
        for part in [&auth.username, &auth.password] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Some(Self { secret: auth.source.clone()?, hash: hex_digest(&hash.finalize()) })
    }
}

impl Access {
    /// Of what a registry gave to the holder of a credential; None gave it to anybody.
    pub(super) fn with(opened_by: Option<&RegistryAuth>) -> Self {
        match opened_by {
            None => Self::Everybody,
            // A credential that is no pod's is somebody's who preloads.
            Some(auth) => {
                PulledWith::of(auth).map_or(Self::Preloaded, |with| Self::Secrets(vec![with]))
            }
        }
    }

    /// What is known once the same image was pulled again, in another way.
    pub(super) fn and(self, newer: Self) -> Self {
        match (self, newer) {
            (Self::Everybody, _) | (_, Self::Everybody) => Self::Everybody,
            (known, Self::Preloaded) => known,
            (Self::Preloaded, newer) => newer,
            (Self::Secrets(mut known), Self::Secrets(newer)) => {
                known.retain(|k| newer.iter().all(|n| n.secret != k.secret));
                known.extend(newer);
                known.truncate(SECRETS_MAX);
                Self::Secrets(known)
            }
        }
    }

    /// The credential of these that opens it, by what it is or by whose it is: a secret that was changed since
    /// keeps what it had opened.
    fn opened_by(&self, auths: &[&RegistryAuth]) -> Option<PulledWith> {
        let Self::Secrets(known) = self else { return None };
        let own = auths.iter().filter_map(|auth| PulledWith::of(auth));
        own.into_iter()
            .find(|own| known.iter().any(|k| k.hash == own.hash || k.secret == own.secret))
    }
}

impl Inner {
    /// Whether a pod with these credentials may use an image that is here.
    pub(super) fn may_use(&self, reference: &str, image: &Image, auths: &[RegistryAuth]) -> bool {
        let repository = name::repository(reference);
        let auths = keyring::lookup(&repository, auths);
        let learnt = {
            let images = self.images.lock();
            let same = || images.values().filter(|i| i.image.digest == image.digest);
            if same().all(|stored| stored.access == Access::Preloaded) {
                return true;
            }
            let of_repository =
                || same().filter(|i| name::repository(&i.image.reference) == repository);
            if of_repository().any(|stored| stored.access == Access::Everybody) {
                return true;
            }
            let mut opened = of_repository()
                .filter_map(|stored| Some((stored, stored.access.opened_by(&auths)?)));
            let Some((stored, with)) = opened.next() else { return false };
            let learnt = stored.access.clone().and(Access::Secrets(vec![with]));
            (learnt != stored.access).then(|| StoredImage { access: learnt, ..stored.clone() })
        };
        if let Some(stored) = learnt
            && let Err(error) = self.remember(stored)
        {
            // It is asked for again, that is all.
            tracing::warn!(image = reference, %error, "cannot keep who may use an image");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(secret: &str, password: &str) -> RegistryAuth {
        let source = SecretSource { name: secret.into(), ..SecretSource::default() };
        RegistryAuth { password: password.into(), source: Some(source), ..RegistryAuth::default() }
    }

    #[test]
    fn what_opens_it_once_opens_it_again() {
        let access = Access::with(Some(&auth("a", "1")));
        let opens = |access: &Access, auth: &RegistryAuth| access.opened_by(&[auth]).is_some();
        assert!(opens(&access, &auth("a", "1")));
        assert!(opens(&access, &auth("b", "1")), "the same password in another secret");
        assert!(opens(&access, &auth("a", "2")), "the secret's password was changed");
        assert!(!opens(&access, &auth("b", "2")));
        let both = access.clone().and(Access::with(Some(&auth("b", "2"))));
        assert!(opens(&both, &auth("c", "2")) && opens(&both, &auth("c", "1")));
        // A changed password is known by its new value only.
        let changed = access.clone().and(Access::with(Some(&auth("a", "2"))));
        assert!(opens(&changed, &auth("c", "2")) && !opens(&changed, &auth("c", "1")));
    }

    #[test]
    fn what_is_known_of_pulls_adds_up() {
        let secret = Access::with(Some(&auth("a", "1")));
        let by_hand = Access::with(Some(&RegistryAuth::default()));
        assert_eq!(by_hand, Access::Preloaded);
        assert_eq!(Access::Preloaded.and(secret.clone()), secret);
        assert_eq!(secret.clone().and(Access::Preloaded), secret);
        assert_eq!(secret.clone().and(Access::with(None)), Access::Everybody);
        assert_eq!(Access::Everybody.and(secret), Access::Everybody);
    }
}
