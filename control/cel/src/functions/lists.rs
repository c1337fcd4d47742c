//! Kubernetes' list functions, and <https://pkg.go.dev/github.com/google/cel-go/ext#Lists> version 3.

use std::cmp::Ordering;

use super::standard::{int_of, list_of};
use super::{Context, Out, Row, no_overload};
use crate::error::{EvalError, other};
use crate::limits::Budget;
use crate::schema::ListType;
use crate::value::{List, Value, position};

macro_rules! of_ordered {
    ($name:literal, $result:literal) => {
        &[
            concat!("list<int>.", $name, "() -> ", $result),
            concat!("list<uint>.", $name, "() -> ", $result),
            concat!("list<double>.", $name, "() -> ", $result),
            concat!("list<bool>.", $name, "() -> ", $result),
            concat!("list<string>.", $name, "() -> ", $result),
            concat!("list<bytes>.", $name, "() -> ", $result),
            concat!("list<duration>.", $name, "() -> ", $result),
            concat!("list<timestamp>.", $name, "() -> ", $result),
        ]
    };
}

macro_rules! one_of_ordered {
    ($name:literal) => {
        &[
            concat!("list<int>.", $name, "() -> int"),
            concat!("list<uint>.", $name, "() -> uint"),
            concat!("list<double>.", $name, "() -> double"),
            concat!("list<bool>.", $name, "() -> bool"),
            concat!("list<string>.", $name, "() -> string"),
            concat!("list<bytes>.", $name, "() -> bytes"),
            concat!("list<duration>.", $name, "() -> duration"),
            concat!("list<timestamp>.", $name, "() -> timestamp"),
        ]
    };
}

/// Elements that `lists.range` makes at most.
const RANGE_MAX: i64 = 1_000_000;

pub const ROWS: &[Row] = &[
    ("isSorted", of_ordered!("isSorted", "bool"), is_sorted),
    (
        "sum",
        &[
            "list<int>.sum() -> int",
            "list<uint>.sum() -> uint",
            "list<double>.sum() -> double",
            "list<duration>.sum() -> duration",
        ],
        sum,
    ),
    ("min", one_of_ordered!("min"), |cx, args| extreme(cx, args, Ordering::Less, "min")),
    ("max", one_of_ordered!("max"), |cx, args| extreme(cx, args, Ordering::Greater, "max")),
    ("slice", &["list<A>.slice(int, int) -> list<A>"], slice),
    ("flatten", &["list<A>.flatten() -> list<dyn>", "list<A>.flatten(int) -> list<dyn>"], flatten),
    ("lists.range", &["lists.range(int) -> list<int>"], range),
    ("distinct", &["list<A>.distinct() -> list<A>"], distinct),
    ("reverse", &["list<A>.reverse() -> list<A>"], reverse),
    (
        "sort",
        &[
            "list<int>.sort() -> list<int>",
            "list<uint>.sort() -> list<uint>",
            "list<double>.sort() -> list<double>",
            "list<bool>.sort() -> list<bool>",
            "list<string>.sort() -> list<string>",
            "list<bytes>.sort() -> list<bytes>",
            "list<duration>.sort() -> list<duration>",
            "list<timestamp>.sort() -> list<timestamp>",
        ],
        |cx, args| sort_by_keys(cx, list_of(&args[0])?, list_of(&args[0])?),
    ),
    (
        "@sortByAssociatedKeys",
        &["list<A>.@sortByAssociatedKeys(list<B>) -> list<A>"],
        |cx, args| sort_by_keys(cx, list_of(&args[0])?, list_of(&args[1])?),
    ),
    ("first", &["list<A>.first() -> optional<A>"], |_, args| {
        Ok(list_of(&args[0])?.get(0).map_or_else(Value::none, Value::some))
    }),
    ("last", &["list<A>.last() -> optional<A>"], |_, args| {
        let list = list_of(&args[0])?;
        let last = list.len().checked_sub(1).and_then(|i| list.get(i));
        Ok(last.map_or_else(Value::none, Value::some))
    }),
];

fn pay(budget: &mut Budget, item: &Value<'_>) -> Result<(), EvalError> {
    budget.charge(1)?;
    budget.traverse(item.size())
}

