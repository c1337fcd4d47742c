//! Walking the tree. Every step is paid for before it is taken, within comprehensions too, so that an
//! evaluation ends when its budget does.

use std::cell::{Cell, RefCell};

use crate::ast::{
    Call, Comprehension, Entry, Expr, Field, Item, Literal, Macro, Node, OptMap, Select,
};
use crate::authorizer::Authorizer;
use crate::environment::Program;
use crate::error::{EvalError, other};
use crate::functions::{Context, Out};
use crate::limits::{Budget, PER_CALL};
use crate::value::{Entries, List, Map, Message, Text, Value};

/// Levels of expressions that may be open at a time: a variable of a policy opens those of another.
const OPEN_LEVELS_MAX: u32 = 600;

const COST_OF_LIST: u64 = 10;
const COST_OF_MAP: u64 = 30;
const COST_OF_MESSAGE: u64 = 40;
/// The loop's own condition and step.
const COST_OF_ROUND: u64 = 3;
/// Putting an entry into a map that is being made.
const COST_OF_ENTRY: u64 = 5;

/// What the names of an expression stand for.
#[derive(Default)]
pub struct Bindings<'a> {
    values: Vec<(&'a str, Value<'a>)>,
    variables: &'a [(String, Result<Program, String>)],
    /// One for each variable, once somebody asked for it.
    known: RefCell<Vec<Option<Out<'a>>>>,
    authorizer: Option<&'a dyn Authorizer>,
    open_levels: Cell<u32>,
    /// What of the whole request's budget is not this call's: variables are paid from it.
    reserve: Cell<u64>,
}

impl<'a> Bindings<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn with(mut self, name: &'a str, value: Value<'a>) -> Self {
        self.values.push((name, value));
        self
    }

    /// `variables`: programs by name, each evaluated when it is first asked for. One that did not
    /// compile gives its error.
    #[must_use]
    pub fn with_variables(mut self, programs: &'a [(String, Result<Program, String>)]) -> Self {
        self.variables = programs;
        self.known = RefCell::new(vec![None; programs.len()]);
        self.values.push(("variables", Value::Variables));
        self
    }

    #[must_use]
    pub fn with_authorizer(mut self, authorizer: &'a dyn Authorizer) -> Self {
        self.authorizer = Some(authorizer);
        self
    }
}

pub(crate) fn run<'a>(
    program: &'a Program,
    bindings: &Bindings<'a>,
    budget: &mut Budget,
) -> Out<'a> {
    let mut call = budget.for_call();
    bindings.reserve.set(budget.left() - call.left());
    let result = walk(program, bindings, &mut call);
    budget.leave(call.left() + bindings.reserve.get());
    result
}

fn walk<'a>(program: &'a Program, bindings: &Bindings<'a>, budget: &mut Budget) -> Out<'a> {
    let levels = bindings.open_levels.get() + u32::from(program.expr.depth);
    if levels > OPEN_LEVELS_MAX {
        return other("the variables of this policy are nested too deeply");
    }
    let before = bindings.open_levels.replace(levels);
    let context = Context { budget, regexes: &program.regexes, authorizer: bindings.authorizer };
    let mut walker = Walker { cx: context, bindings, locals: Vec::new() };
    let result = walker.expression(&program.expr);
    bindings.open_levels.set(before);
    result
}

struct Walker<'c, 'a> {
    cx: Context<'c, 'a>,
    bindings: &'c Bindings<'a>,
    locals: Vec<(&'a str, Value<'a>)>,
}

