//! Everything that a runtime must know to start one container, from the pod's spec.

pub(crate) mod linux;

pub(crate) use linux::{may_swap, pod_limits};

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume, VolumeDevice, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource as api;
use sha2::{Digest, Sha256};

use crate::downward;
use crate::env::expand;
use crate::outside::{Attachment, Image, ImageForm};
use crate::runtime::{ContainerSpec, DiskDevice, Dns, Mount, PodLimits, Resources, RunId, User};
use crate::volumes::Places;
use crate::volumes::in_use;
use crate::volumes::sub_path::{self as part, For};

/// What a container's definition is compared by. Only its image can change while it is the same pod,
/// and a hash of more would restart containers when a newer agent knows more fields.
pub(crate) fn hash(container: &Container) -> String {
    let text = format!("{}\n{}", container.name, container.image.as_deref().unwrap_or_default());
    Sha256::digest(text.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

pub(crate) use linux::{pod_requests, stop_signal};

/// What a container and its pod may take, for one that runs.
///
/// # Errors
/// Names a quantity that cannot be read.
pub(crate) fn limits(pod: &Pod, container: &Container) -> Result<(Resources, PodLimits), String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    Ok((resources(container)?, linux::pod_limits(spec)?))
}

pub(crate) struct Given<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub id: RunId,
    pub image: Image,
    pub env: Vec<(String, String)>,
    pub attachment: &'a Attachment,
    pub host_ip: IpAddr,
    pub dns: Dns,
    pub cluster_domain: &'a str,
    pub places: &'a Places,
}

/// Err is the message of CreateContainerConfigError. Makes the directories that subPaths name.
pub(crate) fn build(given: Given<'_>) -> Result<ContainerSpec, String> {
    let Given { pod, container, attachment, .. } = given;
    let image = &given.image;
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let pod_ip = attachment.pod_ips.first().copied().unwrap_or(given.host_ip);
    let env = environment(image, pod, given.cluster_domain, &given.env);
    let log_path = log_path(&given.places.pod_dir, &given.id);
    Ok(ContainerSpec {
        pod_namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod_name: pod.metadata.name.clone().unwrap_or_default(),
        spec_hash: hash(container),
        // Only what the pod gives is expanded, not what the image has.
        argv: argv(container, image, &given.env),
        working_dir: match container.working_dir.as_deref() {
            Some(dir) if !dir.is_empty() => dir.to_owned(),
            _ => parts(image).3.to_owned(),
        },
        mounts: mounts(spec, container, given.places, &given.env)?,
        pod_ip,
        bind_ip: attachment.bind_ip,
        netns: attachment.netns.clone(),
        tcp_ports: tcp_ports(container),
        resources: resources(container)?,
        log_path,
        user: user(spec, container, image, given.places)?,
        dns: given.dns,
        hosts: crate::dns::hosts(pod, pod_ip, given.cluster_domain),
        runtime_class: spec.runtime_class_name.clone().unwrap_or_default(),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: linux::of(
            pod,
            container,
            image,
            given.cluster_domain,
            disks(spec, container, given.places)?,
        )?,
        id: given.id,
        env,
        image: given.image,
    })
}

/// `DIR/node/pods/<uid>/<container>/<attempt>.log`
pub(crate) fn log_path(pod_dir: &Path, id: &RunId) -> std::path::PathBuf {
    pod_dir.join(&id.container).join(format!("{}.log", id.attempt))
}

/// entrypoint, cmd, env, working directory
fn parts(image: &Image) -> (&[String], &[String], &[String], &str) {
    match &image.form {
        ImageForm::Wasm { entrypoint, cmd, env, working_dir, .. }
        | ImageForm::Linux { entrypoint, cmd, env, working_dir, .. } => {
            (entrypoint, cmd, env, working_dir)
        }
    }
}

