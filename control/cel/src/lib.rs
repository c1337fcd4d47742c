//! The Common Expression Language as Kubernetes v1.36 speaks it.
//! <https://kubernetes.io/docs/reference/using-api/cel/>
//!
//! An [`Environment`] compiles an expression into a [`Program`]: parsed, every name resolved, every
//! type checked, so that what cannot work is refused when it is written. A program evaluates over
//! [`Bindings`], which are views of JSON, and pays for each step from a [`Budget`]: there is no
//! expression, whoever wrote it, that can hold the server.
//!
//! The interpreter is our own. The plan named `kube-cel`, on `cel`: a parser and an evaluator without
//! types and without a bound on what an evaluation costs. It checks nothing before it runs, so that
//! a misspelt field would be found by the first user whose pod is refused; and a bound laid around it
//! from outside can only abandon a thread, not stop it: nested comprehensions run where no caller
//! looks. Both need the inside of the evaluator. Its values, too, are converted as a whole before the
//! first step, and know nothing of a schema.
//!
//! It refuses to do I/O, to know kinds, and to decide what an outcome means.

pub mod authentication;
pub mod policy;
pub mod rules;

mod environment;
mod error;
mod eval;

mod ast;
mod check;
mod parse;
mod token;

mod estimate;

pub mod authorizer;
mod functions;
pub mod limits;
pub mod schema;
mod types;
pub mod value;

pub use environment::{Environment, Program};
pub use error::{CompileError, EvalError};
pub use eval::Bindings;
pub use functions::time::parse_duration;
pub use limits::Budget;
pub use policy::MatchConditions;
pub use rules::Rules;
pub use types::Type;
pub use value::Value;
