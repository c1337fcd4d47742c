//! A bare `runc`, with a bundle of ours.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

pub struct Peer {
    dir: tempfile::TempDir,
    config: Value,
}

/// A container of it, ended when dropped.
pub struct Container<'a> {
    peer: &'a Peer,
    name: String,
}

impl Peer {
    /// From the directory of a run that goes on: its files are mounted by the peer's containers too.
    pub fn of(run: &Path) -> anyhow::Result<Self> {
        let found = Command::new("runc").arg("--version").output();
        found.context("runc is not here: the package runc has it")?;
        let text = std::fs::read(run.join("config.json"))
            .with_context(|| format!("{}/config.json", run.display()))?;
        let mut config: Value = serde_json::from_slice(&text)?;
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("rootfs");
        copy(&run.join("rootfs"), &root)?;
        config["root"]["path"] = json!(root);
        for namespace in config["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            namespace.as_object_mut().and_then(|namespace| namespace.remove("path"));
        }
        // Where it has a UTS namespace of its own it may have a name.
        config["hostname"] = json!("bench");
        Ok(Self { dir, config })
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// A bundle for a program, made before the clock runs.
    pub fn bundle(&self, name: &str, args: &[&str]) -> anyhow::Result<PathBuf> {
        let mut config = self.config.clone();
        config["process"]["args"] = json!(args);
        config["linux"]["cgroupsPath"] = json!(format!("/rimward-bench/{name}"));
        let bundle = self.dir.path().join(name);
        std::fs::create_dir_all(&bundle)?;
        std::fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(bundle)
    }

    /// `runc run --detach`: comes back when the program runs, which prints into `out`.
    pub fn run(&self, name: &str, bundle: &Path, out: Stdio) -> anyhow::Result<Container<'_>> {
        let log = self.dir.path().join("runc.log");
        let mut command = self.command();
        command.arg("--log").arg(&log).args(["run", "--detach", "--bundle"]).arg(bundle).arg(name);
        command.stdin(Stdio::null()).stdout(out).stderr(File::create("/dev/null")?);
        let status = command.status()?;
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success(), "runc run: {}", said());
        Ok(Container { peer: self, name: name.to_owned() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.dir.path().join("state"));
        command
    }
}

impl Container<'_> {
    pub fn exec(&self, args: &[&str]) -> anyhow::Result<()> {
        let output = self.peer.command().arg("exec").arg(&self.name).args(args).output()?;
        ensure!(output.status.success(), "runc exec: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _gone_already = self.peer.command().args(["delete", "--force", &self.name]).output();
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).output()?;
    ensure!(copied.status.success(), "cp: {}", String::from_utf8_lossy(&copied.stderr));
    Ok(())
}
