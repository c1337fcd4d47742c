//! A container's image: policy, credentials, and what users are told.
//! <https://kubernetes.io/docs/concepts/containers/images/>

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use serde::Deserialize;

use crate::outside::{
    Image, ImageError, ImageForm, Images, Objects, PullPolicy, PullProgress, RegistryAuth,
};

/// (warning, reason, message) of an Event about the container.
pub(crate) type Said = (bool, &'static str, String);

/// Gets the image; `say` is called as things happen.
pub(crate) async fn ensure(
    pod: &Pod,
    container: &Container,
    images: &dyn Images,
    objects: &dyn Objects,
    say: &(dyn Fn(Said) + Send + Sync),
) -> Result<Image, ImageError> {
    let reference = container.image.as_deref().unwrap_or_default();
    let policy = policy(reference, container.image_pull_policy.as_deref());
    if reference.is_empty() {
        let message = "the container names no image".into();
        return Err(ImageError { reason: "InvalidImageName".into(), message });
    }
    if let Err(error) = images.check_name(reference) {
        // Nothing is pulled by such a name.
        say((true, "InspectFailed", error.message.clone()));
        say((true, "Failed", format!("Error: {}", error.reason)));
        return Err(error);
    }
    let present = match policy {
        PullPolicy::Always => None,
        _ => images.present(reference).await,
    };
    if let Some(image) = present {
        let message = format!(
            "Container image {reference:?} already present on machine and can be accessed by the pod"
        );
        say((false, "Pulled", message));
        return Ok(image);
    }
    if policy != PullPolicy::Never {
        say((false, "Pulling", format!("Pulling image {reference:?}")));
    }
    let auth = credentials(pod, objects).await;
    let began = tokio::time::Instant::now();
    let pulled = watched(images.ensure(reference, policy, &auth), || {
        if let Some(progress) = images.progress(reference) {
            say((false, "Pulling", so_far(reference, progress, began.elapsed())));
        }
    });
    match pulled.await {
        Ok(image) => {
            let took = crate::restart::go_millis(began.elapsed());
            let size = size(&image).map(|n| format!(" Image size: {n} bytes.")).unwrap_or_default();
            let message = format!(
                "Successfully pulled image {reference:?} in {took} ({took} including waiting).{size}"
            );
            say((false, "Pulled", message));
            Ok(image)
        }
        Err(error) => {
            let (reason, message) = match error.reason.as_str() {
                "InvalidImageName" => ("InspectFailed", error.message.clone()),
                "ErrImageNeverPull" => (
                    "ErrImageNeverPull",
                    format!(
                        "Container image {reference:?} is not present with pull policy of Never"
                    ),
                ),
                _ => ("Failed", format!("Failed to pull image {reference:?}: {}", error.message)),
            };
            say((true, reason, message));
            say((true, "Failed", format!("Error: {}", error.reason)));
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

fn size(image: &Image) -> Option<u64> {
    match &image.form {
        ImageForm::Wasm { file, .. } => std::fs::metadata(file).ok().map(|m| m.len()),
        ImageForm::Linux { .. } => None,
    }
}

/// Of all imagePullSecrets that are there; one that is missing or malformed is as good as none, the
/// registry then says what it thinks of that.
pub(crate) async fn credentials(pod: &Pod, objects: &dyn Objects) -> Vec<RegistryAuth> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut list = Vec::new();
    for reference in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        if let Ok(secret) = objects.secret(namespace, &reference.name).await {
            list.extend(of_secret(&secret));
        }
    }
    list
}

#[derive(Deserialize)]
struct DockerConfig {
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

/// `kubernetes.io/dockerconfigjson`, and the older `kubernetes.io/dockercfg`.
fn of_secret(secret: &Secret) -> Vec<RegistryAuth> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
    let new =
        data(".dockerconfigjson").and_then(|b| serde_json::from_slice::<DockerConfig>(b).ok());
    let old = || data(".dockercfg").and_then(|b| serde_json::from_slice(b).ok());
    let auths: BTreeMap<String, DockerAuth> = new.map(|c| c.auths).or_else(old).unwrap_or_default();
    let one = |(registry, auth): (String, DockerAuth)| {
        let (username, password) = match auth.username.is_empty() {
            false => (auth.username, auth.password),
            true => {
                let decoded =
                    base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).ok()?;
                let text = String::from_utf8(decoded).ok()?;
                let (user, password) = text.split_once(':')?;
                (user.to_owned(), password.to_owned())
            }
        };
        let host = registry.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or(host).to_owned();
        Some(RegistryAuth { registry: host, username, password })
    };
    auths.into_iter().filter_map(one).collect()
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
        let check = |key: &str, content: serde_json::Value, expected: &[(&str, &str, &str)]| {
            let secret = json!({"metadata": {}, "data": {key: encoded(&content.to_string())}});
            let auths = of_secret(&serde_json::from_value(secret).unwrap());
            let seen: Vec<_> = auths
                .iter()
                .map(|a| (a.registry.as_str(), a.username.as_str(), a.password.as_str()))
                .collect();
            assert_eq!(seen, expected);
        };
        let auth = encoded("u:p:q");
        check(
            ".dockerconfigjson",
            json!({"auths": {"https://r.example/v1/": {"auth": auth}}}),
            &[("r.example", "u", "p:q")],
        );
        check(
            ".dockercfg",
            json!({"r:5000": {"username": "u", "password": "p"}}),
            &[("r:5000", "u", "p")],
        );
        check(".dockerconfigjson", json!({"nonsense": 1}), &[]);
    }
}
