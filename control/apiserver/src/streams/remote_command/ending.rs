//! How a session ended, as the error stream tells it.

use serde_json::{Value, json};

use super::Kind;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Exit(i32),
    /// Nothing was run, or it was not seen to its end.
    Failed(String),
}

impl Ending {
    /// The Status, as apimachinery writes it there: without kind and apiVersion.
    pub fn status(&self, kind: Kind) -> Value {
        match self {
            Self::Exit(0) => json!({ "metadata": {}, "status": "Success" }),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": non_zero(*code),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(why) => {
                let why = failed(kind, why);
                json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": format!("Internal error occurred: {why}"),
                    "reason": "InternalError",
                    "details": { "causes": [{ "message": why }] },
                    "code": 500,
                })
            }
        }
    }

    /// For protocols before v4: a text, or nothing when all went well.
    pub fn text(&self, kind: Kind) -> Option<String> {
        match self {
            Self::Exit(0) => None,
            Self::Exit(code) => Some(non_zero(*code)),
            Self::Failed(why) => Some(format!("Internal error occurred: {}", failed(kind, why))),
        }
    }

    /// What goes onto the error stream of this protocol.
    pub fn bytes(&self, kind: Kind, as_status: bool) -> Option<Vec<u8>> {
        match as_status {
            true => Some(self.status(kind).to_string().into_bytes()),
            false => self.text(kind).map(String::into_bytes),
        }
    }
}

fn non_zero(code: i32) -> String {
    format!("command terminated with non-zero exit code: command terminated with exit code {code}")
}

fn failed(kind: Kind, why: &str) -> String {
    match kind {
        Kind::Exec => format!("error executing command in container: {why}"),
        Kind::Attach => format!("error attaching to container: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        let exit = |code| Ending::Exit(code).status(Kind::Exec);
        assert_eq!(exit(0).to_string(), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(
            exit(3)["details"]["causes"][0],
            json!({ "reason": "ExitCode", "message": "3" })
        );
        assert_eq!(exit(3)["reason"], "NonZeroExitCode");
        let failed = Ending::Failed("no shell".into());
        let text = "Internal error occurred: error executing command in container: no shell";
        assert_eq!(failed.status(Kind::Exec)["message"], text);
        assert_eq!(failed.bytes(Kind::Exec, false).unwrap(), text.as_bytes());
        assert_eq!(Ending::Exit(0).bytes(Kind::Exec, false), None);
    }
}
