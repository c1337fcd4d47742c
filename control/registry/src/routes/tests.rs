//! Requests in, responses out, as the distribution specification says.

use super::*;
use crate::Config;

struct Client {
    registry: Registry,
    _dir: tempfile::TempDir,
}

impl Client {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let registry = Registry::open(Config::new(dir.path().to_owned())).expect("opens");
        Self { registry, _dir: dir }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, http::HeaderMap, Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::copy_from_slice(body));
        let response = self.registry.handle(request.body(body).unwrap()).await;
        let (parts, body) = response.into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn push_blob(&self, name: &str, content: &[u8]) -> String {
        let digest = Digest::of(content).to_string();
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send("POST", &path, &[], content).await.0, 201);
        digest
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn push_and_pull() {
    let client = Client::new();
    let layer = client.push_blob("a/b", b"layer").await;
    let config = client.push_blob("a/b", b"{}").await;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "x", "digest": config, "size": 2 },
        "layers": [{ "mediaType": "y", "digest": layer, "size": 5 }],
    })
    .to_string();
    let put = client
        .send("PUT", "/v2/a/b/manifests/v1", &[("content-type", MANIFEST)], manifest.as_bytes())
        .await;
    assert_eq!(put.0, 201);
    let (code, headers, body) = client.send("GET", "/v2/a/b/manifests/v1", &[], b"").await;
    assert_eq!((code, &body[..]), (200, manifest.as_bytes()));
    assert_eq!(headers["content-type"], MANIFEST);
    let path = format!("/v2/a/b/blobs/{layer}");
    assert_eq!(&client.send("GET", &path, &[], b"").await.2[..], b"layer");
    let part = client.send("GET", &path, &[("range", "bytes=1-2")], b"").await;
    assert_eq!((part.0, &part.2[..]), (206, &b"ay"[..]));
    let elsewhere = format!("/v2/c/blobs/{layer}");
    assert_eq!(client.send("GET", &elsewhere, &[], b"").await.0, 404, "not linked there");
    let mount = format!("/v2/c/blobs/uploads/?mount={layer}&from=a/b");
    assert_eq!(client.send("POST", &mount, &[], b"").await.0, 201);
    let tags = client.send("GET", "/v2/a/b/tags/list", &[], b"").await.2;
    assert_eq!(&tags[..], br#"{"name":"a/b","tags":["v1"]}"#);
    let all = client.send("GET", "/v2/_catalog?n=1", &[], b"").await;
    assert_eq!(&all.2[..], br#"{"repositories":["a/b"]}"#);
    assert_eq!(all.1["link"], "</v2/_catalog?n=1&last=a/b>; rel=\"next\"");
    assert_eq!(client.send("DELETE", "/v2/a/b/manifests/v1", &[], b"").await.0, 202);
    assert_eq!(client.send("GET", "/v2/a/b/manifests/v1", &[], b"").await.0, 404);
}

#[tokio::test]
async fn chunks_in_order_and_the_right_digest() {
    let client = Client::new();
    let (code, headers, _) = client.send("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    assert_eq!(code, 202);
    let at = headers["location"].to_str().unwrap().to_owned();
    let chunk = |range: &'static str| [("content-range", range)];
    assert_eq!(client.send("PATCH", &at, &chunk("0-2"), b"abc").await.0, 202);
    assert_eq!(client.send("PATCH", &at, &chunk("9-10"), b"xx").await.0, 416);
    assert_eq!(client.send("GET", &at, &[], b"").await.1["range"], "0-2");
    let wrong = format!("{at}?digest={}", Digest::of(b"other"));
    let (code, _, body) = client.send("PUT", &wrong, &[], b"d").await;
    assert_eq!(code, 400);
    assert!(String::from_utf8_lossy(&body).contains("DIGEST_INVALID"));
    assert_eq!(client.send("GET", &at, &[], b"").await.0, 404, "a failed upload is over");
}

#[tokio::test]
async fn refusals() {
    let client = Client::new();
    let missing = serde_json::json!({
        "schemaVersion": 2,
        "config": { "mediaType": "x", "digest": Digest::of(b"none").to_string(), "size": 4 },
    })
    .to_string();
    for (method, path, body, expected) in [
        ("PUT", "/v2/a/manifests/v1", missing.as_bytes(), "MANIFEST_BLOB_UNKNOWN"),
        ("PUT", "/v2/a/manifests/v1", &b"{"[..], "MANIFEST_INVALID"),
        ("PUT", "/v2/A/manifests/v1", b"", "NAME_INVALID"),
        ("GET", "/v2/a/tags/list", b"", "NAME_UNKNOWN"),
        ("GET", "/v2/a/blobs/md5:1", b"", "DIGEST_INVALID"),
        ("POST", "/v2/", b"", "UNSUPPORTED"),
    ] {
        let answer = client.send(method, path, &[("content-type", MANIFEST)], body).await;
        let text = String::from_utf8_lossy(&answer.2).into_owned();
        assert!(text.contains(expected), "{method} {path}: {text}");
    }
}

impl Client {
    /// An image manifest over the config `{}`, pushed before; answers its digest.
    async fn push_image(&self, name: &str, reference: &str, more: serde_json::Value) -> String {
        let config = self.push_blob(name, b"{}").await;
        let mut manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": "application/x.config", "digest": config, "size": 2 }, "layers": [],
        });
        for (key, value) in more.as_object().expect("an object") {
            manifest[key] = value.clone();
        }
        let path = format!("/v2/{name}/manifests/{reference}");
        let headers = [("content-type", MANIFEST)];
        let (code, headers, body) =
            self.send("PUT", &path, &headers, manifest.to_string().as_bytes()).await;
        assert_eq!(code, 201, "{body:?}");
        headers["docker-content-digest"].to_str().unwrap().to_owned()
    }

    async fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_slice(&self.send("GET", path, &[], b"").await.2).expect("JSON")
    }
}

