//! `rimward image`: pushing into the cluster's registry, and the images of nodes.

mod credentials;
mod on_node;
mod push;
#[cfg(feature = "node")]
mod push_archive;

use anyhow::Context as _;
use serde::Deserialize;

use crate::cli::{Image, ImageCommand};
use on_node::NodeApi;

pub async fn run(args: Image) -> anyhow::Result<()> {
    match args.command {
        ImageCommand::Push { file, name, cluster } => push::run(&file, &name, &cluster).await,
        ImageCommand::List { on } => list(&NodeApi::new(&on)?).await,
        ImageCommand::Pull { name, auth_file, creds_stdin, on } => {
            let credentials = credentials::read(&name, auth_file.as_deref(), creds_stdin)?;
            say("pulled", &NodeApi::new(&on)?.pull(&name, credentials).await?)
        }
        ImageCommand::Rm { names, on } => {
            let node = NodeApi::new(&on)?;
            for name in names {
                say("removed", &node.call("DELETE", "", Some(&name)).await?)?;
            }
            Ok(())
        }
        #[cfg(feature = "node")]
        ImageCommand::Import { file, name, registry: true, on } => {
            push_archive::run(&file, name.as_deref(), &on.cluster).await
        }
        ImageCommand::Import { file, name, on, .. } => {
            say("imported", &NodeApi::new(&on)?.import(&file, name.as_deref()).await?)
        }
    }
}

fn say(done: &str, names: &[u8]) -> anyhow::Result<()> {
    let names: Vec<String> = serde_json::from_slice(names).context("the node's answer")?;
    names.iter().for_each(|name| println!("{done} {name}"));
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    names: Vec<String>,
    digest: String,
    size_bytes: u64,
    in_use: bool,
}

async fn list(node: &NodeApi) -> anyhow::Result<()> {
    let listed: Vec<Listed> =
        serde_json::from_slice(&node.call("GET", "", None).await?).context("the node's answer")?;
    let mut rows = vec![["IMAGE", "DIGEST", "SIZE", "IN USE"].map(str::to_owned)];
    for image in listed {
        let short: String = image.digest.trim_start_matches("sha256:").chars().take(12).collect();
        let used = if image.in_use { "yes" } else { "no" };
        for name in image.names {
            rows.push([name, short.clone(), size(image.size_bytes), used.to_owned()]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (name, size) = (width(0), width(2));
    for row in &rows {
        println!("{:name$}  {:12}  {:>size$}  {}", row[0], row[1], row[2], row[3]);
    }
    Ok(())
}

/// As crictl shows it: decimal units.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{:.1}kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}MB", bytes as f64 / 1e6),
        _ => format!("{:.2}GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in
            [(5, "5B"), (2_500, "2.5kB"), (4_120_000, "4.1MB"), (3 << 30, "3.22GB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
