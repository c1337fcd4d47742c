//! Static pods: those that a node has from files of its own, and what the API shows of them (mirror pods).
//! <https://kubernetes.io/docs/tasks/configure-pod-container/static-pod/>

use serde_json::Value;

/// Where a pod comes from: `api`, or `file`.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// Tells versions of a static pod apart; its UID on the node.
pub const HASH: &str = "kubernetes.io/config.hash";
/// When the node read it first.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// Makes a pod of the API a mere picture of a static one: the latter's hash.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// An annotation of an object.
pub fn annotation<'a>(
    meta: &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    name: &str,
) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Fields through which a pod gets at other objects of the API, wherever they stand in its spec.
const REFERENCES: [&str; 17] = [
    "claims",
    "clusterTrustBundle",
    "configMap",
    "configMapKeyRef",
    "configMapRef",
    "ephemeral",
    "imagePullSecrets",
    "nodePublishSecretRef",
    "persistentVolumeClaim",
    "podCertificate",
    "resourceClaims",
    "secret",
    "secretKeyRef",
    "secretRef",
    "serviceAccount",
    "serviceAccountName",
    "serviceAccountToken",
];

/// The first field of a pod's spec that refers to another object of the API, as a path: a static pod has none,
/// for it is there before the API is, and its node may see nothing through it.
pub fn reference(spec: &Value) -> Option<String> {
    match spec {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let empty = match value {
                Value::Null => true,
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                _ => false,
            };
            if REFERENCES.contains(&name.as_str()) && !empty {
                return Some(name.clone());
            }
            // Names that people choose stand in these alone.
            let chosen =
                matches!(name.as_str(), "nodeSelector" | "matchLabels" | "limits" | "requests");
            let below = if chosen { None } else { reference(value) };
            below.map(|path| format!("{name}.{path}"))
        }),
        Value::Array(list) => {
            let mut found = list.iter().enumerate();
            found.find_map(|(index, value)| Some(format!("[{index}].{}", reference(value)?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_refers_to_objects() {
        let of = |spec: Value| reference(&spec);
        let plain = json!({"nodeSelector": {"secret": "x"}, "serviceAccountName": "", "imagePullSecrets": [],
            "containers": [{"name": "secret", "env": [{"name": "A", "value": "configMap"},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v", "hostPath": {"path": "/secret"}}, {"name": "e", "emptyDir": {}},
                {"name": "p", "projected": {"sources": [{"downwardAPI": {}}]}}]});
        assert_eq!(of(plain), None);
        let volume = json!({"volumes": [{"emptyDir": {}}, {"secret": {"secretName": "s"}}]});
        assert_eq!(of(volume).as_deref(), Some("volumes.[1].secret"));
        let token = json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]});
        assert!(of(token).is_some());
        let variable = json!({"initContainers": [{"envFrom": [{"configMapRef": {"name": "c"}}]}]});
        assert_eq!(of(variable).as_deref(), Some("initContainers.[0].envFrom.[0].configMapRef"));
        assert_eq!(
            of(json!({"serviceAccountName": "default"})).as_deref(),
            Some("serviceAccountName")
        );
    }
}
