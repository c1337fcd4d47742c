//! What a container sees besides its root file system, in the order in which it is mounted.

use std::path::Path;

use rimward_node_pod::runtime::{ContainerSpec, Mount, MountFlags, Propagation};
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
        let mut options = vec!["rbind", "rprivate", if read_only { "ro" } else { "rw" }];
        if read_only {
            options.extend((given.flags_at)(source));
        }
        json!({"destination": destination, "type": "bind", "source": source, "options": options})
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
        let mut bound = bind(&mount.host_path, place, mount.read_only);
        if let Some(flags) = linux.mount_flags.get(place) {
            change(&mut bound["options"], mount.read_only, *flags);
        }
        mounts.push(bound);
    }
    Ok(mounts)
}

fn change(options: &mut Value, read_only: bool, flags: MountFlags) {
    options[1] = json!(match flags.propagation {
        Propagation::None => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    });
    if let (Some(options), true, true) =
        (options.as_array_mut(), read_only, flags.recursive_read_only)
    {
        options.push(json!("rro"));
    }
}

/// Volumes that mounts of the machine are not to come through.
pub(crate) fn private(spec: &ContainerSpec) -> Vec<String> {
    let flags = |mount: &&Mount| spec.linux.mount_flags.get(&mount.container_path);
    let none = |mount: &&Mount| flags(mount).is_none_or(|f| f.propagation == Propagation::None);
    spec.mounts.iter().filter(none).map(|mount| mount.container_path.clone()).collect()
}

/// Whether mounts of the machine come through as a volume wants it: by the mount that it is on.
///
/// # Errors
/// In the words that other runtimes have for it.
pub(crate) fn check_propagation(spec: &ContainerSpec, mountinfo: &str) -> Result<(), String> {
    for mount in &spec.mounts {
        let flags = spec.linux.mount_flags.get(&mount.container_path);
        let wanted = flags.map_or(Propagation::None, |flags| flags.propagation);
        if wanted == Propagation::None {
            continue;
        }
        let (at, optional) = mounted_on(mountinfo, &mount.host_path);
        let shared = optional.contains("shared:");
        let (comes_through, kind) = match wanted {
            Propagation::Bidirectional => (shared, "a shared"),
            _ => (shared || optional.contains("master:"), "a shared or slave"),
        };
        if !comes_through {
            let path = mount.host_path.display();
            return Err(format!("path {path:?} is mounted on {at:?} but it is not {kind} mount"));
        }
    }
    Ok(())
}

/// The mount that a path is on, and its optional fields.
fn mounted_on<'a>(mountinfo: &'a str, path: &Path) -> (&'a str, &'a str) {
    let mut best = ("", "");
    for line in mountinfo.lines() {
        // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS OPTIONAL… - …
        let front = line.split_once(" - ").map_or(line, |(front, _)| front);
        let Some(at) = front.split(' ').nth(4) else { continue };
        // Later mounts lie over earlier ones.
        if path.starts_with(at) && at.len() >= best.0.len() {
            let optional = front.splitn(7, ' ').nth(6).unwrap_or_default();
            best = (at, optional);
        }
    }
    best
}

fn clean(path: &str) -> &str {
    path.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use rimward_node_pod::runtime::{Mount, MountFlags, Propagation};
    use serde_json::Value;

    use crate::spec::tests::{built, container};

    fn mount(host: &str, place: &str, read_only: bool) -> Mount {
        Mount { host_path: host.into(), container_path: place.into(), read_only }
    }

    #[test]
    fn mounts_come_through_where_they_can() {
        let info = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:1 / /shared rw shared:7 - ext4 /dev/a rw\n\
            3 1 8:1 / /slave rw master:7 - ext4 /dev/a rw\n";
        let check = |path: &str, propagation| {
            let mut spec = container();
            spec.mounts = vec![mount(path, "/v", false)];
            let flags = MountFlags { propagation, recursive_read_only: false };
            spec.linux.mount_flags.insert("/v".into(), flags);
            super::check_propagation(&spec, info)
        };
        let (slave, both) = (Propagation::HostToContainer, Propagation::Bidirectional);
        assert_eq!(check("/shared/a", both), Ok(()));
        assert_eq!(check("/slave/a", slave), Ok(()));
        assert_eq!(check("/sharedlike", Propagation::None), Ok(()));
        let why = "path \"/slave/a\" is mounted on \"/slave\" but it is not a shared mount";
        assert_eq!(check("/slave/a", both), Err(why.into()));
        let why = "path \"/sharedlike\" is mounted on \"/\" but it is not a shared or slave mount";
        assert_eq!(check("/sharedlike", slave), Err(why.into()));
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
        spec.mounts = vec![mount("/careful/v", "/v", true), mount("/careful/w", "/w", false)];
        let flags =
            MountFlags { propagation: Propagation::HostToContainer, recursive_read_only: true };
        spec.linux.mount_flags.insert("/v".into(), flags);
        let config = built(&spec).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        let options: Vec<_> = mounts.iter().rev().take(2).map(|m| m["options"].clone()).collect();
        let [read_only, writable] = [
            serde_json::json!(["rbind", "rslave", "ro", "nodev", "rro"]),
            serde_json::json!(["rbind", "rprivate", "rw"]),
        ];
        assert_eq!(options, [writable, read_only]);
        spec.mounts = vec![mount("/v", "/a/../../b", false)];
        assert!(built(&spec).unwrap_err().contains("/a/../../b"));
    }
}