#[tokio::test]
async fn referrers_come_and_go_with_their_manifests() {
    let client = Client::new();
    let image = client.push_image("a", "v1", serde_json::json!({})).await;
    let subject = serde_json::json!({ "mediaType": MANIFEST, "digest": image, "size": 1 });
    let signature = serde_json::json!({
        "subject": subject, "artifactType": "application/x.signature", "annotations": { "by": "me" },
    });
    let signature = client.push_image("a", "signature", signature).await;
    let bill = client.push_image("a", "bill", serde_json::json!({ "subject": subject })).await;
    let at = format!("/v2/a/referrers/{image}");
    let types = |index: serde_json::Value| -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let list = index["manifests"].as_array().unwrap().clone();
        let mut found: Vec<_> =
            list.iter().map(|d| (text(&d["artifactType"]), text(&d["digest"]))).collect();
        found.sort();
        found
    };
    let (signed, billed) = (
        ("application/x.signature".to_owned(), signature.clone()),
        ("application/x.config".to_owned(), bill),
    );
    assert_eq!(types(client.json(&at).await), [billed.clone(), signed.clone()]);
    let filtered =
        client.send("GET", &format!("{at}?artifactType=application/x.signature"), &[], b"").await;
    assert_eq!(filtered.1["oci-filters-applied"], "artifactType");
    assert_eq!(types(serde_json::from_slice(&filtered.2).unwrap()), [signed]);
    let gone = format!("/v2/a/manifests/{signature}");
    assert_eq!(client.send("DELETE", &gone, &[], b"").await.0, 202);
    assert_eq!(types(client.json(&at).await), [billed]);
    let nobody = format!("/v2/a/referrers/{}", Digest::of(b"nobody"));
    assert_eq!(client.json(&nobody).await["manifests"], serde_json::json!([]));
}

