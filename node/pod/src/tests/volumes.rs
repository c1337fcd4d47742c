//! Volumes in the life of a pod.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test(start_paused = true)]
async fn files_are_there_and_stay_fresh() {
    let b = Bench::new().await;
    b.world.objects.put_config_map("default", "cfg", &[("a", "1")]);
    let mut p = pod(json!({"volumes": [{"name": "cfg", "configMap": {"name": "cfg"}},
            {"name": "me", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "scratch", "emptyDir": {}}],
        "containers": [{"name": "c", "image": "i:1", "volumeMounts": [{"name": "cfg", "mountPath": "/cfg"}, {"name": "scratch", "mountPath": "/s"}]}]}));
    p["metadata"]["labels"] = json!({"x": "1"});
    b.set(&p);
    b.until_ready().await;
    assert_eq!(b.read("_volumes/cfg/a").as_deref(), Some("1"));
    assert_eq!(b.read("_volumes/me/labels").as_deref(), Some("x=\"1\""));
    let mounts = b.world.runtime.spec(&run("c", 0)).unwrap().mounts;
    assert_eq!(mounts[0].host_path, b.pod_dir().join("_volumes/cfg"));
    assert_eq!((mounts[0].read_only, mounts[1].read_only), (true, false));
    b.world.objects.put_config_map("default", "cfg", &[("a", "2"), ("b", "3")]);
    b.until_true("the file follows", || b.read("_volumes/cfg/a").as_deref() == Some("2")).await;
    assert_eq!(b.read("_volumes/cfg/b").as_deref(), Some("3"));
    p["metadata"]["labels"] = json!({"x": "2"});
    b.set(&p);
    b.until_true("labels follow", || b.read("_volumes/me/labels").as_deref() == Some("x=\"2\""))
        .await;
    // What is deleted under a running pod does not hurt it.
    b.world.objects.remove_config_map("default", "cfg");
    b.until_event("FailedMount").await;
    assert_eq!(b.read("_volumes/cfg/a").as_deref(), Some("2"));
    assert!(is_true(&b.world.reports.status("u").unwrap(), "Ready"));
    // The next agent notices what changed meanwhile.
    b.shutdown.cancel();
    b.world.objects.put_config_map("default", "cfg", &[("a", "4")]);
    let b = b.restart_agent().await;
    b.set(&p);
    b.world.objects.put_config_map("default", "unrelated", &[]);
    b.until_true("caught up", || b.read("_volumes/cfg/a").as_deref() == Some("4")).await;
    assert_eq!(b.world.runtime.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_is_waited_for() {
    let b = Bench::new().await;
    b.set(&pod(json!({"volumes": [{"name": "keys", "secret": {"secretName": "s"}}]})));
    let status = b.until_waiting("ContainerCreating").await;
    let message = "MountVolume.SetUp failed for volume \"keys\" : secret \"s\" not found";
    assert_eq!((waiting(&status).1, b.message("FailedMount").as_str()), (message, message));
    b.world.objects.put_secret("default", "s", &[("k", "v")]);
    b.until_ready().await;
    assert_eq!(b.read("_volumes/keys/k").as_deref(), Some("v"));
    assert!(b.seconds() < 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_supported_says_so() {
    let b = Bench::new().await;
    b.set(&pod(json!({"volumes": [{"name": "v", "csi": {"driver": "d"}}]})));
    let status = b.until_waiting("ContainerCreating").await;
    assert_eq!(
        waiting(&status).1,
        "MountVolume.SetUp failed for volume \"v\" : this node does not support volumes of type csi"
    );
    b.set(&deleted(pod(json!({"volumes": [{"name": "v", "csi": {"driver": "d"}}]})), 30));
    b.until_terminated().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_rotate() {
    let b = Bench::new().await;
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    let p = pod(json!({"volumes": [{"name": "api", "projected": {"sources": [token]}}]}));
    b.set(&p);
    b.until_ready().await;
    assert_eq!(b.read("_volumes/api/token").as_deref(), Some("token-1"));
    // Looking again for another reason takes no new token.
    let mut labelled = p.clone();
    labelled["metadata"]["labels"] = json!({"x": "1"});
    b.set(&labelled);
    tokio::time::sleep(Duration::from_secs(2870)).await;
    assert_eq!(b.world.objects.tokens(), 1);
    let b = b.restart_agent().await;
    b.set(&p);
    b.until_true("80 % are over", || b.read("_volumes/api/token").as_deref() == Some("token-2"))
        .await;
    assert!((2880..=2882).contains(&b.seconds()), "{}", b.seconds());
    assert_eq!(b.world.objects.tokens(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_gone_keeps_no_other_from_being_fresh() {
    let b = Bench::new().await;
    b.world.objects.put_config_map("default", "gone", &[("a", "1")]);
    b.world.objects.put_config_map("default", "live", &[("a", "1")]);
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    b.set(&pod(json!({"volumes": [{"name": "gone", "configMap": {"name": "gone"}},
        {"name": "live", "configMap": {"name": "live"}}, {"name": "scratch", "emptyDir": {}},
        {"name": "api", "projected": {"sources": [token]}}]})));
    b.until_ready().await;
    // A container's own by now.
    let scratch = b.pod_dir().join("_volumes/scratch");
    std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o700)).unwrap();
    b.world.objects.remove_config_map("default", "gone");
    b.until_event("FailedMount").await;
    b.world.objects.put_config_map("default", "live", &[("a", "2")]);
    b.until_true("the other follows", || b.read("_volumes/live/a").as_deref() == Some("2")).await;
    assert_eq!(b.read("_volumes/gone/a").as_deref(), Some("1"));
    tokio::time::sleep(Duration::from_secs(2870)).await;
    b.until_true("80 % are over", || b.read("_volumes/api/token").as_deref() == Some("token-2"))
        .await;
    assert!((2880..=2900).contains(&b.seconds()), "{}", b.seconds());
    assert_eq!(b.world.objects.tokens(), 2);
    assert_eq!(scratch.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test(start_paused = true)]
async fn pods_share_nothing_they_should_not() {
    let b = Bench::new().await;
    let with = |uid: &str| {
        let mut p = pod(json!({"volumes": [{"name": "scratch", "emptyDir": {}}]}));
        p["metadata"]["uid"] = json!(uid);
        read_pod(&p)
    };
    for uid in ["u", "w"] {
        b.pods.set(Arc::new(with(uid)));
    }
    b.until_true("both run", || b.world.runtime.running().len() == 2).await;
    let dir = |uid: &str| b.dir.path().join("pods").join(uid);
    std::fs::write(dir("u").join("_volumes/scratch/x"), "x").unwrap();
    assert!(!dir("w").join("_volumes/scratch/x").exists());
    b.pods.remove("w");
    b.until_true("one goes", || !dir("w").exists()).await;
    assert!(dir("u").join("_volumes/scratch/x").exists());
    assert_eq!(b.pods.status("u").unwrap().phase.as_deref(), Some("Running"));
    assert!(b.pods.status("w").is_none());
}

#[tokio::test(start_paused = true)]
async fn secrets_lie_in_memory_where_there_is_some() {
    let world = World::new(Timestamp::from_second(1_800_000_000).unwrap());
    let (dir, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = world.config(dir.path());
    config.memory_dir = Some(memory.path().join("pods"));
    let shutdown = CancellationToken::new();
    let pods = Pods::start(config, shutdown.clone()).await.unwrap();
    let b = Bench { world, pods, dir, shutdown };
    b.world.objects.put_secret("default", "s", &[("k", "v")]);
    b.set(&pod(json!({"volumes": [{"name": "keys", "secret": {"secretName": "s"}}, {"name": "d", "emptyDir": {}}],
        "containers": [{"name": "c", "image": "i:1", "volumeMounts": [
            {"name": "keys", "mountPath": "/k"}, {"name": "keys", "mountPath": "/one", "subPath": "k"}]}]})));
    b.until_ready().await;
    let mounts = b.world.runtime.spec(&run("c", 0)).unwrap().mounts;
    assert_eq!(mounts[0].host_path, memory.path().join("pods/u/_volumes/keys"));
    assert_eq!(std::fs::read_to_string(mounts[0].host_path.join("k")).unwrap(), "v");
    assert!(mounts[1].host_path.starts_with(memory.path()), "{:?}", mounts[1].host_path);
    assert_eq!(std::fs::read_to_string(&mounts[1].host_path).unwrap(), "v");
    assert!(b.read("_volumes/keys/k").is_none());
    b.pods.remove("u");
    b.until_true("both places are cleared", || {
        !b.pod_dir().exists() && !memory.path().join("pods/u").exists()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_waited_for_and_leads_to_its_volume() {
    let b = Bench::new().await;
    let keeps = b.dir.path().join("volumes/pvc-1");
    let p = pod(json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}],
        "securityContext": {"fsGroup": 7},
        "containers": [{"name": "c", "image": "i:1", "volumeMounts": [{"name": "data", "mountPath": "/d"},
            {"name": "data", "mountPath": "/s", "subPath": "a/b"}]}]}));
    b.set(&p);
    b.until_waiting("ContainerCreating").await;
    let processing = "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: error processing PVC default/c: ";
    let missing = "failed to fetch PVC from API server: persistentvolumeclaim \"c\" not found";
    assert_eq!(b.message("FailedMount"), format!("{processing}{missing}"));
    b.world.objects.put_volume(
        "pvc-1",
        "c",
        json!({"local": {"path": &keeps}}),
        "rimward.dev/local-path",
    );
    b.world.objects.put_claim("default", "c", Some("pvc-1"));
    b.until_ready().await;
    let mounts = b.world.runtime.spec(&run("c", 0)).unwrap().mounts;
    assert_eq!(mounts[0].host_path, keeps.canonicalize().unwrap());
    std::fs::write(mounts[1].host_path.join("new"), "in the part").unwrap();
    assert_eq!(std::fs::read_to_string(keeps.join("a/b/new")).unwrap(), "in the part");
    std::fs::write(keeps.join("file"), "kept").unwrap();
    b.pods.remove("u");
    b.until_true("the pod's directory goes", || !b.pod_dir().exists()).await;
    assert_eq!(std::fs::read_to_string(keeps.join("file")).unwrap(), "kept");
    assert!(keeps.join("a/b/new").exists(), "what was held is let go of, not removed");
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_volume_is_not_there_says_so() {
    let b = Bench::new().await;
    let claim = |name: &str| {
        pod(json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]}))
    };
    b.world.objects.put_volume("pv-1", "c", json!({"local": {"path": "/nowhere/at/all"}}), "");
    b.world.objects.put_claim("default", "c", Some("pv-1"));
    b.set(&claim("c"));
    b.until_waiting("ContainerCreating").await;
    assert_eq!(
        b.message("FailedMount"),
        "MountVolume.SetUp failed for volume \"pv-1\" : path \"/nowhere/at/all\" does not exist"
    );
}