impl<'a> Walker<'_, 'a> {
    fn expression(&mut self, expr: &'a Expr) -> Out<'a> {
        match &expr.node {
            Node::Literal(literal) => Ok(constant(literal)),
            Node::TypeName(name) => Ok(Value::Type(Text::Borrowed(name))),
            Node::Ident(name) => self.name(name),
            Node::Select(select) => self.select(select),
            Node::Index { operand, index, optional } => self.index(operand, index, *optional),
            Node::Call(call) => self.call(call),
            Node::And(all) => self.logic(all, false),
            Node::Or(all) => self.logic(all, true),
            Node::Conditional(parts) => self.conditional(parts),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Struct { name, fields } => self.message(name, fields),
            Node::Comprehension(comprehension) => self.comprehension(comprehension),
            Node::OptMap(opt_map) => self.opt_map(opt_map),
        }
    }

    #[inline(never)]
    fn name(&mut self, name: &str) -> Out<'a> {
        self.cx.budget.charge(1)?;
        let local = self.locals.iter().rev().find(|(n, _)| *n == name);
        let found = local.or_else(|| self.bindings.values.iter().find(|(n, _)| *n == name));
        match found {
            Some((_, value)) => Ok(value.clone()),
            None => Err(EvalError::NoSuchAttribute(name.to_owned())),
        }
    }

    #[inline(never)]
    fn select(&mut self, select: &'a Select) -> Out<'a> {
        let operand = self.expression(&select.operand)?;
        if !select.test {
            self.cx.budget.charge(1)?;
        }
        let (operand, optional) = match operand {
            Value::Optional(None) if select.test => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::none()),
            Value::Optional(Some(inner)) => ((*inner).clone(), true),
            operand => (operand, select.optional),
        };
        let found = self.field(&operand, &select.field)?;
        match (select.test, optional, found) {
            (true, _, found) => Ok(Value::Bool(found.is_some())),
            (_, true, found) => Ok(found.map_or_else(Value::none, Value::some)),
            (_, false, Some(found)) => Ok(found),
            (_, false, None) => Err(EvalError::NoSuchKey(select.field.clone())),
        }
    }

    fn field(&mut self, of: &Value<'a>, field: &str) -> Result<Option<Value<'a>>, EvalError> {
        match of {
            Value::Map(map) => Ok(map.field(field)),
            Value::Message(message) => {
                let found = message.fields.iter().find(|(name, _)| *name == field);
                Ok(found.map(|(_, value)| value.clone()))
            }
            Value::Variables => self.variable(field),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    /// A policy's variable, evaluated once, with a limit of its own from the request's budget.
    fn variable(&mut self, name: &str) -> Result<Option<Value<'a>>, EvalError> {
        let programs: &'a [(String, Result<Program, String>)] = self.bindings.variables;
        let Some(i) = programs.iter().position(|(n, _)| n == name) else { return Ok(None) };
        if let Some(known) = &self.bindings.known.borrow()[i] {
            return known.clone().map(Some);
        }
        // Behind dyn(variables), one may ask for itself.
        let circular = other(format!("variable {name} depends on itself"));
        self.bindings.known.borrow_mut()[i] = Some(circular);
        let reserve = self.bindings.reserve.get();
        let mut budget = self.cx.budget.beside(reserve.min(PER_CALL));
        let given = budget.left();
        self.bindings.reserve.set(reserve - given);
        let result = match &programs[i].1 {
            Ok(program) => walk(program, self.bindings, &mut budget),
            Err(e) => other(format!("composited variable {name:?} fails to compile: {e}")),
        };
        self.bindings.reserve.set(self.bindings.reserve.get() + budget.left());
        let result = result.map_err(|e| match e.is_final() {
            true => e,
            false => {
                EvalError::Other(format!("composited variable {name:?} fails to evaluate: {e}"))
            }
        });
        self.bindings.known.borrow_mut()[i] = Some(result.clone());
        result.map(Some)
    }

    #[inline(never)]
    fn index(&mut self, operand: &'a Expr, index: &'a Expr, optional: bool) -> Out<'a> {
        let of = self.expression(operand)?;
        let by = self.expression(index)?;
        self.cx.budget.charge(1)?;
        let (of, optional) = match of {
            Value::Optional(None) => return Ok(Value::none()),
            Value::Optional(Some(inner)) => ((*inner).clone(), true),
            of => (of, optional),
        };
        let (found, missing) = match (&of, &by) {
            (Value::List(list), by) => {
                let Some(at) = whole(by) else { return Err(EvalError::NoSuchOverload) };
                let found = usize::try_from(at).ok().and_then(|at| list.get(at));
                (found, EvalError::OutOfBounds(at))
            }
            (Value::Map(map), by) => (map.get(by), EvalError::NoSuchKey(by.shown())),
            (Value::Message(_) | Value::Variables, Value::String(field)) => {
                let field = field.to_string();
                (self.field(&of, &field)?, EvalError::NoSuchKey(field))
            }
            _ => return Err(EvalError::NoSuchOverload),
        };
        match (optional, found) {
            (true, found) => Ok(found.map_or_else(Value::none, Value::some)),
            (false, Some(found)) => Ok(found),
            (false, None) => Err(missing),
        }
    }

    #[inline(never)]
    fn call(&mut self, call: &'a Call) -> Out<'a> {
        let Some(function) = call.resolved else {
            return other(format!("{} was not resolved", call.function));
        };
        let mut args = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = &call.target {
            let target = self.expression(target)?;
            // What stands in for nothing is not needed where there is something.
            match (&target, function.name) {
                (Value::Optional(Some(inner)), "orValue") => return Ok((**inner).clone()),
                (Value::Optional(Some(_)), "or") => return Ok(target),
                _ => {}
            }
            args.push(target);
        }
        for arg in &call.args {
            args.push(self.expression(arg)?);
        }
        self.cx.budget.charge(1)?;
        (function.run)(&mut self.cx, &args)
    }

    /// `&&` and `||`: one operand that decides does so whatever becomes of the others.
    #[inline(never)]
    fn logic(&mut self, all: &'a [Expr], decides: bool) -> Out<'a> {
        let mut failed = None;
        for (i, expr) in all.iter().enumerate() {
            if i > 0 {
                self.cx.budget.charge(1)?;
            }
            match self.expression(expr) {
                Ok(Value::Bool(b)) if b == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(EvalError::NoSuchOverload)),
                Err(e) if e.is_final() => return Err(e),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decides)), Err)
    }

    #[inline(never)]
    fn conditional(&mut self, parts: &'a [Expr; 3]) -> Out<'a> {
        let condition = self.expression(&parts[0])?;
        self.cx.budget.charge(1)?;
        match condition {
            Value::Bool(true) => self.expression(&parts[1]),
            Value::Bool(false) => self.expression(&parts[2]),
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    /// The value of a part of a literal; None if it is an optional one that has nothing.
    fn part(&mut self, optional: bool, expr: &'a Expr) -> Result<Option<Value<'a>>, EvalError> {
        match (optional, self.expression(expr)?) {
            (false, value) => Ok(Some(value)),
            (true, Value::Optional(inner)) => Ok(inner.map(|v| (*v).clone())),
            (true, _) => Err(EvalError::NoSuchOverload),
        }
    }

    #[inline(never)]
    fn list(&mut self, items: &'a [Item]) -> Out<'a> {
        self.cx.budget.charge(COST_OF_LIST)?;
        let mut made = Vec::with_capacity(items.len());
        for item in items {
            made.extend(self.part(item.optional, &item.value)?);
        }
        Ok(Value::list(made))
    }

    #[inline(never)]
    fn map(&mut self, entries: &'a [Entry]) -> Out<'a> {
        self.cx.budget.charge(COST_OF_MAP)?;
        let mut made = Entries::default();
        for entry in entries {
            let key = self.expression(&entry.key)?;
            if let Some(value) = self.part(entry.optional, &entry.value)? {
                made.insert(key, value)?;
            }
        }
        Ok(Value::Map(Map::Made(made.into())))
    }

    #[inline(never)]
    fn message(&mut self, name: &'a str, fields: &'a [Field]) -> Out<'a> {
        self.cx.budget.charge(COST_OF_MESSAGE)?;
        let mut made = Vec::with_capacity(fields.len());
        for field in fields {
            if let Some(value) = self.part(field.optional, &field.value)? {
                made.push((field.name.as_str(), value));
            }
        }
        Ok(Value::Message(Message { type_name: name, fields: made }.into()))
    }

    #[inline(never)]
    fn opt_map(&mut self, of: &'a OptMap) -> Out<'a> {
        let inner = match self.expression(&of.target)? {
            Value::Optional(Some(inner)) => (*inner).clone(),
            Value::Optional(None) => return Ok(Value::none()),
            _ => return Err(EvalError::NoSuchOverload),
        };
        self.cx.budget.charge(1)?;
        self.locals.push((&of.name, inner));
        let body = self.expression(&of.body);
        self.locals.pop();
        match (of.flat, body?) {
            (true, body) => Ok(body),
            (false, body) => Ok(Value::some(body)),
        }
    }

    #[inline(never)]
    fn comprehension(&mut self, of: &'a Comprehension) -> Out<'a> {
        let range = self.expression(&of.range)?;
        let mut gathered = Gathered::default();
        let known = self.locals.len();
        let two = of.second.as_deref();
        let result = match &range {
            Value::List(list) => self.over_list(of, list, two, &mut gathered),
            Value::Map(map) => self.over_map(of, map, two, &mut gathered),
            _ => Err(EvalError::NoSuchOverload),
        };
        self.locals.truncate(known);
        result?;
        gathered.value(of.kind)
    }

    fn over_list(
        &mut self,
        of: &'a Comprehension,
        list: &List<'a>,
        second: Option<&'a str>,
        gathered: &mut Gathered<'a>,
    ) -> Result<(), EvalError> {
        for i in 0..list.len() {
            let Some(item) = list.get(i) else { break };
            let done = match second {
                None => self.round(of, (item.clone(), None), item, gathered)?,
                Some(_) => {
                    let key = Value::Int(i as i64);
                    self.round(of, (key.clone(), Some(item)), key, gathered)?
                }
            };
            if done {
                break;
            }
        }
        Ok(())
    }

    fn over_map(
        &mut self,
        of: &'a Comprehension,
        map: &Map<'a>,
        second: Option<&'a str>,
        gathered: &mut Gathered<'a>,
    ) -> Result<(), EvalError> {
        for (key, value) in map.entries() {
            let value = second.map(|_| value);
            if self.round(of, (key.clone(), value), key, gathered)? {
                break;
            }
        }
        Ok(())
    }

    /// One round with its variables bound; whether the outcome is decided.
    fn round(
        &mut self,
        of: &'a Comprehension,
        (first, second): (Value<'a>, Option<Value<'a>>),
        key: Value<'a>,
        gathered: &mut Gathered<'a>,
    ) -> Result<bool, EvalError> {
        self.cx.budget.charge(COST_OF_ROUND)?;
        let known = self.locals.len();
        self.locals.push((&of.first, first.clone()));
        if let (Some(name), Some(value)) = (&of.second, second) {
            self.locals.push((name, value));
        }
        let done = self.step(of, first, key, gathered);
        self.locals.truncate(known);
        done
    }

    fn step(
        &mut self,
        of: &'a Comprehension,
        first: Value<'a>,
        key: Value<'a>,
        gathered: &mut Gathered<'a>,
    ) -> Result<bool, EvalError> {
        let holds = match &of.condition {
            None => true,
            Some(condition) => match (self.expression(condition), of.kind) {
                (Ok(Value::Bool(b)), _) => b,
                (Err(e), _) if e.is_final() => return Err(e),
                // As `&&` and `||` do, one element that decides outweighs an error.
                (outcome, Macro::All | Macro::Exists) => {
                    let e = outcome.err().unwrap_or(EvalError::NoSuchOverload);
                    gathered.failed.get_or_insert(e);
                    return Ok(false);
                }
                (Ok(_), _) => return Err(EvalError::NoSuchOverload),
                (Err(e), _) => return Err(e),
            },
        };
        match of.kind {
            Macro::All => {
                gathered.decided = !holds;
                return Ok(!holds);
            }
            Macro::Exists => {
                gathered.decided = holds;
                return Ok(holds);
            }
            _ if !holds => return Ok(false),
            Macro::ExistsOne => gathered.count += 1,
            Macro::Filter => gathered.items.push(first),
            Macro::Map | Macro::TransformList | Macro::TransformMap | Macro::TransformMapEntry => {
                let Some(transform) = &of.transform else { return Err(EvalError::NoSuchOverload) };
                let made = self.expression(transform)?;
                if matches!(of.kind, Macro::TransformMap | Macro::TransformMapEntry) {
                    self.cx.budget.charge(COST_OF_ENTRY)?;
                }
                gathered.add(of.kind, key, made)?;
            }
        }
        Ok(false)
    }
}

/// What the rounds of a comprehension come to.
#[derive(Default)]
struct Gathered<'a> {
    items: Vec<Value<'a>>,
    entries: Entries<'a>,
    count: usize,
    /// An element decided `all` or `exists`.
    decided: bool,
    failed: Option<EvalError>,
}

impl<'a> Gathered<'a> {
    fn add(&mut self, kind: Macro, key: Value<'a>, made: Value<'a>) -> Result<(), EvalError> {
        match (kind, made) {
            (Macro::TransformMap, made) => self.entries.insert(key, made),
            (Macro::TransformMapEntry, Value::Map(map)) => {
                map.entries().try_for_each(|(key, value)| self.entries.insert(key, value))
            }
            (Macro::TransformMapEntry, _) => Err(EvalError::NoSuchOverload),
            (_, made) => {
                self.items.push(made);
                Ok(())
            }
        }
    }

    fn value(self, kind: Macro) -> Out<'a> {
        match kind {
            Macro::All | Macro::Exists if self.decided => Ok(Value::Bool(kind == Macro::Exists)),
            Macro::All | Macro::Exists => match self.failed {
                Some(e) => Err(e),
                None => Ok(Value::Bool(kind == Macro::All)),
            },
            Macro::ExistsOne => Ok(Value::Bool(self.count == 1)),
            Macro::TransformMap | Macro::TransformMapEntry => {
                Ok(Value::Map(Map::Made(self.entries.into())))
            }
            Macro::Map | Macro::Filter | Macro::TransformList => Ok(Value::list(self.items)),
        }
    }
}

fn constant(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(n) => Value::Int(*n),
        Literal::Uint(n) => Value::Uint(*n),
        Literal::Double(n) => Value::Double(*n),
        Literal::String(text) => Value::borrowed(text),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

fn whole(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        Value::Uint(n) => i64::try_from(*n).ok(),
        Value::Double(n) if n.fract() == 0.0 && n.abs() < 9e15 => Some(*n as i64),
        _ => None,
    }
}