/// The image's variables, HOSTNAME, then the container's own; later ones win.
fn environment(
    image: &Image,
    pod: &Pod,
    domain: &str,
    own: &[(String, String)],
) -> Vec<(String, String)> {
    let pair = |text: &String| text.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
    let mut env: Vec<(String, String)> = parts(image).2.iter().filter_map(pair).collect();
    let hostname = ("HOSTNAME".to_owned(), crate::dns::hostname(pod, domain).0);
    for (name, value) in std::iter::once(&hostname).chain(own) {
        match env.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    env
}

/// Kubernetes' rules: a command replaces the image's entrypoint and cmd, args replace its cmd.
fn argv(container: &Container, image: &Image, env: &[(String, String)]) -> Vec<String> {
    let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, get)).collect()
    };
    let (entrypoint, cmd, ..) = parts(image);
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let mut argv = match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, false) => [entrypoint.to_vec(), args].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    };
    // A component has no file to name as argv[0]; it is called what its image is called.
    let no_program = container.command.iter().flatten().next().is_none() && entrypoint.is_empty();
    if no_program && matches!(image.form, ImageForm::Wasm { .. }) {
        argv.insert(0, image_name(&image.reference).to_owned());
    }
    argv
}

fn image_name(reference: &str) -> &str {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    last.split(['@', ':']).next().unwrap_or(last)
}

fn tcp_ports(container: &Container) -> Vec<u16> {
    let tcp = container
        .ports
        .iter()
        .flatten()
        .filter(|p| p.protocol.as_deref().is_none_or(|p| p == "TCP"));
    let mut ports = Vec::new();
    for port in tcp.filter_map(|p| u16::try_from(p.container_port).ok()) {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

type Amounts = BTreeMap<String, api::Quantity>;

fn resources(container: &Container) -> Result<Resources, String> {
    match &container.resources {
        Some(given) => amounts(given.limits.as_ref(), given.requests.as_ref()),
        None => Ok(Resources::default()),
    }
}

fn quantity(map: Option<&Amounts>, name: &str) -> Result<Option<rimward_api::Quantity>, String> {
    map.and_then(|m| m.get(name)).map(downward::parse).transpose()
}

fn amounts(limits: Option<&Amounts>, requests: Option<&Amounts>) -> Result<Resources, String> {
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    let cpu_limit = quantity(limits, "cpu")?;
    let cpu_request = quantity(requests, "cpu")?.or(cpu_limit);
    Ok(Resources {
        memory_limit_bytes: quantity(limits, "memory")?.and_then(|q| positive(q.value())),
        cpu_limit_millis: cpu_limit.and_then(|q| positive(q.millis())),
        cpu_request_millis: cpu_request.and_then(|q| positive(q.millis())).unwrap_or(0),
    })
}

fn user(
    spec: &PodSpec,
    container: &Container,
    image: &Image,
    places: &Places,
) -> Result<User, String> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let uid = own.and_then(|c| c.run_as_user).or(pod.and_then(|p| p.run_as_user));
    let gid = own.and_then(|c| c.run_as_group).or(pod.and_then(|p| p.run_as_group));
    let non_root = own.and_then(|c| c.run_as_non_root).or(pod.and_then(|p| p.run_as_non_root));
    if non_root == Some(true) {
        not_root(uid, image, &container.name)?;
    }
    let mut supplemental_gids = pod.and_then(|p| p.supplemental_groups.clone()).unwrap_or_default();
    supplemental_gids.extend(pod.and_then(|p| p.fs_group));
    let mut of_claims = in_use::groups(&places.pod_dir);
    of_claims.retain(|gid| !supplemental_gids.contains(gid));
    supplemental_gids.extend(of_claims);
    let strict_groups = pod.and_then(|p| p.supplemental_groups_policy.as_deref()) == Some("Strict");
    Ok(User { uid, gid, supplemental_gids, strict_groups })
}

/// runAsNonRoot, in the kubelet's words. A component is never root, whatever its image says.
fn not_root(uid: Option<i64>, image: &Image, container: &str) -> Result<(), String> {
    match (uid, &image.form) {
        (Some(0), _) => {
            Err(format!("container's runAsUser breaks non-root policy (container: {container})"))
        }
        (None, ImageForm::Linux { user, .. }) => {
            let name = user.split(':').next().unwrap_or_default();
            match name.parse::<u32>() {
                Ok(0) => Err(root_image(container)),
                Ok(_) => Ok(()),
                Err(_) if name.is_empty() => Err(root_image(container)),
                Err(_) => Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root (container: {container})"
                )),
            }
        }
        _ => Ok(()),
    }
}

