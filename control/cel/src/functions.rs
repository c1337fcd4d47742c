//! What expressions can call: one table, one file for each of Kubernetes' libraries.
//! <https://kubernetes.io/docs/reference/using-api/cel/#cel-options-language-features-and-libraries>
//!
//! A row has a name, its signatures for the checker, and one body for all of them, which looks at what
//! it is given: behind `dyn` the checker knows nothing. Every body pays for what it looks at and for
//! what it makes, before it does.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::authorizer::Authorizer;
use crate::error::{EvalError, other};
use crate::limits::{Budget, STRING_BYTES_MAX};
use crate::types::{Type, parse_type, split_types};
use crate::value::Value;

pub mod format;
pub mod time;

mod authorization;
mod collections;
mod lists;
mod net;
mod numbers;
mod optional;
mod quantity;
mod regexes;
mod semver;
mod sprintf;
mod standard;
mod strings;
mod url;

pub use regexes::Regexes;

pub type Out<'a> = Result<Value<'a>, EvalError>;
pub type Run = for<'c, 'a> fn(&mut Context<'c, 'a>, &[Value<'a>]) -> Out<'a>;

/// What a function may use beside its arguments.
pub struct Context<'c, 'a> {
    pub budget: &'c mut Budget,
    /// Patterns that were compiled with the expression.
    pub regexes: &'c Regexes,
    pub authorizer: Option<&'a dyn Authorizer>,
}

impl Context<'_, '_> {
    /// Pays for a string of that length before it is made.
    pub fn makes(&mut self, bytes: usize) -> Result<(), EvalError> {
        if bytes > STRING_BYTES_MAX {
            return other(format!("a string of {bytes} bytes is longer than {STRING_BYTES_MAX}"));
        }
        self.budget.traverse(bytes)
    }
}

pub struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
    pub run: Run,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[derive(Debug)]
pub struct Overload {
    /// Called on its first parameter: `text.size()`.
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
}

/// A row as it is written: name, signatures, body.
type Row = (&'static str, &'static [&'static str], Run);

pub fn find(name: &str) -> Option<&'static Function> {
    static ALL: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
        let rows: [&[Row]; 15] = [
            standard::ROWS,
            numbers::ROWS,
            collections::ROWS,
            strings::ROWS,
            sprintf::ROWS,
            lists::ROWS,
            regexes::ROWS,
            time::ROWS,
            optional::ROWS,
            net::ROWS,
            url::ROWS,
            quantity::ROWS,
            semver::ROWS,
            format::ROWS,
            authorization::ROWS,
        ];
        let all = rows.into_iter().flatten();
        all.map(|(name, signatures, run)| (*name, read(name, signatures, *run))).collect()
    });
    ALL.get(name)
}

fn read(name: &'static str, signatures: &[&str], run: Run) -> Function {
    let overloads = signatures.iter().map(|text| overload(name, text)).collect();
    Function { name, overloads, run }
}

/// `list<A>.indexOf(A) -> int`, `size(string) -> int`
fn overload(name: &str, text: &str) -> Overload {
    const WELL_FORMED: &str = "signatures are written by us, and a test reads them all";
    let (call, result) = text.rsplit_once(" -> ").expect(WELL_FORMED);
    let (before, args) = call.split_once(&format!("{name}(")).expect(WELL_FORMED);
    let args = args.strip_suffix(')').expect(WELL_FORMED);
    let receiver = before.strip_suffix('.');
    let params = receiver.into_iter().chain(split_types(args)).map(parse_type).collect();
    Overload { member: receiver.is_some(), params, result: parse_type(result) }
}

/// A body was given what none of its signatures allows.
fn no_overload<'a>() -> Out<'a> {
    Err(EvalError::NoSuchOverload)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_well_formed() {
        assert!(super::find("size").is_some());
        assert!(super::find("nothing of the kind").is_none());
    }
}
