//! `PodExecOptions` and `PodAttachOptions`, from a request's query.

use rimward_api::Status;

use crate::nodes::SessionOptions;
use crate::request::Query;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Exec,
    Attach,
}

/// The options; the container stands as it was asked for.
///
/// # Errors
/// When nothing could come of them.
pub fn options(kind: Kind, query: &Query) -> Result<SessionOptions, Status> {
    let flag = |name: &str| query.flag(name) == Some(true);
    let tty = flag("tty");
    let options = SessionOptions {
        container: query.get("container").unwrap_or_default().to_owned(),
        command: match kind {
            Kind::Exec => query.all("command").map(str::to_owned).collect(),
            Kind::Attach => Vec::new(),
        },
        stdin: flag("stdin"),
        stdout: flag("stdout"),
        // A terminal has one output.
        stderr: flag("stderr") && !tty,
        tty,
    };
    if !options.stdin && !options.stdout && !options.stderr {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    if kind == Kind::Exec && options.command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let exec = |text: &str| {
            options(Kind::Exec, &Query::parse(Some(text))).map_err(|status| status.message)
        };
        let all = "container=c&command=sh&command=-c&stdin=true&stdout=1&stderr=true";
        let plain = exec(all).unwrap();
        assert_eq!(
            (plain.container.as_str(), plain.command),
            ("c", vec!["sh".into(), "-c".into()])
        );
        assert!(plain.stdin && plain.stdout && plain.stderr && !plain.tty);
        let tty = exec(&format!("{all}&tty=true")).unwrap();
        assert!(tty.tty && !tty.stderr);
        assert!(exec("command=x").unwrap_err().contains("at least 1 of stdin"));
        assert!(exec("stdout=true").unwrap_err().contains("at least one command"));
        let attach = options(Kind::Attach, &Query::parse(Some("stdout=true&command=x"))).unwrap();
        assert!(attach.command.is_empty());
    }
}
