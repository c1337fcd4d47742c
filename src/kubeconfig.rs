//! Finding and reading a kubeconfig, as far as commands of this binary need it: certificates or a token
//! of the current context.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use serde::Deserialize;

/// A cluster and how to be somebody there. PEM texts.
pub struct Kubeconfig {
    /// `https://host:port`
    pub server: String,
    pub ca: Vec<u8>,
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    pub token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    context: Context_,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context_ {
    cluster: String,
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

/// The file to use: the option, `$KUBECONFIG`, `~/.kube/config`, or what `rimward up` wrote by default.
fn find(option: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = option {
        return Ok(path.to_owned());
    }
    if let Some(first) =
        std::env::var_os("KUBECONFIG").and_then(|v| std::env::split_paths(&v).next())
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let usual = [
        home.join(".kube/config"),
        PathBuf::from("/var/lib/rimward/kubeconfig"),
        home.join(".local/share/rimward/kubeconfig"),
    ];
    match usual.iter().find(|path| path.exists()) {
        Some(path) => Ok(path.clone()),
        None => bail!("no kubeconfig found: set KUBECONFIG to DIR/kubeconfig, or say --kubeconfig"),
    }
}

impl Kubeconfig {
    pub fn load(option: Option<&Path>) -> anyhow::Result<Self> {
        let path = find(option)?;
        let about = || format!("kubeconfig {}", path.display());
        let text = std::fs::read_to_string(&path).with_context(about)?;
        let file: File = serde_saphyr::from_str(&text)
            .map_err(|e| anyhow::anyhow!("{e}"))
            .with_context(about)?;
        Self::of(file, path.parent().unwrap_or(Path::new("."))).with_context(about)
    }

    fn of(file: File, dir: &Path) -> anyhow::Result<Self> {
        let named = |list: Vec<Named>, name: &str, what: &str| {
            let found = list.into_iter().find(|n| n.name == name);
            found.with_context(|| format!("there is no {what} {name:?}"))
        };
        let context = named(file.contexts, &file.current_context, "context")?.context;
        let cluster = named(file.clusters, &context.cluster, "cluster")?.cluster;
        let user = named(file.users, &context.user, "user")?.user;
        let data =
            |inline: Option<String>, path: Option<PathBuf>| -> anyhow::Result<Option<Vec<u8>>> {
                match (inline, path) {
                    (Some(text), _) => {
                        Ok(Some(base64::engine::general_purpose::STANDARD.decode(text)?))
                    }
                    (None, Some(path)) => Ok(Some(std::fs::read(dir.join(path))?)),
                    (None, None) => Ok(None),
                }
            };
        let ca = data(cluster.certificate_authority_data, cluster.certificate_authority)?;
        let certificate = data(user.client_certificate_data, user.client_certificate)?;
        let key = data(user.client_key_data, user.client_key)?;
        Ok(Self {
            server: cluster.server,
            ca: ca.context("the cluster has no certificate-authority")?,
            client: certificate.zip(key),
            token: user.token,
        })
    }
}
