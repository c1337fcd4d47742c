//! The downward API: what a pod may learn about itself.
//! <https://kubernetes.io/docs/concepts/workloads/pods/downward-api/>

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use rimward_api::Quantity;

use crate::pods::Allocatable;

/// What is not written in the pod itself.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub pod_ips: &'a [IpAddr],
    pub host_ip: IpAddr,
    pub node_name: &'a str,
    pub allocatable: Allocatable,
}

/// The value of a `fieldRef`. Err is Kubernetes' text.
pub(crate) fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let list = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    if let Some((map_path, key)) = subscript(path) {
        let map = match map_path {
            "metadata.annotations" => &meta.annotations,
            "metadata.labels" => &meta.labels,
            _ => return Err(unsupported(path)),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => map_lines(meta.labels.as_ref()),
        "metadata.annotations" => map_lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.to_owned(),
        "spec.serviceAccountName" => {
            spec.map(|s| text(&s.service_account_name)).unwrap_or_default()
        }
        "spec.restartPolicy" => spec.map(|s| text(&s.restart_policy)).unwrap_or_default(),
        "status.hostIP" => facts.host_ip.to_string(),
        "status.hostIPs" => facts.host_ip.to_string(),
        "status.podIP" => facts.pod_ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.podIPs" => list(facts.pod_ips),
        _ => return Err(unsupported(path)),
    })
}

fn unsupported(path: &str) -> String {
    format!("unsupported fieldPath: {path}")
}

/// `metadata.labels['key']`
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` a line, by key, values quoted as Go quotes them.
fn map_lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
    lines.join("\n")
}

fn go_quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            '\n' => quoted += "\\n",
            '\r' => quoted += "\\r",
            '\t' => quoted += "\\t",
            c if c.is_ascii_control() => quoted += &format!("\\x{:02x}", c as u32),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// The value of a `resourceFieldRef`, of the container it names or else of `own`.
pub(crate) fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    allocatable: Allocatable,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        None => own.ok_or("resourceFieldRef needs a containerName in a volume")?,
        Some(name) => {
            let spec = pod.spec.as_ref();
            let init = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten());
            let main = spec.into_iter().flat_map(|s| &s.containers);
            main.chain(init)
                .find(|c| c.name == name)
                .ok_or_else(|| format!("container {name} not found"))?
        }
    };
    let (section, name) = selector
        .resource
        .split_once('.')
        .filter(|(section, _)| matches!(*section, "limits" | "requests"))
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let divisor = match &selector.divisor {
        Some(text) => parse(text)?,
        None => Quantity::ZERO,
    };
    let divisor = if divisor.is_zero() { Quantity::from_whole(1) } else { divisor };
    let of = |section| quantity(container, section, name);
    let value = match section {
        // An absent limit is all that the node has.
        "limits" => of("limits").unwrap_or(match name {
            "cpu" => Ok(Quantity::from_millis(allocatable.cpu_millis as i64)),
            "memory" => Ok(Quantity::from_bytes(allocatable.memory_bytes as i64)),
            "ephemeral-storage" => {
                Ok(Quantity::from_bytes(allocatable.ephemeral_storage_bytes as i64))
            }
            _ => Ok(Quantity::ZERO),
        })?,
        _ => of("requests").unwrap_or(Ok(Quantity::ZERO))?,
    };
    let (value, divisor) = match name {
        "cpu" => (value.millis(), divisor.millis()),
        _ => (value.value(), divisor.value()),
    };
    Ok((value / divisor + i64::from(value % divisor > 0)).to_string())
}

fn quantity(container: &Container, section: &str, name: &str) -> Option<Result<Quantity, String>> {
    let resources = container.resources.as_ref()?;
    let map = if section == "limits" { &resources.limits } else { &resources.requests };
    Some(parse(map.as_ref()?.get(name)?))
}

pub(crate) fn parse(text: &ApiQuantity) -> Result<Quantity, String> {
    Quantity::parse(&text.0).map_err(|e| format!("quantity {:?}: {e}", text.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2", "a": "1"}, "annotations": {"x/y": "say \"hi\"\n"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}}},
                {"name": "d"}]},
        }))
        .unwrap()
    }

    fn facts(ips: &[IpAddr]) -> Facts<'_> {
        let allocatable = Allocatable {
            cpu_millis: 2000,
            memory_bytes: 4 << 30,
            ephemeral_storage_bytes: 1 << 30,
            pods: 110,
        };
        Facts {
            pod_ips: ips,
            host_ip: "192.0.2.1".parse().unwrap(),
            node_name: "node-1",
            allocatable,
        }
    }

    #[test]
    fn fields() {
        let ips = ["10.42.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        #[track_caller]
        fn check(ips: &[IpAddr], path: &str, expected: &str) {
            assert_eq!(field(&pod(), path, &facts(ips)).as_deref(), Ok(expected));
        }
        check(&ips, "metadata.name", "p");
        check(&ips, "metadata.uid", "u");
        check(&ips, "metadata.labels['a']", "1");
        check(&ips, "metadata.labels['none']", "");
        check(&ips, "metadata.labels", "a=\"1\"\nb=\"2\"");
        check(&ips, "metadata.annotations", "x/y=\"say \\\"hi\\\"\\n\"");
        check(&ips, "spec.nodeName", "node-1");
        check(&ips, "spec.serviceAccountName", "sa");
        check(&ips, "status.podIP", "10.42.0.5");
        check(&ips, "status.podIPs", "10.42.0.5,fd00::5");
        check(&ips, "status.hostIP", "192.0.2.1");
        assert!(field(&pod(), "spec.nope", &facts(&ips)).is_err());
    }

    #[test]
    fn resources() {
        #[track_caller]
        fn check(own: usize, selector: Value, expected: Result<&str, &str>) {
            let pod = pod();
            let selector = serde_json::from_value(selector).unwrap();
            let own = &pod.spec.as_ref().unwrap().containers[own];
            let value = resource(&pod, Some(own), &selector, facts(&[]).allocatable);
            assert_eq!(value, expected.map(String::from).map_err(String::from));
        }
        check(0, json!({"resource": "limits.memory"}), Ok("67108864"));
        check(0, json!({"resource": "limits.memory", "divisor": "1Mi"}), Ok("64"));
        check(0, json!({"resource": "requests.cpu"}), Ok("1"));
        check(0, json!({"resource": "requests.cpu", "divisor": "1m"}), Ok("250"));
        check(0, json!({"resource": "limits.cpu"}), Ok("2"));
        check(1, json!({"resource": "limits.memory", "divisor": "1Gi"}), Ok("4"));
        check(1, json!({"resource": "requests.memory"}), Ok("0"));
        check(
            1,
            json!({"containerName": "c", "resource": "requests.memory", "divisor": "1Ki"}),
            Ok("32768"),
        );
        check(
            1,
            json!({"containerName": "x", "resource": "limits.cpu"}),
            Err("container x not found"),
        );
        check(1, json!({"resource": "cpu"}), Err("unsupported container resource : cpu"));
    }
}
