//! Types before values: what a name refers to, which function is called, what comes out.
//! <https://github.com/google/cel-spec/blob/master/doc/langdef.md#gradual-type-checking>

use crate::ast::{
    Call, Comprehension, Entry, Expr, Field, Item, Literal, Macro, Node, OptMap, Select,
};
use crate::environment::Environment;
use crate::error::Issue;
use crate::functions::{self, Function, Regexes};
use crate::types::{Bound, NAMED, Type};

/// Faults of one expression that are told.
const ISSUES_MAX: usize = 10;

pub struct Checked {
    pub output: Type,
    /// The declared variables that it names.
    pub used: Vec<String>,
    pub regexes: Regexes,
}

/// Checks a tree and resolves it in place.
pub fn check(expr: &mut Expr, environment: &Environment) -> Result<Checked, Vec<Issue>> {
    let mut checker = Checker {
        environment,
        locals: Vec::new(),
        issues: Vec::new(),
        regexes: Regexes::default(),
        used: Vec::new(),
    };
    let output = checker.expression(expr);
    match checker.issues.is_empty() {
        true => Ok(Checked { output, used: checker.used, regexes: checker.regexes }),
        false => Err(checker.issues),
    }
}

struct Checker<'e> {
    environment: &'e Environment,
    locals: Vec<(String, Type)>,
    issues: Vec<Issue>,
    regexes: Regexes,
    used: Vec<String>,
}

/// Types that can be written as a value: `type(x) == int`.
const TYPE_NAMES: [&str; 15] = [
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional_type",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "timestamp",
    "duration",
];

