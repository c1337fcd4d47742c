//! Reading from an image what it is: a Wasm artifact, a "compat" image with Wasm inside, or a Linux
//! root file system.
//!
//! Sources: the CNCF Wasm OCI artifact layout
//! (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>), the `wasi/wasm` platform
//! of container tools, Spin's application artifacts, the OCI image specification.

use std::io::Read;

use serde::Deserialize;

/// What the node asks registries for, most wanted first.
pub(crate) const ACCEPT: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

const WASM_LAYERS: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    /// `v7` of `arm`, say.
    #[serde(default)]
    pub variant: String,
}

/// The parts of an image config that decide how it runs.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: RunConfig,
    #[serde(default)]
    pub rootfs: RootFs,
}

/// What the layers unpack to, lowest first.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RunConfig {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    #[serde(default)]
    pub working_dir: String,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub stop_signal: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(d)?.unwrap_or_default())
}

/// What to fetch next, having seen a manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan {
    /// It is an index: this entry fits the node.
    Entry { digest: String },
    /// One layer is the Wasm itself.
    WasmLayer { digest: String, config: Option<String> },
    /// The config will tell whether Wasm lies in the layers, or a Linux root file system.
    ByConfig { config: String },
}

/// Chooses from a manifest, for a node of this machine architecture (as OCI spells it: `amd64`).
///
/// # Errors
/// A sentence for the user when nothing in the image fits.
pub(crate) fn plan(manifest: &Manifest, architecture: &str) -> Result<Plan, String> {
    if !manifest.manifests.is_empty() {
        let rank = |d: &&Descriptor| match &d.platform {
            Some(p) if p.architecture == "wasm" => 0,
            Some(p) if p.os == "linux" && p.architecture == architecture => 1 + variant(p),
            None if manifest.manifests.len() == 1 => 4,
            _ => 9,
        };
        return match manifest.manifests.iter().min_by_key(rank) {
            Some(entry) if rank(&entry) < 9 => Ok(Plan::Entry { digest: entry.digest.clone() }),
            _ => {
                let offered: Vec<String> = manifest
                    .manifests
                    .iter()
                    .filter_map(|d| d.platform.as_ref())
                    .map(|p| format!("{}/{}", p.os, p.architecture))
                    .collect();
                Err(format!(
                    "no matching manifest for wasm or linux/{architecture} in the image index, which offers {}",
                    offered.join(", ")
                ))
            }
        };
    }
    let wasm: Vec<&Descriptor> =
        manifest.layers.iter().filter(|l| WASM_LAYERS.contains(&l.media_type.as_str())).collect();
    match (wasm.as_slice(), &manifest.config) {
        ([layer], config) => Ok(Plan::WasmLayer {
            digest: layer.digest.clone(),
            config: config.as_ref().map(|c| c.digest.clone()),
        }),
        ([_, _, ..], _) => Err(format!(
            "the image has {} Wasm layers; one component per image is what a container runs",
            wasm.len()
        )),
        ([], Some(config)) => Ok(Plan::ByConfig { config: config.digest.clone() }),
        ([], None) => Err("the manifest has neither a config nor a Wasm layer".into()),
    }
}

/// Of several variants of the node's architecture the newest that every such machine has: v7 of 32-bit
/// ARM, v8 of 64-bit, v1 (which need not be said) of amd64.
fn variant(platform: &Platform) -> u8 {
    match (platform.architecture.as_str(), platform.variant.as_str()) {
        (_, "") | ("arm", "v7") | ("arm64", "v8") | ("amd64", "v1") => 0,
        ("arm", "v6") => 1,
        ("arm", "v5") => 2,
        _ => 8,
    }
}

