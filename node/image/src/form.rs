//! Reading from an image what it is: a Wasm artifact, a "compat" image with Wasm inside, or a Linux
//! root file system.
//!
//! Sources: the CNCF Wasm OCI artifact layout
//! (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>), the `wasi/wasm` platform
//! of container tools, Spin's application artifacts, the OCI image specification.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::entries;
use crate::layers::{AtMost, decompressed};

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

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    /// In bytes; 0 where it is not said.
    #[serde(default)]
    pub size: u64,
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
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
    /// It is an index: these entries fit the node, or do not say whether they do; the best first.
    Entries(Vec<Descriptor>),
    /// One layer is the Wasm itself.
    WasmLayer { layer: Descriptor, config: Option<Descriptor> },
    /// The config will tell whether Wasm lies in the layers, or a Linux root file system.
    ByConfig { config: Descriptor },
}

/// Chooses from a manifest, for a node of this machine architecture (as OCI spells it: `amd64`).
///
/// # Errors
/// A sentence for the user when nothing in the image fits.
pub(crate) fn plan(manifest: &Manifest, architecture: &str) -> Result<Plan, String> {
    if !manifest.manifests.is_empty() {
        let rank = |d: &Descriptor| match &d.platform {
            Some(p) if p.architecture == "wasm" => 0,
            Some(p) if p.os == "linux" && p.architecture == architecture => 1 + variant(p),
            // An index within an index, say.
            None => 20,
            Some(_) => UNFIT,
        };
        let mut fitting: Vec<&Descriptor> =
            manifest.manifests.iter().filter(|d| rank(d) < UNFIT).collect();
        fitting.sort_by_key(|d| rank(d));
        // Who says that it fits is believed before who says nothing.
        let told = fitting.iter().take_while(|d| d.platform.is_some()).count();
        if told > 0 {
            return Ok(Plan::Entries(vec![fitting[0].clone()]));
        }
        if !fitting.is_empty() {
            return Ok(Plan::Entries(fitting.into_iter().cloned().collect()));
        }
        let offered: Vec<String> =
            manifest.manifests.iter().filter_map(|d| d.platform.as_ref()).map(shown).collect();
        return Err(format!(
            "no match for platform in the image index: it offers {}; this node runs wasm and linux/{architecture}",
            offered.join(", ")
        ));
    }
    let wasm: Vec<&Descriptor> =
        manifest.layers.iter().filter(|l| WASM_LAYERS.contains(&l.media_type.as_str())).collect();
    match (wasm.as_slice(), &manifest.config) {
        ([layer], config) => {
            Ok(Plan::WasmLayer { layer: (*layer).clone(), config: config.clone() })
        }
        ([_, _, ..], _) => Err(format!(
            "the image has {} Wasm layers; one component per image is what a container runs",
            wasm.len()
        )),
        ([], Some(config)) => Ok(Plan::ByConfig { config: config.clone() }),
        ([], None) => Err("the manifest has neither a config nor a Wasm layer".into()),
    }
}

/// The rank of what no node runs.
const UNFIT: u8 = 99;

/// Of several variants of the node's architecture the newest that every such machine has: v7 of 32-bit
/// ARM, v8 of 64-bit, v1 (which need not be said) of amd64.
fn variant(platform: &Platform) -> u8 {
    match (platform.architecture.as_str(), platform.variant.as_str()) {
        (_, "") | ("arm", "v7") | ("arm64", "v8") | ("amd64", "v1") => 0,
        ("arm", "v6") => 1,
        ("arm", "v5") => 2,
        _ => UNFIT,
    }
}

fn shown(platform: &Platform) -> String {
    let Platform { os, architecture, variant } = platform;
    let variant = if variant.is_empty() { String::new() } else { format!("/{variant}") };
    format!("{os}/{architecture}{variant}")
}