impl Checker<'_> {
    fn fault(&mut self, at: u32, message: String) -> Type {
        if self.issues.len() < ISSUES_MAX {
            self.issues.push(Issue { at, message });
        }
        // Whatever comes of a fault is no fault of its own.
        Type::Dyn
    }

    fn undeclared(&mut self, at: u32, name: &str) -> Type {
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn expression(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        match &mut expr.node {
            Node::Literal(literal) => of_literal(literal),
            Node::TypeName(_) => Type::Type,
            Node::Ident(_) | Node::Select(_) => self.name_or_select(expr),
            Node::Index { operand, index, optional } => {
                let optional = *optional;
                self.index(operand, index, optional, at)
            }
            Node::Call(call) => self.call(call, at),
            Node::And(all) => self.logic(all, "_&&_", at),
            Node::Or(all) => self.logic(all, "_||_", at),
            Node::Conditional(parts) => self.conditional(parts, at),
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Struct { name, fields } => self.message(name, fields, at),
            Node::Comprehension(comprehension) => self.comprehension(comprehension),
            Node::OptMap(opt_map) => self.opt_map(opt_map),
        }
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.locals.iter().rev().find(|(n, _)| n == name);
        let found = local.or_else(|| self.environment.variables.iter().find(|(n, _)| n == name));
        found.map(|(_, t)| t.clone())
    }

    #[inline(never)]
    fn name_or_select(&mut self, expr: &mut Expr) -> Type {
        let at = expr.at;
        if let Node::Ident(name) = &expr.node
            && let Some(found) = self.variable(name)
        {
            if !self.locals.iter().any(|(local, _)| local == name) && !self.used.contains(name) {
                self.used.push(name.clone());
            }
            return found;
        }
        // `authorizer.requestResource` is one variable.
        if matches!(expr.node, Node::Select(_))
            && let Some(name) = expr.qualified_name()
            && let Some((_, found)) = self.environment.variables.iter().find(|(n, _)| *n == name)
        {
            expr.node = Node::Ident(name);
            return found.clone();
        }
        // `net.IP` reads like a selection.
        let first = first_name(expr);
        if first.is_some_and(|first| self.variable(first).is_none())
            && let Some(name) = expr.qualified_name()
        {
            let named = NAMED.iter().any(|(_, full)| *full == name);
            if named || TYPE_NAMES.contains(&name.as_str()) {
                let runtime = match name.as_str() {
                    "timestamp" => "google.protobuf.Timestamp".to_owned(),
                    "duration" => "google.protobuf.Duration".to_owned(),
                    _ => name,
                };
                expr.node = Node::TypeName(runtime);
                return Type::Type;
            }
        }
        match &mut expr.node {
            Node::Ident(name) => {
                let name = name.clone();
                self.undeclared(at, &name)
            }
            Node::Select(select) => self.select(select, at),
            _ => unreachable!("called for names and selections"),
        }
    }

    fn select(&mut self, select: &mut Select, at: u32) -> Type {
        let operand = self.expression(&mut select.operand);
        let (inner, mut optional) = match &operand {
            Type::Optional(inner) => ((**inner).clone(), true),
            other => (other.clone(), false),
        };
        let found = self.field(&inner, &select.field, at);
        optional |= select.optional;
        match (select.test, optional) {
            (true, _) => Type::Bool,
            (false, true) => Type::optional(found),
            (false, false) => found,
        }
    }

    fn field(&mut self, of: &Type, field: &str, at: u32) -> Type {
        match of {
            Type::Dyn | Type::Param(_) => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Object(schema) => match schema.property(field) {
                Some(property) => Type::of(&property.schema),
                None => self.fault(at, format!("undefined field '{field}'")),
            },
            Type::Variables(variables) => match variables.iter().find(|(n, _)| n == field) {
                Some((_, t)) => t.clone(),
                None => self.fault(at, format!("undefined field '{field}'")),
            },
            Type::Message(_) => Type::Dyn,
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.fault(at, message)
            }
        }
    }

    #[inline(never)]
    fn index(&mut self, operand: &mut Expr, index: &mut Expr, optional: bool, at: u32) -> Type {
        let of = self.expression(operand);
        let by = self.expression(index);
        let (inner, optional) = match &of {
            Type::Optional(inner) => ((**inner).clone(), true),
            other => (other.clone(), optional),
        };
        let mut bound = Bound::default();
        let found = match &inner {
            Type::Dyn => Some(Type::Dyn),
            Type::List(item) if bound.accepts(&Type::Int, &by) => Some((**item).clone()),
            Type::Map(key, value) if bound.accepts(key, &by) => Some((**value).clone()),
            _ => None,
        };
        match found {
            Some(found) if optional => Type::optional(found),
            Some(found) => found,
            None => self.no_overload("_[_]", None, &[of, by], at),
        }
    }

    fn no_overload(&mut self, name: &str, target: Option<&Type>, args: &[Type], at: u32) -> Type {
        let args: Vec<String> = args.iter().map(Type::to_string).collect();
        let before = target.map_or_else(String::new, |t| format!("{t}."));
        let given = format!("{before}({})", args.join(", "));
        self.fault(at, format!("found no matching overload for '{name}' applied to '{given}'"))
    }

    #[inline(never)]
    fn call(&mut self, call: &mut Call, at: u32) -> Type {
        // `sets.contains(…)`: what reads like a target is a part of the name.
        if let Some(target) = &call.target
            && first_name(target).is_some_and(|first| self.variable(first).is_none())
            && let Some(qualifier) = target.qualified_name()
            && let Some(function) = self.find(&format!("{qualifier}.{}", call.function))
        {
            call.function = function.name.to_owned();
            call.target = None;
        }
        let Some(function) = self.find(&call.function) else {
            let name = call.function.clone();
            return self.undeclared(at, &name);
        };
        let target = call.target.as_mut().map(|target| self.expression(target));
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &mut call.args {
            args.push(match &mut arg.node {
                // What is put into a text may be of any type.
                Node::List(items) if function.name == "format" => self.mixed(items),
                _ => self.expression(arg),
            });
        }
        call.resolved = Some(function);
        self.literals(function.name, &call.args, at);
        let given: Vec<&Type> = target.iter().chain(&args).collect();
        match result(function, target.is_some(), &given) {
            Some(result) => result,
            None => self.no_overload(function.name, target.as_ref(), &args, at),
        }
    }

    fn find(&self, name: &str) -> Option<&'static Function> {
        let for_patches = name.starts_with("jsonpatch.");
        functions::find(name).filter(|_| !for_patches || self.environment.patches)
    }

    /// Arguments that stand there as text are looked at now.
    fn literals(&mut self, function: &str, args: &[Expr], at: u32) {
        let Some(Node::Literal(Literal::String(text))) = args.last().map(|a| &a.node) else {
            return;
        };
        let right = match function {
            "matches" => self.regexes.add(text).is_ok(),
            "find" | "findAll" => {
                // A wrong one is refused when it runs, as Kubernetes does.
                let _ = self.regexes.add(text);
                true
            }
            "timestamp" => functions::time::parse_timestamp(text).is_some(),
            "duration" => functions::time::parse_duration(text).is_some(),
            _ => true,
        };
        if !right {
            let at = args.last().map_or(at, |a| a.at);
            self.fault(at, format!("invalid {function} argument"));
        }
    }

    #[inline(never)]
    fn logic(&mut self, all: &mut [Expr], name: &str, at: u32) -> Type {
        let types: Vec<Type> = all.iter_mut().map(|e| self.expression(e)).collect();
        match types.iter().all(|t| matches!(t, Type::Bool | Type::Dyn)) {
            true => Type::Bool,
            false => self.no_overload(name, None, &types, at),
        }
    }

    #[inline(never)]
    fn conditional(&mut self, parts: &mut [Expr; 3], at: u32) -> Type {
        let [condition, yes, no] = parts;
        let types = [self.expression(condition), self.expression(yes), self.expression(no)];
        let mut bound = Bound::default();
        let a = Type::Param('A');
        let right = bound.accepts(&Type::Bool, &types[0])
            && bound.accepts(&a, &types[1])
            && bound.accepts(&a, &types[2]);
        match right {
            true if types[1..].iter().any(|t| matches!(t, Type::Dyn)) => Type::Dyn,
            true => bound.fill(&a),
            false => self.no_overload("_?_:_", None, &types, at),
        }
    }

    /// The type that all elements of a literal have; the first decides.
    fn joined(&mut self, so_far: Option<Type>, next: Type, at: u32) -> Option<Type> {
        let Some(first) = so_far else { return Some(next) };
        let mut bound = Bound::default();
        if bound.accepts(&first, &next) {
            return Some(if matches!(next, Type::Dyn) { Type::Dyn } else { first });
        }
        if bound.accepts(&next, &first) {
            return Some(next);
        }
        self.fault(at, format!("expected type '{first}' but found '{next}'"));
        Some(first)
    }

    fn unwrapped(&mut self, optional: bool, of: Type, at: u32) -> Type {
        match (optional, of) {
            (false, of) => of,
            (true, Type::Optional(inner)) => (*inner).clone(),
            (true, Type::Dyn) => Type::Dyn,
            (true, of) => {
                self.fault(at, format!("expected type 'optional_type({of})' but found '{of}'"))
            }
        }
    }

    #[inline(never)]
    fn list(&mut self, items: &mut [Item]) -> Type {
        let mut of = None;
        for item in items {
            let t = self.expression(&mut item.value);
            let t = self.unwrapped(item.optional, t, item.value.at);
            of = self.joined(of, t, item.value.at);
        }
        Type::list(of.unwrap_or(Type::Dyn))
    }

    fn mixed(&mut self, items: &mut [Item]) -> Type {
        for item in items {
            let t = self.expression(&mut item.value);
            self.unwrapped(item.optional, t, item.value.at);
        }
        Type::list(Type::Dyn)
    }

    #[inline(never)]
    fn map(&mut self, entries: &mut [Entry]) -> Type {
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            let key = self.expression(&mut entry.key);
            keys = self.joined(keys, key, entry.key.at);
            let value = self.expression(&mut entry.value);
            let value = self.unwrapped(entry.optional, value, entry.value.at);
            values = self.joined(values, value, entry.value.at);
        }
        Type::map(keys.unwrap_or(Type::Dyn), values.unwrap_or(Type::Dyn))
    }

    /// `Object{…}`, `Object.spec{…}`, `JSONPatch{…}`: only mutations know them.
    #[inline(never)]
    fn message(&mut self, name: &str, fields: &mut [Field], at: u32) -> Type {
        let object = name == "Object" || name.starts_with("Object.");
        if !self.environment.patches || !(object || name == "JSONPatch") {
            return self.undeclared(at, name);
        }
        for field in fields {
            let t = self.expression(&mut field.value);
            let t = self.unwrapped(field.optional, t, field.value.at);
            let wanted = match (object, field.name.as_str()) {
                (true, _) | (false, "value") => continue,
                (false, "op" | "path" | "from") => Type::String,
                (false, unknown) => {
                    self.fault(field.at, format!("undefined field '{unknown}'"));
                    continue;
                }
            };
            if !Bound::default().accepts(&wanted, &t) {
                let message = format!(
                    "expected type of field '{}' is '{wanted}' but provided type is '{t}'",
                    field.name
                );
                self.fault(field.at, message);
            }
        }
        Type::Message(name.to_owned())
    }

    #[inline(never)]
    fn comprehension(&mut self, of: &mut Comprehension) -> Type {
        let range = self.expression(&mut of.range);
        let (first, second) = match (&range, &of.second) {
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (Type::List(item), Some(_)) => (Type::Int, (**item).clone()),
            (Type::List(item), None) => ((**item).clone(), Type::Dyn),
            (Type::Map(key, value), _) => ((**key).clone(), (**value).clone()),
            (other, _) => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                let at = of.range.at;
                (self.fault(at, message), Type::Dyn)
            }
        };
        let known = self.locals.len();
        self.locals.push((of.first.clone(), first.clone()));
        if let Some(name) = &of.second {
            self.locals.push((name.clone(), second));
        }
        if let Some(condition) = &mut of.condition {
            let t = self.expression(condition);
            if !matches!(t, Type::Bool | Type::Dyn) {
                let at = condition.at;
                self.fault(at, format!("expected type 'bool' but found '{t}'"));
            }
        }
        let made = of.transform.as_mut().map(|e| self.expression(e));
        self.locals.truncate(known);
        let made = made.unwrap_or(Type::Dyn);
        match of.kind {
            Macro::All | Macro::Exists | Macro::ExistsOne => Type::Bool,
            Macro::Filter => Type::list(first),
            Macro::Map | Macro::TransformList => Type::list(made),
            Macro::TransformMap => match range {
                Type::Map(key, _) => Type::map((*key).clone(), made),
                Type::List(_) => Type::map(Type::Int, made),
                _ => Type::map(Type::Dyn, made),
            },
            Macro::TransformMapEntry => match made {
                made @ Type::Map(..) => made,
                _ => Type::map(Type::Dyn, Type::Dyn),
            },
        }
    }

    #[inline(never)]
    fn opt_map(&mut self, of: &mut OptMap) -> Type {
        let target = self.expression(&mut of.target);
        let inner = match target {
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn => Type::Dyn,
            other => {
                let at = of.target.at;
                self.fault(at, format!("expected type 'optional_type' but found '{other}'"))
            }
        };
        self.locals.push((of.name.clone(), inner));
        let body = self.expression(&mut of.body);
        self.locals.pop();
        match (of.flat, body) {
            (false, body) => Type::optional(body),
            (true, body @ (Type::Optional(_) | Type::Dyn)) => body,
            (true, other) => {
                let at = of.body.at;
                self.fault(at, format!("expected type 'optional_type' but found '{other}'"))
            }
        }
    }
}

fn first_name(expr: &Expr) -> Option<&str> {
    match &expr.node {
        Node::Ident(name) => Some(name),
        Node::Select(select) => first_name(&select.operand),
        _ => None,
    }
}

fn of_literal(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}

/// What a call gives: the one result of all signatures that fit, or anything if they differ.
fn result(function: &Function, member: bool, given: &[&Type]) -> Option<Type> {
    let mut found: Option<Type> = None;
    for overload in &function.overloads {
        if overload.member != member || overload.params.len() != given.len() {
            continue;
        }
        let mut bound = Bound::default();
        if !overload.params.iter().zip(given).all(|(want, have)| bound.accepts(want, have)) {
            continue;
        }
        let result = bound.fill(&overload.result);
        found = Some(match found {
            Some(before) if !before.same(&result) => Type::Dyn,
            _ => result,
        });
    }
    found
}
