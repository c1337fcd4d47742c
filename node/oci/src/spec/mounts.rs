//! What a container sees besides its root file system, in the order in which it is mounted.

use std::path::Path;

use rimward_node_pod::runtime::ContainerSpec;
use serde_json::{Value, json};

use super::Given;

pub(super) fn of(spec: &ContainerSpec, given: &Given<'_>) -> Result<Vec<Value>, String> {
    let linux = &spec.linux;
    let kernel = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let rights = if linux.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        kernel("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        kernel("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        kernel(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        kernel("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", rights]),
    ];
    let cgroups = "/sys/fs/cgroup";
    mounts.push(match given.cgroup_dirs.is_empty() {
        true => kernel(cgroups, "cgroup", &["nosuid", "noexec", "nodev", "relatime", rights]),
        false => kernel(cgroups, "tmpfs", &["nosuid", "noexec", "nodev", "mode=755"]),
    });
    let bind = |source: &Path, destination: &str, read_only: bool| {
        let right = if read_only { "ro" } else { "rw" };
        json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", right]})
    };
    for (dir, name) in &given.cgroup_dirs {
        mounts.push(bind(dir, &format!("{cgroups}/{name}"), !linux.privileged));
    }
    // A volume in the place of a file of ours prevails.
    let ours = [
        (given.shm.to_owned(), "/dev/shm", false),
        (given.dir.file("etc/hosts"), "/etc/hosts", linux.read_only_root),
        (given.dir.file("etc/hostname"), "/etc/hostname", linux.read_only_root),
        (given.dir.file("etc/resolv.conf"), "/etc/resolv.conf", linux.read_only_root),
        (given.dir.termination(), linux.termination_message_path.as_str(), false),
    ];
    let taken = |place: &str| spec.mounts.iter().any(|m| clean(&m.container_path) == clean(place));
    for (source, destination, read_only) in ours {
        if destination.starts_with('/') && !taken(destination) {
            mounts.push(bind(&source, destination, read_only));
        }
    }
    // What is mounted in another volume comes after it.
    let mut volumes: Vec<_> = spec.mounts.iter().collect();
    volumes.sort_by_key(|mount| clean(&mount.container_path).matches('/').count());
    for mount in volumes {
        let place = &mount.container_path;
        if !place.starts_with('/') || place.split('/').any(|part| part == "..") {
            return Err(format!("volume mount path {place:?} must be absolute and without '..'"));
        }
        mounts.push(bind(&mount.host_path, place, mount.read_only));
    }
    Ok(mounts)
}

fn clean(path: &str) -> &str {
    path.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use rimward_node_pod::runtime::Mount;
    use serde_json::Value;

    use crate::spec::tests::{built, container};

    fn mount(host: &str, place: &str, read_only: bool) -> Mount {
        Mount { host_path: host.into(), container_path: place.into(), read_only }
    }

    #[test]
    fn volumes_come_last_and_outer_ones_first() {
        let mut spec = container();
        spec.linux.termination_message_path = "/dev/termination-log".into();
        spec.mounts = vec![
            mount("/v/inner", "/data/inner", true),
            mount("/v/outer", "/data", false),
            mount("/v/hosts", "/etc/hosts", false),
        ];
        let config = built(&spec).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        let places: Vec<_> = mounts.iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(places[..2], ["/proc", "/dev"]);
        assert_eq!(
            places[6..],
            [
                "/dev/shm",
                "/etc/hostname",
                "/etc/resolv.conf",
                "/dev/termination-log",
                "/data",
                "/data/inner",
                "/etc/hosts"
            ]
        );
        let right = |m: &Value| m["options"][2].as_str().unwrap().to_owned();
        assert_eq!(mounts[10..].iter().map(right).collect::<Vec<_>>(), ["rw", "ro", "rw"]);
        spec.mounts = vec![mount("/v", "/a/../../b", false)];
        assert!(built(&spec).unwrap_err().contains("/a/../../b"));
    }
}
