//! Where an expression is compiled: the variables that it may name, and what it must give.

use serde_json::Value as Json;

use crate::ast::Expr;
use crate::check;
use crate::error::CompileError;
use crate::eval::{self, Bindings};
use crate::functions::{Out, Regexes};
use crate::limits::Budget;
use crate::parse::parse;
use crate::types::Type;
use crate::value::to_json;

/// The declared variables.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub(crate) variables: Vec<(String, Type)>,
    pub(crate) patches: bool,
}

impl Environment {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn with(mut self, name: &str, of: Type) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), of));
        self
    }

    /// Knows `Object{…}` and `JSONPatch{…}`, as mutations do.
    #[must_use]
    pub fn with_patches(mut self) -> Self {
        self.patches = true;
        self
    }

    /// Compiles an expression of any type.
    pub fn compile(&self, expression: &str) -> Result<Program, CompileError> {
        let issues = |issues| CompileError::Issues { expression: expression.to_owned(), issues };
        let mut expr = parse(expression).map_err(|issue| issues(vec![issue]))?;
        let checked = check::check(&mut expr, self).map_err(issues)?;
        let check::Checked { output, used, regexes } = checked;
        Ok(Program { expr, output, used, regexes })
    }

    /// Compiles an expression that must give one of these types.
    pub fn compile_to(&self, expression: &str, wanted: &[Type]) -> Result<Program, CompileError> {
        let program = self.compile(expression)?;
        if wanted.iter().any(|t| t.same(&program.output)) {
            return Ok(program);
        }
        let got = &program.output;
        let text = match wanted {
            [one] => format!("must evaluate to {one} but got {got}"),
            several => {
                let names: Vec<String> = several.iter().map(Type::to_string).collect();
                format!("must evaluate to one of [{}] but got {got}", names.join(" "))
            }
        };
        Err(CompileError::WrongType(text))
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    pub(crate) expr: Expr,
    pub(crate) output: Type,
    pub(crate) used: Vec<String>,
    pub(crate) regexes: Regexes,
}

impl Program {
    pub fn output(&self) -> &Type {
        &self.output
    }

    /// Whether the expression names that variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.used.iter().any(|used| used == variable)
    }

    /// Evaluates; takes what that costs off the budget. One call may use
    /// [`PER_CALL`](crate::limits::PER_CALL) of it at most.
    pub fn eval<'a>(&'a self, bindings: &Bindings<'a>, budget: &mut Budget) -> Out<'a> {
        eval::run(self, bindings, budget)
    }

    /// Evaluates to JSON.
    pub fn eval_json<'a>(
        &'a self,
        bindings: &Bindings<'a>,
        budget: &mut Budget,
    ) -> Result<Json, crate::EvalError> {
        let value = self.eval(bindings, budget)?;
        to_json(&value, budget)
    }
}
