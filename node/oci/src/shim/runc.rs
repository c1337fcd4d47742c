//! runc, a program of the machine's: run once for each step, in the container's directory.
//!
//! Its own state lies there too, so nothing of it is left when that goes, and `runc delete` has nothing to do. A
//! container's first process comes to this one when `runc create` ends, a command's when `runc exec` does, since
//! this process takes what its children leave behind.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::low_level::{Maker, Streams};
use crate::layout::{CONTAINER_ID, RUNC_STATE, RunDir};

pub(super) struct Runc<'a> {
    pub program: &'a Path,
    pub dir: &'a RunDir,
}

impl Maker for Runc<'_> {
    fn create(
        &self,
        streams: Streams,
        made: &dyn Fn(i32) -> Result<(), String>,
    ) -> Result<i32, String> {
        let pid_file = "runc.pid";
        self.run("create", &["--bundle", ".", "--pid-file", pid_file], Some(streams))?;
        let pid = self.take_pid(pid_file)?;
        made(pid)?;
        self.run("start", &[], None)?;
        Ok(pid)
    }

    fn exec(&self, process: &str, streams: Streams) -> Result<i32, String> {
        let pid_file = format!("{process}.pid");
        let words = ["--detach", "--process", process, "--pid-file", &pid_file];
        self.run("exec", &words, Some(streams))?;
        self.take_pid(&pid_file)
    }
}

impl Runc<'_> {
    /// To the end of the step.
    fn run(&self, step: &str, words: &[&str], streams: Option<Streams>) -> Result<(), String> {
        // Several commands may be run at once.
        let log = format!("runc-{}.log", std::process::id());
        let mut command = Command::new(self.program);
        command.env_clear().current_dir(&self.dir.0);
        command.arg("--root").arg(self.dir.file(RUNC_STATE));
        command.args(["--log", &log, "--log-format", "json", step]).args(words);
        match streams {
            Some(Streams::Three([stdin, stdout, stderr])) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            // By its name alone: a whole path may be too long for an address.
            Some(Streams::Terminal(name)) => {
                command.args(["--console-socket", &name]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            }
            None => {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        let status = command.arg(CONTAINER_ID).status();
        let log = self.dir.file(&log);
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let _there_is_none_without_words = std::fs::remove_file(&log);
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failure(&said)
                .unwrap_or_else(|| format!("runc {step} said nothing and ended: {status}"))),
            Err(error) => Err(format!("cannot run {}: {error}", self.program.display())),
        }
    }

    fn take_pid(&self, file: &str) -> Result<i32, String> {
        let path = self.dir.file(file);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{file}: {e}"))?;
        let _gone_with_the_directory_else = std::fs::remove_file(&path);
        text.trim().parse().map_err(|e| format!("{file}: {text:?}: {e}"))
    }
}

/// The last error of a log of JSON lines.
fn failure(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let mut errors =
        lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal" | "panic"));
    errors.next_back().map(|line| line.msg.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_the_failure() {
        let check = |log: &str, expected: Option<&str>| {
            assert_eq!(failure(log).as_deref(), expected, "{log}");
        };
        check("", None);
        check("panic: no JSON\n", None);
        let warning = r#"{"level":"warning","msg":"odd","time":"2026-11-28T23:50:27Z"}"#;
        check(warning, None);
        let error =
            r#"{"level":"error","msg":"exec failed: exec: \"nosuch\": not found\n","time":"x"}"#;
        let lines = [r#"{"level":"error","msg":"first"}"#, error, warning, "{\"level\":"];
        check(&lines.join("\n"), Some("exec failed: exec: \"nosuch\": not found"));
    }
}