fn is_sorted<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let mut before: Option<Value<'a>> = None;
    for item in list_of(&args[0])?.iter() {
        pay(cx.budget, &item)?;
        if let Some(before) = &before {
            match before.compare(&item) {
                Some(Ordering::Greater) => return Ok(Value::Bool(false)),
                Some(_) => {}
                None => return no_overload(),
            }
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let mut total: Option<Value<'a>> = None;
    let add = super::find("_+_").expect("a standard function").run;
    for item in list_of(&args[0])?.iter() {
        cx.budget.charge(1)?;
        total = Some(match total {
            None => item,
            Some(total) => add(cx, &[total, item])?,
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

fn extreme<'a>(
    cx: &mut Context<'_, 'a>,
    args: &[Value<'a>],
    wanted: Ordering,
    name: &str,
) -> Out<'a> {
    let mut best: Option<Value<'a>> = None;
    for item in list_of(&args[0])?.iter() {
        pay(cx.budget, &item)?;
        best = Some(match best {
            None => item,
            Some(best) => match item.compare(&best) {
                Some(order) if order == wanted => item,
                Some(_) => best,
                None => return no_overload(),
            },
        });
    }
    match best {
        Some(best) => Ok(best),
        None => other(format!("{name} called on empty list")),
    }
}

pub fn index_of<'a>(
    cx: &mut Context<'_, 'a>,
    list: &List<'a>,
    wanted: &Value<'a>,
    last: bool,
) -> Out<'a> {
    let mut found = -1;
    for (i, item) in list.iter().enumerate() {
        cx.budget.charge(1)?;
        if item.equals(wanted, cx.budget)? {
            found = i as i64;
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}

/// `a + b`. Of a set, what is new; of a map, `b`'s elements take the place of those with their keys:
/// <https://kubernetes.io/docs/reference/using-api/cel/#type-system-integration>
pub fn concatenate<'a>(cx: &mut Context<'_, 'a>, a: &List<'a>, b: &List<'a>) -> Out<'a> {
    cx.budget.charge((a.len() + b.len()) as u64)?;
    let mut items: Vec<Value<'a>> = a.iter().collect();
    let kind = a.list_type();
    let Some(schema) = a.schema().filter(|_| *kind != ListType::Atomic) else {
        items.extend(b.iter());
        return Ok(Value::list(items));
    };
    for item in b.iter() {
        match position(a, &item, kind, cx.budget)? {
            None => items.push(item),
            Some(at) if matches!(kind, ListType::Map(_)) => items[at] = item,
            Some(_) => {}
        }
    }
    Ok(Value::List(List::Merged(items.into(), schema)))
}

fn slice<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let (list, from, to) = (list_of(&args[0])?, int_of(&args[1])?, int_of(&args[2])?);
    if from < 0 || to < 0 {
        return other(format!("cannot slice({from}, {to}), negative indexes not supported"));
    }
    if from > to {
        return other(format!(
            "cannot slice({from}, {to}), start index must be less than or equal to end index"
        ));
    }
    if to > list.len() as i64 {
        return other(format!("cannot slice({from}, {to}), list is length {}", list.len()));
    }
    cx.budget.charge((to - from) as u64)?;
    Ok(Value::list(list.iter().skip(from as usize).take((to - from) as usize).collect()))
}

fn flatten<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let depth = args.get(1).map(int_of).transpose()?.unwrap_or(1);
    if depth < 0 {
        return other("level must be non-negative");
    }
    let mut out = Vec::new();
    flatten_into(cx, list_of(&args[0])?, depth, &mut out)?;
    Ok(Value::list(out))
}

fn flatten_into<'a>(
    cx: &mut Context<'_, 'a>,
    list: &List<'a>,
    depth: i64,
    out: &mut Vec<Value<'a>>,
) -> Result<(), EvalError> {
    for item in list.iter() {
        cx.budget.charge(1)?;
        match item {
            Value::List(inner) if depth > 0 => flatten_into(cx, &inner, depth - 1, out)?,
            item => out.push(item),
        }
    }
    Ok(())
}

fn range<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let n = int_of(&args[0])?;
    if n > RANGE_MAX {
        return other(format!("lists.range({n}) is longer than {RANGE_MAX}"));
    }
    cx.budget.charge(n.max(0) as u64)?;
    Ok(Value::list((0..n).map(Value::Int).collect()))
}

fn distinct<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let mut out: Vec<Value<'a>> = Vec::new();
    'items: for item in list_of(&args[0])?.iter() {
        for known in &out {
            cx.budget.charge(1)?;
            if known.equals(&item, cx.budget)? {
                continue 'items;
            }
        }
        out.push(item);
    }
    Ok(Value::list(out))
}

fn reverse<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let list = list_of(&args[0])?;
    cx.budget.charge(list.len() as u64)?;
    let mut items: Vec<Value<'a>> = list.iter().collect();
    items.reverse();
    Ok(Value::list(items))
}

fn sort_by_keys<'a>(cx: &mut Context<'_, 'a>, list: &List<'a>, keys: &List<'a>) -> Out<'a> {
    for key in keys.iter() {
        // Each is compared about log n times; 20 covers a million.
        cx.budget.charge(20)?;
        cx.budget.traverse(20 * key.size())?;
    }
    let mut paired: Vec<(Value<'a>, Value<'a>)> = keys.iter().zip(list.iter()).collect();
    let first = paired.first().map(|(k, _)| k.clone());
    if paired.iter().any(|(k, _)| first.as_ref().is_some_and(|f| f.compare(k).is_none())) {
        return other("list elements must have the same type");
    }
    paired.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(Ordering::Equal));
    Ok(Value::list(paired.into_iter().map(|(_, item)| item).collect()))
}
