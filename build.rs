//! Tells the binary where it comes from, for `/version`. A packager says it by `RIMWARD_GIT_COMMIT`,
//! `RIMWARD_GIT_TREE_STATE` and `SOURCE_DATE_EPOCH` (<https://reproducible-builds.org/specs/source-date-epoch/>);
//! else git is asked; where there is no repository, the commit stays unknown and the build goes on.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    let [commit, state, date] =
        ["RIMWARD_GIT_COMMIT", "RIMWARD_GIT_TREE_STATE", "SOURCE_DATE_EPOCH"].map(|name| {
            println!("cargo::rerun-if-env-changed={name}");
            std::env::var(name).ok().filter(|value| !value.is_empty())
        });
    println!("cargo::rerun-if-changed=build.rs");
    // A path that is not there would make every build run this.
    for moved in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", moved]);
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let found = git(&["rev-parse", "HEAD"]);
    let changed = || git(&["status", "--porcelain", "--untracked-files=no"]);
    let state = state.unwrap_or_else(|| match (&found, &commit) {
        (None, _) | (_, Some(_)) => "archive".into(),
        (Some(_), None) if changed().is_some_and(|c| !c.is_empty()) => "dirty".into(),
        (Some(_), None) => "clean".into(),
    });
    let date = date.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |since| since.as_secs()).to_string()
    });
    println!("cargo::rustc-env=RIMWARD_GIT_COMMIT={}", commit.or(found).unwrap_or_default());
    println!("cargo::rustc-env=RIMWARD_GIT_TREE_STATE={state}");
    println!("cargo::rustc-env=RIMWARD_BUILD_EPOCH={date}");
}

/// What git prints; None without git or without a repository.
fn git(args: &[&str]) -> Option<String> {
    let asked = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(asked.stdout).ok()?;
    asked.status.success().then(|| text.trim().to_owned())
}