fn root_image(container: &str) -> String {
    format!("container has runAsNonRoot and image will run as root (container: {container})")
}

fn mounts(
    spec: &PodSpec,
    container: &Container,
    places: &Places,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    let text = |refused: part::Refused| refused.to_string();
    let one = |(index, mount): (usize, &VolumeMount)| {
        let volume = volumes.iter().find(|v| v.name == mount.name).ok_or_else(|| {
            format!(
                "cannot find volume {:?} to mount into container {:?}",
                mount.name, container.name
            )
        })?;
        let whole = places.of(volume);
        // A claim's volume is a link to where it lies; what is mounted must not be a link.
        let whole = match is_claimed(volume) {
            true => whole.canonicalize().unwrap_or(whole),
            false => whole,
        };
        let of = For { volume_mount: &mount.name, container: &container.name, index };
        let host_path = match sub_path(mount, env)? {
            None => whole,
            Some(sub) if is_atomic(volume) => part::frozen(&whole, &sub, of).map_err(text)?,
            Some(sub) => part::part(&places.pod_dir, &whole, &sub, of).map_err(text)?,
        };
        Ok(Mount {
            host_path,
            container_path: mount.mount_path.clone(),
            read_only: mount.read_only == Some(true) || is_read_only(volume),
        })
    };
    mounts.iter().enumerate().map(one).collect()
}

/// `volumeDevices`: a claim's disk itself.
fn disks(
    spec: &PodSpec,
    container: &Container,
    places: &Places,
) -> Result<Vec<DiskDevice>, String> {
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let one = |device: &VolumeDevice| {
        let volume = volumes.iter().find(|v| v.name == device.name);
        let volume = volume.filter(|v| is_claimed(v)).ok_or_else(|| {
            let (name, container) = (&device.name, &container.name);
            format!("cannot find volume {name:?} to pass into container {container:?}")
        })?;
        let host_path = places
            .of(volume)
            .canonicalize()
            .map_err(|e| format!("the device of volume {:?} is not there: {e}", device.name))?;
        let container_path = device.device_path.clone();
        Ok(DiskDevice { host_path, container_path, read_only: is_read_only(volume) })
    };
    container.volume_devices.iter().flatten().map(one).collect()
}