#[tokio::test]
async fn content_goes_with_its_last_link() {
    let client = Client::new();
    let blob = client.push_blob("a", b"shared").await;
    let mount = format!("/v2/b/blobs/uploads/?mount={blob}&from=a");
    assert_eq!(client.send("POST", &mount, &[], b"").await.0, 201);
    let file = client.registry.inner.storage.blob_path(&Digest::parse(&blob).unwrap());
    for (name, expected) in [("a", true), ("b", false)] {
        let path = format!("/v2/{name}/blobs/{blob}");
        assert_eq!(client.send("DELETE", &path, &[], b"").await.0, 202);
        assert_eq!(client.send("HEAD", &path, &[], b"").await.0, 404);
        assert_eq!(file.exists(), expected, "after {name}");
    }
}

#[tokio::test]
async fn mounts_that_are_not_there_become_uploads() {
    let client = Client::new();
    let digest = Digest::of(b"nowhere");
    let (code, headers, _) =
        client.send("POST", &format!("/v2/a/blobs/uploads/?mount={digest}&from=b"), &[], b"").await;
    assert_eq!(code, 202);
    assert!(headers["location"].to_str().unwrap().starts_with("/v2/a/blobs/uploads/"));
    let outside = format!("/v2/a/blobs/uploads/?mount={digest}&from=../../etc");
    assert_eq!(client.send("POST", &outside, &[], b"").await.0, 400);
}

#[tokio::test]
async fn a_session_belongs_to_its_repository() {
    let client = Client::new();
    let (_, headers, _) = client.send("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    let at = headers["location"].to_str().unwrap().to_owned();
    let elsewhere = at.replace("/v2/a/", "/v2/b/");
    assert_eq!(client.send("PATCH", &elsewhere, &[], b"x").await.0, 404);
    let put = format!("{at}?digest={}", Digest::of(b"xyz"));
    assert_eq!(client.send("PATCH", &at, &[], b"xy").await.0, 202);
    assert_eq!(client.send("PUT", &put, &[], b"z").await.0, 201);
}

#[tokio::test]
async fn tags_by_pages() {
    let client = Client::new();
    for tag in ["c", "a", "b"] {
        client.push_image("app", tag, serde_json::json!({})).await;
    }
    let (mut next, mut seen) = (Some("/v2/app/tags/list?n=2".to_owned()), Vec::new());
    while let Some(path) = next {
        let (_, headers, body) = client.send("GET", &path, &[], b"").await;
        let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
        seen.push(page["tags"].clone());
        next = headers.get("link").map(|link| {
            let link = link.to_str().unwrap();
            link[1..link.find('>').unwrap()].to_owned()
        });
    }
    assert_eq!(seen, [serde_json::json!(["a", "b"]), serde_json::json!(["c"])]);
    assert_eq!(client.json("/v2/app/tags/list?n=0").await["tags"], serde_json::json!([]));
}

#[test]
fn what_a_request_needs_a_right_for() {
    #[track_caller]
    fn check(uri: &str, expected: Option<crate::Scope>) {
        assert_eq!(crate::Scope::of(&uri.parse().unwrap()), expected, "{uri}");
    }
    let repository = |name: &str, from: Option<&str>| {
        Some(crate::Scope::Repository { name: name.into(), mount_from: from.map(Into::into) })
    };
    let digest = Digest::of(b"x");
    check("/v2/", Some(crate::Scope::Base));
    check("/v2/_catalog?n=5", Some(crate::Scope::Catalog));
    check("/v2/a/b/tags/list", repository("a/b", None));
    // The name is what the registry itself takes for it, however it reads.
    check(&format!("/v2/a/manifests/x/blobs/{digest}"), repository("a/manifests/x", None));
    check(&format!("/v2/a/blobs/uploads/?mount={digest}&from=b%2Fc"), repository("a", Some("b/c")));
    check("/v2/A/tags/list", None);
    check("/v3/", None);
}
