//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-quantity-library>

use rimward_api::quantity::Quantity;

use super::standard::text_of;
use super::{Context, Out, Row};
use crate::error::{EvalError, other};
use crate::value::Value;

pub const ROWS: &[Row] = &[
    ("quantity", &["quantity(string) -> Quantity"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len())?;
        Quantity::parse(text).map(Value::Quantity).map_err(|e| EvalError::Other(e.to_string()))
    }),
    ("isQuantity", &["isQuantity(string) -> bool"], |cx, args| {
        let text = text_of(&args[0])?;
        cx.budget.traverse(text.len())?;
        Ok(Value::Bool(Quantity::parse(text).is_ok()))
    }),
    ("sign", &["Quantity.sign() -> int"], |_, args| {
        let quantity = of(&args[0])?;
        Ok(Value::Int(match (quantity.is_zero(), quantity.is_negative()) {
            (true, _) => 0,
            (_, true) => -1,
            _ => 1,
        }))
    }),
    ("isInteger", &["Quantity.isInteger() -> bool"], |_, args| {
        Ok(Value::Bool(of(&args[0])?.is_whole()))
    }),
    ("asInteger", &["Quantity.asInteger() -> int"], |_, args| match of(&args[0])? {
        quantity if quantity.is_whole() => Ok(Value::Int(quantity.value())),
        _ => other("cannot convert value to integer"),
    }),
    ("asApproximateFloat", &["Quantity.asApproximateFloat() -> double"], |_, args| {
        Ok(Value::Double(of(&args[0])?.approximate()))
    }),
    ("add", &["Quantity.add(Quantity) -> Quantity", "Quantity.add(int) -> Quantity"], |_, args| {
        Ok(Value::Quantity(*of(&args[0])? + number(&args[1])?))
    }),
    ("sub", &["Quantity.sub(Quantity) -> Quantity", "Quantity.sub(int) -> Quantity"], |_, args| {
        Ok(Value::Quantity(*of(&args[0])? - number(&args[1])?))
    }),
    (
        "isGreaterThan",
        &["Quantity.isGreaterThan(Quantity) -> bool", "Semver.isGreaterThan(Semver) -> bool"],
        |cx, args| compare(cx, args, |order| Value::Bool(order.is_gt())),
    ),
    (
        "isLessThan",
        &["Quantity.isLessThan(Quantity) -> bool", "Semver.isLessThan(Semver) -> bool"],
        |cx, args| compare(cx, args, |order| Value::Bool(order.is_lt())),
    ),
    (
        "compareTo",
        &["Quantity.compareTo(Quantity) -> int", "Semver.compareTo(Semver) -> int"],
        |cx, args| compare(cx, args, |order| Value::Int(order as i64)),
    ),
];

fn of<'v>(value: &'v Value<'_>) -> Result<&'v Quantity, EvalError> {
    match value {
        Value::Quantity(quantity) => Ok(quantity),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn number(value: &Value<'_>) -> Result<Quantity, EvalError> {
    match value {
        Value::Int(n) => Ok(Quantity::from_whole(*n)),
        value => of(value).copied(),
    }
}

fn compare<'a>(
    _: &mut Context<'_, 'a>,
    args: &[Value<'a>],
    say: fn(std::cmp::Ordering) -> Value<'a>,
) -> Out<'a> {
    match (&args[0], &args[1]) {
        (Value::Quantity(_), Value::Quantity(_)) | (Value::Semver(_), Value::Semver(_)) => {
            args[0].compare(&args[1]).map(say).ok_or(EvalError::NoSuchOverload)
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}
