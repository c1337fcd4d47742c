//! Pulls from a cluster's registry that is a map, and breaks off when it is told to.

use std::collections::HashMap;

use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::*;
use crate::ClusterResponse;
use crate::content::digest_of;

#[derive(Default)]
struct FakeRegistry {
    content: Mutex<HashMap<String, Bytes>>,
    /// After how many bytes the next answers of blobs break.
    breaks: Mutex<Vec<usize>>,
    /// From which byte on blobs were asked for.
    asked: Mutex<Vec<u64>>,
}

#[async_trait]
impl ClusterRegistry for FakeRegistry {
    async fn get(&self, path: &str, _: &str, from: u64) -> Result<ClusterResponse, String> {
        let Some(content) = self.content.lock().get(path).cloned() else {
            return Ok(ClusterResponse { status: 404, body: futures::stream::empty().boxed() });
        };
        let rest = content.slice(usize::try_from(from).unwrap()..);
        let status = if from > 0 { 206 } else { 200 };
        let mut chunks = vec![Ok(rest.clone())];
        if path.contains("/blobs/") {
            self.asked.lock().push(from);
            if let Some(at) = self.breaks.lock().pop() {
                chunks = vec![Ok(rest.slice(..at)), Err("the tunnel broke".to_owned())];
            }
        }
        Ok(ClusterResponse { status, body: futures::stream::iter(chunks).boxed() })
    }

    fn hosts(&self) -> Vec<String> {
        Vec::new()
    }
}

impl FakeRegistry {
    fn put(&self, kind: &str, name: &str, content: &[u8]) -> Value {
        let digest = digest_of(content);
        for version in [name, &digest] {
            let path = format!("/v2/app/{kind}/{version}");
            self.content.lock().insert(path, Bytes::copy_from_slice(content));
        }
        json!({"mediaType": "application/wasm", "digest": digest, "size": content.len()})
    }

    fn image(&self, tag: &str, layer: &Value) -> Value {
        let manifest = json!({"layers": [layer]}).to_string();
        self.put("manifests", tag, manifest.as_bytes())
    }

    fn index(&self, tag: &str, entries: &[Value]) -> Value {
        let index = json!({"manifests": entries}).to_string();
        self.put("manifests", tag, index.as_bytes())
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    registry: Arc<FakeRegistry>,
    store: ImageStore,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Arc::new(FakeRegistry::default());
        let config = Config { linux: false, ..Config::new(dir.path().to_owned()) };
        let store = ImageStore::open(config, registry.clone()).unwrap();
        Self { _dir: dir, registry, store }
    }

    async fn pull(&self, tag: &str) -> Result<Image, String> {
        let name = format!("app:{tag}");
        self.store.ensure(&name, PullPolicy::Always, &[]).await.map_err(|e| e.message)
    }

    #[track_caller]
    fn holds(pulled: Result<Image, String>, expected: &[u8]) {
        let Ok(Image { form: ImageForm::Wasm { file, .. }, .. }) = &pulled else {
            panic!("{pulled:?}")
        };
        assert_eq!(std::fs::read(file).unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn what_broke_is_gone_on_with_from_the_clusters_registry() {
    let b = Bench::new();
    let layer = b.registry.put("blobs", "", b"hello world");
    b.registry.image("v1", &layer);
    *b.registry.breaks.lock() = vec![3, 4];
    Bench::holds(b.pull("v1").await, b"hello world");
    assert_eq!(*b.registry.asked.lock(), [0, 4, 7]);
}

#[tokio::test]
async fn sizes_are_what_descriptors_say() {
    let b = Bench::new();
    for (tag, lie, part) in [("less", 3, "not 3 as"), ("more", 99, "not 99 as")] {
        let mut layer = b.registry.put("blobs", "", b"hello world");
        layer["size"] = json!(lie);
        b.registry.image(tag, &layer);
        let error = b.pull(tag).await.unwrap_err();
        assert!(error.contains(part) && error.contains("its descriptor says"), "{error}");
    }
    // Of the image that an index leads to as well.
    let layer = b.registry.put("blobs", "", b"hello world");
    let mut entry = b.registry.image("inner", &layer);
    entry["size"] = json!(5);
    b.registry.index("v1", &[entry]);
    let error = b.pull("v1").await.unwrap_err();
    assert!(error.contains("its descriptor says"), "{error}");
    // What came once counts for who says right.
    b.registry.image("good", &layer);
    Bench::holds(b.pull("good").await, b"hello world");
    let mut layer = layer;
    layer["size"] = json!(3);
    b.registry.image("late", &layer);
    assert!(b.pull("late").await.unwrap_err().contains("not 3 as"));
}

#[tokio::test]
async fn indexes_within_indexes() {
    let b = Bench::new();
    let layer = b.registry.put("blobs", "", b"hello world");
    let mut entry = b.registry.image("inner", &layer);
    for level in 1..=20 {
        entry = b.registry.index(&format!("level{level}"), &[entry]);
    }
    Bench::holds(b.pull("level3").await, b"hello world");
    let error = b.pull("level20").await.unwrap_err();
    assert!(error.contains("more than 16 manifests"), "{error}");
    // One that leads to a name may lead to itself.
    b.registry.index("cyclic", &[json!({"digest": "cyclic"})]);
    let error = b.pull("cyclic").await.unwrap_err();
    assert!(error.contains("is not sha256"), "{error}");
    let other =
        json!({"digest": digest_of(b""), "platform": {"os": "linux", "architecture": "other"}});
    b.registry.index("others", &[other]);
    let error = b.pull("others").await.unwrap_err();
    assert!(error.contains("no match for platform in the image index"), "{error}");
}
