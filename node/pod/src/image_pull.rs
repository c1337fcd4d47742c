//! A container's image: policy, credentials, and what users are told.
//! <https://kubernetes.io/docs/concepts/containers/images/>

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use serde::Deserialize;

use crate::outside::{
    Image, ImageError, Images, Objects, PullPolicy, PullProgress, RegistryAuth, SecretSource,
};

/// An Event to be.
pub(crate) struct Said {
    /// About the pod as a whole, not about who wants the image.
    pub of_pod: bool,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

pub(crate) type Say<'a> = &'a (dyn Fn(Said) + Send + Sync);

/// An image that something in a pod wants.
pub(crate) struct Wanted<'a> {
    pub reference: &'a str,
    pub policy: PullPolicy,
}

impl<'a> Wanted<'a> {
    /// `policy` as the spec has it, if it does.
    pub fn new(reference: Option<&'a str>, policy: Option<&str>) -> Self {
        let reference = reference.unwrap_or_default();
        Self { reference, policy: self::policy(reference, policy) }
    }

    pub fn of(container: &'a Container) -> Self {
        Self::new(container.image.as_deref(), container.image_pull_policy.as_deref())
    }
}

/// Gets the image; `say` is called as things happen.
pub(crate) async fn ensure(
    pod: &Pod,
    wanted: &Wanted<'_>,
    images: &dyn Images,
    objects: &dyn Objects,
    say: Say<'_>,
) -> Result<Image, ImageError> {
    let Wanted { reference, policy } = *wanted;
    let tell = |warning: bool, reason: &'static str, message: String| {
        say(Said { of_pod: false, warning, reason, message });
    };
    if reference.is_empty() {
        let message = "the container names no image".into();
        return Err(ImageError { reason: "InvalidImageName".into(), message });
    }
    if let Err(error) = images.check_name(reference) {
        // Nothing is pulled by such a name.
        tell(true, "InspectFailed", error.message.clone());
        return Err(error);
    }
    let present = match policy {
        PullPolicy::Always => None,
        _ => images.present(reference).await,
    };
    let mut auth = None;
    if let Some(image) = present {
        // Whom an image is for depends on secrets only where it came with one.
        let mut may_use = images.may_use(reference, &image, &[]);
        if !may_use {
            let own = credentials(pod, objects, say).await;
            may_use = images.may_use(reference, &image, &own);
            auth = Some(own);
        }
        if may_use {
            let message = format!(
                "Container image {reference:?} already present on machine and can be accessed by the pod"
            );
            tell(false, "Pulled", message);
            return Ok(image);
        }
    }
    if policy == PullPolicy::Never {
        // Nor is it told that it is here, to whom it is not for.
        let message =
            format!("Container image {reference:?} is not present with pull policy of Never");
        tell(true, "ErrImageNeverPull", message.clone());
        return Err(ImageError { reason: "ErrImageNeverPull".into(), message });
    }
    tell(false, "Pulling", format!("Pulling image {reference:?}"));
    let auth = match auth {
        Some(auth) => auth,
        None => credentials(pod, objects, say).await,
    };
    let began = tokio::time::Instant::now();
    let pulled = watched(images.ensure(reference, policy, &auth), || {
        if let Some(progress) = images.progress(reference) {
            tell(false, "Pulling", so_far(reference, progress, began.elapsed()));
        }
    });
    match pulled.await {
        Ok(image) => {
            let took = crate::restart::go_millis(began.elapsed());
            let size = images.size_bytes(reference);
            let size = size.map(|n| format!(" Image size: {n} bytes.")).unwrap_or_default();
            let message = format!(
                "Successfully pulled image {reference:?} in {took} ({took} including waiting).{size}"
            );
            tell(false, "Pulled", message);
            Ok(image)
        }
        Err(error) => {
            let (reason, message) = match error.reason.as_str() {
                "InvalidImageName" => ("InspectFailed", error.message.clone()),
                _ => ("Failed", format!("Failed to pull image {reference:?}: {}", error.message)),
            };
            tell(true, reason, message);
            Err(error)
        }
    }
}

/// Calls `look` now and then while a pull goes on, ever less often.
async fn watched<T>(pull: impl Future<Output = T>, look: impl Fn()) -> T {
    const FIRST: Duration = Duration::from_secs(15);
    const LONGEST: Duration = Duration::from_secs(240);
    let mut pull = std::pin::pin!(pull);
    let mut pause = FIRST;
    loop {
        match tokio::time::timeout(pause, &mut pull).await {
            Ok(outcome) => return outcome,
            Err(_) => look(),
        }
        pause = (pause * 2).min(LONGEST);
    }
}

fn so_far(reference: &str, progress: PullProgress, took: Duration) -> String {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    format!(
        "Pulling image {reference:?}: {:.1} of {:.1} MB after {} s",
        megabytes(progress.bytes),
        megabytes(progress.bytes_all),
        took.as_secs()
    )
}

