//! What is wrong with an expression: when it is compiled, and when it runs.

use std::fmt;

/// A line of an expression that is repeated in a message.
const SHOWN_BYTES_MAX: usize = 4096;

/// One fault of an expression's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Byte offset into the expression.
    pub at: u32,
    pub message: String,
}

/// An expression that does not compile. Displayed as Kubernetes displays it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    Issues {
        expression: String,
        issues: Vec<Issue>,
    },
    /// It compiles, to something else than is wanted here.
    WrongType(String),
}

impl std::error::Error for CompileError {}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongType(text) => f.write_str(text),
            Self::Issues { expression, issues } => {
                f.write_str("compilation failed: ")?;
                for (i, issue) in issues.iter().enumerate() {
                    let (line, column, text) = position(expression, issue.at as usize);
                    let between = if i == 0 { "" } else { "\n" };
                    write!(f, "{between}ERROR: <input>:{line}:{}: {}", column + 1, issue.message)?;
                    if text.len() <= SHOWN_BYTES_MAX {
                        write!(f, "\n | {text}\n | {}^", ".".repeat(column))?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Line (from 1), column in characters (from 0), and the line itself.
fn position(text: &str, at: usize) -> (usize, usize, &str) {
    let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let start = text[..at].rfind('\n').map_or(0, |i| i + 1);
    let end = text[at..].find('\n').map_or(text.len(), |i| at + i);
    (text[..at].matches('\n').count() + 1, text[start..at].chars().count(), &text[start..end])
}

/// Why an evaluation gave no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvalError {
    #[error("no such overload")]
    NoSuchOverload,
    #[error("no such key: {0}")]
    NoSuchKey(String),
    #[error("no such attribute(s): {0}")]
    NoSuchAttribute(String),
    #[error("index out of bounds: {0}")]
    OutOfBounds(i64),
    #[error("{0}")]
    Other(String),
    /// More than the budget would be used; not caught by `||` and `&&`.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
    /// The evaluation ran beyond its time; not caught either.
    #[error("operation interrupted")]
    Deadline,
}

impl EvalError {
    /// Errors that end the whole evaluation, whatever the expression would make of them.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::CostLimit | Self::Deadline)
    }
}

pub(crate) fn other<T>(text: impl Into<String>) -> Result<T, EvalError> {
    Err(EvalError::Other(text.into()))
}
