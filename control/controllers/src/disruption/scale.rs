//! How an owner of pods is scaled that no cache knows: the API says, if its kind has a scale.

use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use rimward_api::GroupVersion;
use rimward_client::{Client, Error, Resource};
use serde_json::Value;

/// Uid and replicas of an owner; None of one that is gone.
///
/// # Errors
/// Its kind is not served or has no scale, or the API cannot be asked.
pub async fn of(
    client: &Client,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<Option<(String, i32)>, String> {
    let said = |e: Error| e.to_string();
    let version = GroupVersion::parse(&owner.api_version)
        .ok_or_else(|| format!("{:?} is not an API version", owner.api_version))?;
    let prefix = version.url_prefix();
    let served: Value = client.call(Method::GET, &prefix, None::<&()>).await.map_err(said)?;
    let Some(plural) = plural(&served, &owner.kind) else {
        let (kind, version) = (&owner.kind, &owner.api_version);
        return Err(format!("no matches for kind {kind:?} in version {version:?}"));
    };
    if !has(&served, &format!("{plural}/scale")) {
        let of_group =
            if version.group.is_empty() { String::new() } else { format!(".{}", version.group) };
        return Err(format!("{plural}{of_group} does not implement the scale subresource"));
    }
    let path = Resource::new(version, plural).path(namespace, &owner.name, "scale");
    match client.call::<Value>(Method::GET, &path, None::<&()>).await {
        Ok(scale) => Ok(replicas(&scale, &owner.uid).map(|n| (owner.uid.clone(), n))),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(said(e)),
    }
}

fn resources(served: &Value) -> impl Iterator<Item = (&str, &str)> {
    let all = served["resources"].as_array().into_iter().flatten();
    all.filter_map(|r| Some((r["name"].as_str()?, r["kind"].as_str()?)))
}

/// What a kind's resource is called in an APIResourceList.
fn plural<'a>(served: &'a Value, kind: &str) -> Option<&'a str> {
    let mut all = resources(served).filter(|(name, _)| !name.contains('/'));
    all.find(|(_, k)| *k == kind).map(|(name, _)| name)
}

fn has(served: &Value, name: &str) -> bool {
    resources(served).any(|(n, _)| n == name)
}

/// Nothing of another object of the same name.
fn replicas(scale: &Value, uid: &str) -> Option<i32> {
    (scale["metadata"]["uid"] == uid)
        .then(|| scale["spec"]["replicas"].as_i64().unwrap_or_default())
        .map(|n| i32::try_from(n).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_api_says() {
        let served = json!({ "resources": [
            { "name": "sixes", "kind": "Six" }, { "name": "sixes/scale", "kind": "Scale" } ] });
        assert_eq!(plural(&served, "Six"), Some("sixes"));
        assert_eq!(plural(&served, "Scale"), None);
        assert!(has(&served, "sixes/scale") && !has(&served, "sixes/status"));
        let scale = json!({ "metadata": { "uid": "u" }, "spec": { "replicas": 4 } });
        assert_eq!((replicas(&scale, "u"), replicas(&scale, "v")), (Some(4), None));
    }
}