/// The policy as set; else Always for `:latest` or no tag.
pub(crate) fn policy(reference: &str, said: Option<&str>) -> PullPolicy {
    match said {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => {
            let last = reference.rsplit('/').next().unwrap_or_default();
            let latest =
                !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
            if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

/// Of all imagePullSecrets that are there; of one that is missing an Event tells, and the registry then says
/// what it thinks of that.
async fn credentials(pod: &Pod, objects: &dyn Objects, say: Say<'_>) -> Vec<RegistryAuth> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (mut list, mut missing) = (Vec::new(), Vec::new());
    for reference in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        match objects.secret(namespace, &reference.name).await {
            Ok(secret) => list.extend(of_secret(&secret)),
            Err(_) => missing.push(reference.name.as_str()),
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        let reason = "FailedToRetrieveImagePullSecret";
        say(Said { of_pod: true, warning: true, reason, message });
    }
    list
}

/// What a file has that is laid out as docker's `config.json`. None of what is none.
pub fn of_docker_config(json: &[u8]) -> Option<Vec<RegistryAuth>> {
    let config = serde_json::from_slice::<DockerConfig>(json).ok()?;
    Some(config.auths.into_iter().filter_map(|(registry, auth)| auth.of(registry, None)).collect())
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

impl DockerAuth {
    /// `auth`, which is both in one, goes before the two.
    fn of(self, registry: String, source: Option<SecretSource>) -> Option<RegistryAuth> {
        let (username, password) = match self.auth.trim() {
            "" => (self.username, self.password),
            auth => {
                // With and without padding.
                let bare = auth.trim_end_matches('=');
                let decoded = base64::engine::general_purpose::STANDARD_NO_PAD.decode(bare).ok()?;
                let text = String::from_utf8(decoded).ok()?;
                let (user, password) = text.split_once(':')?;
                (user.to_owned(), password.to_owned())
            }
        };
        Some(RegistryAuth { registry, username, password, source })
    }
}

/// `kubernetes.io/dockerconfigjson`, and the older `kubernetes.io/dockercfg`. A secret of another type is none.
fn of_secret(secret: &Secret) -> Vec<RegistryAuth> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
    let auths: BTreeMap<String, DockerAuth> = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            let config = data(".dockerconfigjson").map(serde_json::from_slice::<DockerConfig>);
            config.and_then(Result::ok).map(|config| config.auths).unwrap_or_default()
        }
        Some("kubernetes.io/dockercfg") => {
            let config = data(".dockercfg").map(serde_json::from_slice);
            config.and_then(Result::ok).unwrap_or_default()
        }
        _ => BTreeMap::new(),
    };
    let meta = &secret.metadata;
    let source = SecretSource {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    };
    auths
        .into_iter()
        .filter_map(|(registry, auth)| auth.of(registry, Some(source.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies() {
        #[track_caller]
        fn check(image: &str, set: Option<&str>, expected: PullPolicy) {
            assert_eq!(policy(image, set), expected, "{image}");
        }
        check("a/b", None, PullPolicy::Always);
        check("a/b:latest", None, PullPolicy::Always);
        check("host:5000/b", None, PullPolicy::Always);
        check("host:5000/b:1", None, PullPolicy::IfNotPresent);
        check("b@sha256:00", None, PullPolicy::IfNotPresent);
        check("b", Some("Never"), PullPolicy::Never);
    }

    #[test]
    fn docker_secrets() {
        let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let check = |kind: &str, content: serde_json::Value, expected: &[(&str, &str, &str)]| {
            let key = kind.replace("kubernetes.io/", ".");
            let secret = json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"},
                "type": kind, "data": {key: encoded(&content.to_string())}});
            let auths = of_secret(&serde_json::from_value(secret).unwrap());
            let seen: Vec<_> = auths
                .iter()
                .map(|a| (a.registry.as_str(), a.username.as_str(), a.password.as_str()))
                .collect();
            assert_eq!(seen, expected);
            assert!(auths.iter().all(|a| a.source.as_ref().is_some_and(|s| s.uid == "u")));
        };
        let auth = encoded("u:p:q");
        let url = "https://r.example/v1/";
        let new = "kubernetes.io/dockerconfigjson";
        check(new, json!({"auths": {url: {"auth": auth}}}), &[(url, "u", "p:q")]);
        // What is in one goes before what is in two, with or without its padding.
        let both = json!({"auth": auth.trim_end_matches('='), "username": "x", "password": "y"});
        check(new, json!({"auths": {"r": both}}), &[("r", "u", "p:q")]);
        let one = json!({"username": "u", "password": "p"});
        check("kubernetes.io/dockercfg", json!({"r:5000": one}), &[("r:5000", "u", "p")]);
        check(new, json!({"nonsense": 1}), &[]);
        check(new, json!({"auths": {"r": {"auth": "?"}}}), &[]);
        check("Opaque", json!({"auths": {"r": one}}), &[]);
    }
}
