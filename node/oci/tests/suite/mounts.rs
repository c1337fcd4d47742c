//! Volumes in which mounts come and go.

use std::path::{Path, PathBuf};

use rimward_node_pod::runtime::{ContainerSpec, Mount, MountFlags, Propagation, Runtime};
use rustix::mount::{MountFlags as Flags, MountPropagationFlags, UnmountFlags};

use crate::node::{Node, until};

/// A volume on a shared mount of its own, gone with the test.
struct Volume(PathBuf);

impl Volume {
    fn new(node: &Node) -> Self {
        let dir = node.dir.join("volume");
        std::fs::create_dir(&dir).unwrap();
        tmpfs(&dir);
        rustix::mount::mount_change(&dir, MountPropagationFlags::SHARED).unwrap();
        std::fs::create_dir(dir.join("sub")).unwrap();
        Self(dir)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _gone_already = rustix::mount::unmount(self.0.join("sub"), UnmountFlags::DETACH);
        let _gone_already = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn tmpfs(dir: &Path) {
    rustix::mount::mount("tmpfs", dir, "tmpfs", Flags::empty(), c"size=64k").unwrap();
}

fn with(
    mut spec: ContainerSpec,
    volume: &Volume,
    read_only: bool,
    flags: MountFlags,
) -> ContainerSpec {
    let host_path = volume.0.clone();
    spec.mounts = vec![Mount { host_path, container_path: "/v".into(), read_only }];
    spec.linux.mount_flags.insert("/v".into(), flags);
    spec
}

#[tokio::test]
async fn what_is_mounted_later_comes_through_where_it_is_asked_for() {
    let mut node = Node::new().await;
    let volume = Volume::new(&node);
    let script = "echo ready; until [ -e /v/go ]; do sleep 0.05; done; ls /v/sub";
    let flags = |propagation| MountFlags { propagation, recursive_read_only: false };
    let alone = with(node.spec(script), &volume, false, flags(Propagation::None));
    let slave = with(node.spec(script), &volume, false, flags(Propagation::HostToContainer));
    for spec in [&alone, &slave] {
        node.runtime.start(spec.clone()).await.unwrap();
        node.until_logged(spec, "ready").await;
    }
    tmpfs(&volume.0.join("sub"));
    std::fs::write(volume.0.join("sub/file"), "").unwrap();
    std::fs::write(volume.0.join("go"), "").unwrap();
    for spec in [&alone, &slave] {
        assert_eq!(node.exit(&spec.id).await.code, 0);
    }
    assert_eq!(crate::node::log(&alone), ["stdout F ready"]);
    assert_eq!(crate::node::log(&slave), ["stdout F ready", "stdout F file"]);

    let script =
        "mkdir /v/own && mount -t tmpfs own /v/own && touch /v/own/file && echo mounted; sleep 60";
    let mut both = with(node.spec(script), &volume, false, flags(Propagation::Bidirectional));
    both.linux.privileged = true;
    node.runtime.start(both.clone()).await.unwrap();
    node.until_logged(&both, "mounted").await;
    until("the machine sees it", async || volume.0.join("own/file").exists()).await;
    node.runtime.stop(&both.id, std::time::Duration::ZERO).await;
    node.exit(&both.id).await;
    rustix::mount::unmount(volume.0.join("own"), UnmountFlags::DETACH).unwrap();

    let mut private =
        with(node.spec("exit 0"), &volume, false, flags(Propagation::HostToContainer));
    private.mounts[0].host_path = node.dir.join("layer");
    rustix::mount::mount_bind(node.dir.join("layer"), node.dir.join("layer")).unwrap();
    rustix::mount::mount_change(node.dir.join("layer"), MountPropagationFlags::PRIVATE).unwrap();
    let error = node.runtime.start(private).await.unwrap_err();
    rustix::mount::unmount(node.dir.join("layer"), UnmountFlags::DETACH).unwrap();
    assert_eq!(error.reason, "CreateContainerError");
    assert!(error.message.contains("it is not a shared or slave mount"), "{error}");
    drop(volume);
    node.end().await;
}

#[tokio::test]
async fn read_only_is_all_that_is_below_where_it_is_asked_for() {
    let mut node = Node::new().await;
    let volume = Volume::new(&node);
    tmpfs(&volume.0.join("sub"));
    let script = "for f in /v/file /v/sub/file; do (echo x > $f) 2>/dev/null && echo written || echo refused; done";
    for (recursive_read_only, below) in [(false, "written"), (true, "refused")] {
        let flags = MountFlags { recursive_read_only, ..MountFlags::default() };
        let spec = with(node.spec(script), &volume, true, flags);
        assert_eq!(node.output(&spec).await, ["refused", below]);
    }
    drop(volume);
    node.end().await;
}