fn is_claimed(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

/// Whatever its mounts say.
fn is_read_only(volume: &Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();
    is_atomic(volume)
        || volume.image.is_some()
        || claim.is_some_and(|claim| claim.read_only == Some(true))
        || volume.nfs.as_ref().is_some_and(|nfs| nfs.read_only == Some(true))
}

/// Filled by this node and replaced as a whole: containers only read it.
fn is_atomic(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, String> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|s| !s.is_empty()) {
        let missing = RefCell::new(BTreeSet::new());
        let path = expand(expression, |name| {
            let value = env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            let value = value.filter(|value| !value.is_empty());
            if value.is_none() {
                missing.borrow_mut().insert(name.to_owned());
            }
            value
        });
        let missing: Vec<String> = missing.into_inner().into_iter().collect();
        if !missing.is_empty() {
            return Err(format!(
                "failed to expand subPath for volumeMount {:?}: missing value for {}",
                mount.mount_path,
                missing.join(", ")
            ));
        }
        return Ok(Some(path));
    }
    Ok(mount.sub_path.clone().filter(|s| !s.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Image {
        let list = |l: &[&str]| l.iter().map(|s| s.to_string()).collect();
        Image {
            reference: "registry:5000/team/hello:v1".into(),
            id: String::new(),
            digest: String::new(),
            form: ImageForm::Wasm {
                file: "/x.wasm".into(),
                digest: String::new(),
                entrypoint: list(entrypoint),
                cmd: list(cmd),
                env: vec!["A=image".into(), "B=image".into()],
                working_dir: "/w".into(),
            },
        }
    }

    #[test]
    fn command_and_args() {
        #[track_caller]
        fn check(entrypoint: &[&str], cmd: &[&str], container: Value, expected: &[&str]) {
            let mut container = container;
            container["name"] = json!("c");
            let container = serde_json::from_value(container).unwrap();
            let env = [("N".to_owned(), "5".to_owned())];
            assert_eq!(argv(&container, &image(entrypoint, cmd), &env), expected);
        }
        check(&["e"], &["c"], json!({}), &["e", "c"]);
        check(&["e"], &["c"], json!({"args": ["a"]}), &["e", "a"]);
        check(&["e"], &["c"], json!({"command": ["x"]}), &["x"]);
        check(&["e"], &["c"], json!({"command": ["x"], "args": ["a"]}), &["x", "a"]);
        check(&["e"], &[], json!({"args": ["$(N)", "$$(N)", "$(M)"]}), &["e", "5", "$(N)", "$(M)"]);
        check(&[], &[], json!({}), &["hello"]);
        check(&[], &["c"], json!({"args": ["a"]}), &["hello", "a"]);
        check(&[], &[], json!({"command": ["x"]}), &["x"]);
    }

    fn built(spec: Value, dir: &Path) -> Result<ContainerSpec, String> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let ip = "10.42.0.5".parse().unwrap();
        let attachment =
            Attachment { pod_ips: vec![ip], bind_ip: "127.42.0.5".parse().unwrap(), netns: None };
        build(Given {
            pod: &pod,
            container: &pod.spec.as_ref().unwrap().containers[0],
            id: RunId { pod_uid: "u".into(), container: "c".into(), attempt: 2 },
            image: image(&[], &[]),
            env: vec![("B".into(), "own".into())],
            attachment: &attachment,
            host_ip: "192.0.2.1".parse().unwrap(),
            dns: Dns::default(),
            cluster_domain: "cluster.local",
            places: &Places::new(dir, None, "u"),
        })
    }

    #[test]
    fn the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("pods/u/_volumes/data");
        std::fs::create_dir_all(&volume).unwrap();
        let spec = built(json!({
            "securityContext": {"runAsUser": 1000, "fsGroup": 7, "supplementalGroups": [8]},
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "cfg", "configMap": {"name": "m"}}],
            "containers": [{"name": "c", "image": "i", "securityContext": {"runAsGroup": 9},
                "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 81, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/d"}, {"name": "cfg", "mountPath": "/c"},
                    {"name": "data", "mountPath": "/s", "subPathExpr": "x-$(B)", "readOnly": true}]}]}), dir.path()).unwrap();
        assert_eq!(spec.tcp_ports, [80, 81]);
        assert_eq!(
            spec.resources,
            Resources {
                memory_limit_bytes: Some(64 << 20),
                cpu_limit_millis: Some(200),
                cpu_request_millis: 200
            }
        );
        assert_eq!(
            spec.user,
            User {
                uid: Some(1000),
                gid: Some(9),
                supplemental_gids: vec![8, 7],
                strict_groups: false
            }
        );
        assert_eq!(
            spec.env,
            [("A", "image"), ("B", "own"), ("HOSTNAME", "p")]
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
        assert_eq!(spec.working_dir, "/w");
        assert_eq!(spec.log_path, dir.path().join("pods/u/c/2.log"));
        let read_only: Vec<bool> = spec.mounts.iter().map(|m| m.read_only).collect();
        assert_eq!(read_only, [false, true, true]);
        std::fs::write(spec.mounts[2].host_path.join("file"), "").unwrap();
        assert!(volume.join("x-own/file").exists());
        Places::new(dir.path(), None, "u").release().unwrap();
    }

    #[test]
    fn refusals() {
        #[track_caller]
        fn check(spec: Value, expected: &str) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("pods/u/_volumes/d")).unwrap();
            assert_eq!(built(spec, dir.path()), Err(expected.into()));
        }
        check(
            json!({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            "cannot find volume \"v\" to mount into container \"c\"",
        );
        check(
            json!({"containers": [{"name": "c", "securityContext": {"runAsNonRoot": true, "runAsUser": 0}}]}),
            "container's runAsUser breaks non-root policy (container: c)",
        );
        check(
            json!({"volumes": [{"name": "d", "emptyDir": {}}], "containers": [{"name": "c", "volumeMounts": [{"name": "d", "mountPath": "/v", "subPathExpr": "$(NONE)"}]}]}),
            "failed to expand subPath for volumeMount \"/v\": missing value for NONE",
        );
    }
}
