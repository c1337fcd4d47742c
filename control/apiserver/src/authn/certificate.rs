//! The user of a client certificate: its common name, in the groups of its organizations.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates>
//!
//! The TLS layer has verified the certificate against the cluster's CA; here it is only read.

use rimward_api::UserInfo;
use sha2::{Digest as _, Sha256};
use x509_parser::der_parser::{Oid, oid};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The attribute of a subject that is the user's UID.
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// None when the certificate names nobody, or more than one UID.
pub fn user(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let uids: Vec<&str> =
        subject.iter_by_oid(&UID).map(|uid| uid.as_str().ok()).collect::<Option<_>>()?;
    if name.is_empty() || uids.len() > 1 {
        return None;
    }
    let mut user = UserInfo::authenticated(name, &groups);
    user.uid = uids.into_iter().collect();
    let digest: String = Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect();
    let key = "authentication.kubernetes.io/credential-id".to_owned();
    user.extra.insert(key, vec![format!("X509SHA256={digest}")]);
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_certificate_is() {
        let made = |uids: &[&str]| {
            let mut params = rcgen::CertificateParams::default();
            let name = &mut params.distinguished_name;
            *name = rcgen::DistinguishedName::new();
            name.push(rcgen::DnType::CommonName, "ann");
            name.push(rcgen::DnType::OrganizationName, "dev");
            for uid in uids {
                let oid = rcgen::DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]);
                name.push(oid, *uid);
            }
            let key = rcgen::KeyPair::generate().expect("a key");
            user(params.self_signed(&key).expect("a certificate").der())
        };
        let ann = made(&["u1"]).expect("somebody");
        assert_eq!((ann.name.as_str(), ann.uid.as_str()), ("ann", "u1"));
        assert_eq!(ann.groups, ["dev", "system:authenticated"]);
        let id = &ann.extra["authentication.kubernetes.io/credential-id"][0];
        assert!(id.len() == "X509SHA256=".len() + 64 && id.starts_with("X509SHA256="), "{id}");
        assert_eq!(made(&[]).expect("somebody").uid, "");
    }
}