/// The Wasm file that a compat image starts, from its unpacked layers (lowest first): the entrypoint,
/// or the only `.wasm` there is. Layers are tar, gzip or not.
pub(crate) fn wasm_in_layers(
    layers: &[Vec<u8>],
    run: &RunConfig,
    bytes_max: u64,
) -> Result<Vec<u8>, String> {
    let wanted = run.entrypoint.iter().chain(&run.cmd).find(|word| word.ends_with(".wasm"));
    let wanted = wanted.map(|path| clean(path));
    let mut found: Option<(String, Vec<u8>)> = None;
    let mut others = 0;
    for layer in layers {
        let reader: Box<dyn Read> = match layer.starts_with(&[0x1f, 0x8b]) {
            true => Box::new(flate2::read::GzDecoder::new(layer.as_slice())),
            false => Box::new(layer.as_slice()),
        };
        // A bomb ends at the limit, as a short archive.
        let mut archive = tar::Archive::new(reader.take(bytes_max));
        for entry in archive.entries().map_err(|e| format!("a layer is not a tar archive: {e}"))? {
            let mut entry = entry.map_err(|e| format!("a layer cannot be read: {e}"))?;
            let path = clean(&entry.path().map_err(|e| e.to_string())?.to_string_lossy());
            let fits = match &wanted {
                Some(wanted) => path == *wanted,
                None => path.ends_with(".wasm"),
            };
            if !fits || !entry.header().entry_type().is_file() {
                continue;
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(|e| format!("{path} cannot be read: {e}"))?;
            others += usize::from(found.as_ref().is_some_and(|(old, _)| *old != path));
            found = Some((path, content));
        }
    }
    match (found, others) {
        (Some((_, content)), 0) => Ok(content),
        (Some(_), _) => Err("several .wasm files and no entrypoint that names one of them".into()),
        (None, _) => Err(match wanted {
            Some(path) => format!("the entrypoint {path:?} is not in the image"),
            None => "there is no .wasm file in the image".into(),
        }),
    }
}

fn clean(path: &str) -> String {
    path.trim_start_matches("./").trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(json: serde_json::Value) -> Manifest {
        serde_json::from_value(json).expect("a manifest")
    }

    #[test]
    fn what_an_image_is() {
        #[track_caller]
        fn check(json: serde_json::Value, expected: Result<Plan, &str>) {
            match (plan(&manifest(json.clone()), "amd64"), expected) {
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                (got, expected) => {
                    assert_eq!(got, expected.map_err(str::to_owned), "{json}");
                }
            }
        }
        let entry = |os: &str, arch: &str, digest: &str| serde_json::json!({"digest": digest, "platform": {"os": os, "architecture": arch}});
        check(
            serde_json::json!({"config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": "c"},
                "layers": [{"mediaType": "application/wasm", "digest": "w"}]}),
            Ok(Plan::WasmLayer { digest: "w".into(), config: Some("c".into()) }),
        );
        check(
            serde_json::json!({"manifests": [entry("linux", "amd64", "l"), entry("wasip2", "wasm", "w")]}),
            Ok(Plan::Entry { digest: "w".into() }),
        );
        let older = serde_json::json!({"digest": "v3", "platform": {"os": "linux", "architecture": "amd64", "variant": "v3"}});
        check(
            serde_json::json!({"manifests": [older, entry("linux", "arm64", "a"), entry("linux", "amd64", "l")]}),
            Ok(Plan::Entry { digest: "l".into() }),
        );
        check(
            serde_json::json!({"manifests": [entry("linux", "arm64", "l")]}),
            Err("offers linux/arm64"),
        );
        check(
            serde_json::json!({"config": {"digest": "c"}, "layers": [{"mediaType": "tar", "digest": "t"}]}),
            Ok(Plan::ByConfig { config: "c".into() }),
        );
        check(serde_json::json!({}), Err("neither"));
    }

    #[test]
    fn compat_layers() {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in [("hello.wasm", &b"\0asm"[..]), ("etc/x", b"y")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, path, content).expect("appends");
        }
        let layers = [tar.into_inner().expect("finishes")];
        let run =
            |entry: &str| RunConfig { entrypoint: vec![entry.into()], ..RunConfig::default() };
        assert_eq!(wasm_in_layers(&layers, &run("/hello.wasm"), 1 << 20).unwrap(), b"\0asm");
        assert_eq!(wasm_in_layers(&layers, &RunConfig::default(), 1 << 20).unwrap(), b"\0asm");
        let missing = wasm_in_layers(&layers, &run("/other.wasm"), 1 << 20).unwrap_err();
        assert!(missing.contains("other.wasm"));
    }
}