/// Writes the Wasm file that a compat image starts to `out`, from its layers (files, lowest first): the entrypoint,
/// or the only `.wasm` there is. Layers are tar, compressed or not. Neither a layer nor the file may unpack to more
/// than `bytes_max`. Answers how long the file is. Blocks.
pub(crate) fn wasm_in_layers(
    layers: &[PathBuf],
    run: &RunConfig,
    out: &Path,
    bytes_max: u64,
) -> Result<u64, String> {
    let wanted = run.entrypoint.iter().chain(&run.cmd).find(|word| word.ends_with(".wasm"));
    let wanted = wanted.map(|path| clean(path));
    let mut found: Option<(String, u64)> = None;
    let mut others = 0;
    for layer in layers {
        let file = File::open(layer).map_err(|e| format!("{}: {e}", layer.display()))?;
        let plain = decompressed(file).map_err(|e| format!("a layer cannot be read: {e}"))?;
        let bounded = AtMost::new(plain, bytes_max, out.parent().unwrap_or(out));
        let visited = entries::each(bounded, |entry| {
            let path = clean(&entry.path()?.to_string_lossy());
            let fits = match &wanted {
                Some(wanted) => path == *wanted,
                None => path.ends_with(".wasm"),
            };
            if fits && entry.header().entry_type().is_file() {
                let size = std::io::copy(entry, &mut File::create(out)?)?;
                others += usize::from(found.as_ref().is_some_and(|(old, _)| *old != path));
                found = Some((path, size));
            }
            Ok::<_, std::io::Error>(())
        });
        visited.map_err(|e| format!("a layer is not a tar archive that can be read: {e}"))?;
    }
    match (found, others) {
        (Some((_, size)), 0) => Ok(size),
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

    /// What is chosen, by digests.
    fn chosen(plan: Plan) -> String {
        match plan {
            Plan::Entries(entries) => {
                let digests: Vec<String> = entries.into_iter().map(|e| e.digest).collect();
                format!("entries {}", digests.join(" "))
            }
            Plan::WasmLayer { layer, config } => {
                format!("wasm {} {}", layer.digest, config.unwrap_or_default().digest)
            }
            Plan::ByConfig { config } => format!("config {}", config.digest),
        }
    }

    #[test]
    fn what_an_image_is() {
        #[track_caller]
        fn check(architecture: &str, json: serde_json::Value, expected: Result<&str, &str>) {
            match (plan(&manifest(json.clone()), architecture), expected) {
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                (got, expected) => {
                    let expected = expected.map(str::to_owned).map_err(str::to_owned);
                    assert_eq!(got.map(chosen), expected, "{json}");
                }
            }
        }
        let of = |os: &str, arch: &str, variant: &str, digest: &str| serde_json::json!({"digest": digest, "platform": {"os": os, "architecture": arch, "variant": variant}});
        let entry = |os: &str, arch: &str, digest: &str| of(os, arch, "", digest);
        let untold = |digest: &str| serde_json::json!({ "digest": digest });
        let index = |entries: &[serde_json::Value]| serde_json::json!({ "manifests": entries });
        check(
            "amd64",
            serde_json::json!({"config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": "c"},
                "layers": [{"mediaType": "application/wasm", "digest": "w"}]}),
            Ok("wasm w c"),
        );
        let both = [entry("linux", "amd64", "l"), entry("wasip2", "wasm", "w")];
        check("amd64", index(&both), Ok("entries w"));
        let many = [
            of("linux", "amd64", "v3", "v3"),
            entry("linux", "arm64", "a"),
            entry("linux", "amd64", "l"),
            untold("u"),
            entry("unknown", "unknown", "attestation"),
        ];
        check("amd64", index(&many), Ok("entries l"));
        check("amd64", index(&many[..2]), Err("offers linux/amd64/v3, linux/arm64;"));
        check("amd64", index(&[untold("u"), untold("v"), many[1].clone()]), Ok("entries u v"));
        let arms = [
            of("linux", "arm", "v5", "v5"),
            of("linux", "arm", "v7", "v7"),
            of("linux", "arm", "v6", "v6"),
        ];
        check("arm", index(&arms), Ok("entries v7"));
        check("arm", index(&[arms[0].clone(), arms[2].clone()]), Ok("entries v6"));
        check("amd64", index(&arms), Err("offers linux/arm/v5, linux/arm/v7, linux/arm/v6"));
        check("amd64", index(&[entry("linux", "arm64", "l")]), Err("offers linux/arm64"));
        check(
            "amd64",
            serde_json::json!({"config": {"digest": "c"}, "layers": [{"mediaType": "tar", "digest": "t"}]}),
            Ok("config c"),
        );
        check("amd64", serde_json::json!({}), Err("neither"));
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
        let tar = tar.into_inner().expect("finishes");
        let dir = tempfile::tempdir().expect("a directory");
        let zstd = zstd::encode_all(&tar[..], 3).expect("compresses");
        let run =
            |entry: &str| RunConfig { entrypoint: vec![entry.into()], ..RunConfig::default() };
        for content in [tar, zstd] {
            let layer = dir.path().join("layer");
            std::fs::write(&layer, content).expect("a file");
            let (layers, out) = ([layer], dir.path().join("out"));
            for run in [run("/hello.wasm"), RunConfig::default()] {
                assert_eq!(wasm_in_layers(&layers, &run, &out, 1 << 20), Ok(4));
                assert_eq!(std::fs::read(&out).expect("the file"), b"\0asm");
            }
            let missing = wasm_in_layers(&layers, &run("/other.wasm"), &out, 1 << 20).unwrap_err();
            assert!(missing.contains("other.wasm"));
            let bomb = wasm_in_layers(&layers, &run("/hello.wasm"), &out, 700).unwrap_err();
            assert!(bomb.contains("more than this node takes"), "{bomb}");
        }
    }
}
