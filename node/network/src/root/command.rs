//! Running `ip` and `nft`. Both are the kernel's own tools, on every distribution; what they refuse is
//! told with their own words.

use std::process::Stdio;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(
        "cannot run `{command}`: {source}; install the package that has it (iproute2, nftables, util-linux)"
    )]
    Missing { command: String, source: std::io::Error },
    #[error("`{command}` failed: {said}")]
    Failed { command: String, said: String },
}

/// The kernel's tools, for those who are tested without a kernel.
#[async_trait]
pub(crate) trait Tools: Send + Sync {
    /// Runs a command line with `input` on its standard input; answers its standard output.
    async fn run(&self, command: &str, input: &str) -> Result<String, CommandError>;
}

/// The programs themselves.
pub(crate) struct Programs;

#[async_trait]
impl Tools for Programs {
    async fn run(&self, command: &str, input: &str) -> Result<String, CommandError> {
        run(command, input).await
    }
}

/// Runs a command line (words split at spaces) with `input` on its standard input.
pub(crate) async fn run(command: &str, input: &str) -> Result<String, CommandError> {
    let missing = |source| CommandError::Missing { command: command.to_owned(), source };
    let mut words = command.split(' ');
    let mut child = Command::new(words.next().unwrap_or_default())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(missing)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let write = async {
        // A command that refuses early closes its end; its own words are the error to tell.
        let _refused_early = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output.map_err(missing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CommandError::Failed { command: command.to_owned(), said })
}

/// Runs several lines of `ip` in one process.
pub(crate) async fn ip_batch(lines: &str) -> Result<(), CommandError> {
    run("ip -batch -", lines).await.map(drop)
}
