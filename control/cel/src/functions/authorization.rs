//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-authorizer-library>

use std::sync::Arc;

use super::standard::text_of;
use super::{Context, Out, Row, no_overload};
use crate::authorizer::{Asked, Check, Decision};
use crate::error::{EvalError, other};
use crate::value::Value;

/// Two checks an expression, not more: a check may ask another server.
const CHECK_COST: u64 = 350_000;

pub const ROWS: &[Row] = &[
    ("path", &["Authorizer.path(string) -> PathCheck"], |_, args| {
        let path = text_of(&args[1])?;
        match (check(&args[0])?, path) {
            (_, "") => other("path must not be empty"),
            (Check::Authorizer(asked), path) => {
                made(Check::Path(Asked { path: path.into(), ..asked.clone() }))
            }
            _ => no_overload(),
        }
    }),
    ("group", &["Authorizer.group(string) -> GroupCheck"], |_, args| {
        match (check(&args[0])?, text_of(&args[1])?) {
            (Check::Authorizer(asked), group) => {
                made(Check::Group(Asked { group: group.into(), ..asked.clone() }))
            }
            _ => no_overload(),
        }
    }),
    (
        "serviceAccount",
        &["Authorizer.serviceAccount(string, string) -> Authorizer"],
        service_account,
    ),
    ("resource", &["GroupCheck.resource(string) -> ResourceCheck"], |_, args| {
        match (check(&args[0])?, text_of(&args[1])?) {
            (_, "") => other("resource must not be empty"),
            (Check::Group(asked), resource) => {
                made(Check::Resource(Asked { resource: resource.into(), ..asked.clone() }))
            }
            _ => no_overload(),
        }
    }),
    ("subresource", &["ResourceCheck.subresource(string) -> ResourceCheck"], |_, args| {
        narrowed(args, |asked, text| asked.subresource = text)
    }),
    ("namespace", &["ResourceCheck.namespace(string) -> ResourceCheck"], |_, args| {
        narrowed(args, |asked, text| asked.namespace = text)
    }),
    ("name", &["ResourceCheck.name(string) -> ResourceCheck"], |_, args| {
        narrowed(args, |asked, text| asked.name = text)
    }),
    ("fieldSelector", &["ResourceCheck.fieldSelector(string) -> ResourceCheck"], |cx, args| {
        cx.budget.traverse(args[1].size())?;
        narrowed(args, |asked, text| asked.field_selector = text)
    }),
    ("labelSelector", &["ResourceCheck.labelSelector(string) -> ResourceCheck"], |cx, args| {
        cx.budget.traverse(args[1].size())?;
        narrowed(args, |asked, text| asked.label_selector = text)
    }),
    (
        "check",
        &["PathCheck.check(string) -> Decision", "ResourceCheck.check(string) -> Decision"],
        run,
    ),
    ("allowed", &["Decision.allowed() -> bool"], |_, args| {
        Ok(Value::Bool(decision(&args[0])?.allowed))
    }),
    ("reason", &["Decision.reason() -> string"], |_, args| {
        Ok(Value::text(decision(&args[0])?.reason.as_str()))
    }),
    ("errored", &["Decision.errored() -> bool"], |_, args| {
        Ok(Value::Bool(!decision(&args[0])?.error.is_empty()))
    }),
    ("error", &["Decision.error() -> string"], |_, args| {
        Ok(Value::text(decision(&args[0])?.error.as_str()))
    }),
];

fn check<'v>(value: &'v Value<'_>) -> Result<&'v Check, EvalError> {
    match value {
        Value::Check(check) => Ok(check),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn decision<'v>(value: &'v Value<'_>) -> Result<&'v Decision, EvalError> {
    match check(value)? {
        Check::Decision(decision) => Ok(decision),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn made<'a>(check: Check) -> Out<'a> {
    Ok(Value::Check(Arc::new(check)))
}

fn narrowed<'a>(args: &[Value<'a>], set: fn(&mut Asked, String)) -> Out<'a> {
    match check(&args[0])? {
        Check::Resource(asked) => {
            let mut asked = asked.clone();
            set(&mut asked, text_of(&args[1])?.to_owned());
            made(Check::Resource(asked))
        }
        _ => no_overload(),
    }
}

fn service_account<'a>(_: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let (namespace, name) = (text_of(&args[1])?, text_of(&args[2])?);
    if !rimward_api::names::dns1123_subdomain(name).is_empty() {
        return other("Invalid service account name");
    }
    if !rimward_api::names::dns1123_label(namespace).is_empty() {
        return other("Invalid service account namespace");
    }
    match check(&args[0])? {
        Check::Authorizer(asked) => {
            let service_account = Some((namespace.to_owned(), name.to_owned()));
            made(Check::Authorizer(Asked { service_account, ..asked.clone() }))
        }
        _ => no_overload(),
    }
}

fn run<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let asked = match check(&args[0])? {
        Check::Path(asked) | Check::Resource(asked) => asked,
        _ => return no_overload(),
    };
    cx.budget.charge(CHECK_COST)?;
    let Some(authorizer) = cx.authorizer else {
        return other("no authorizer is at hand");
    };
    let asked = Asked { verb: text_of(&args[1])?.to_owned(), ..asked.clone() };
    made(Check::Decision(authorizer.check(&asked)))
}
