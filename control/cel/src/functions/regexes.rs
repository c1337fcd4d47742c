//! Regular expressions: RE2's syntax, matched in time linear to the text.
//! <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-regex-library>

use std::collections::HashMap;

use regex::{Regex, RegexBuilder};

use super::standard::{int_of, text_of};
use super::{Context, Out, Row};
use crate::error::EvalError;
use crate::limits::tenth;
use crate::value::Value;

/// Bytes of a compiled pattern: small repetitions nest into huge programs.
const COMPILED_BYTES_MAX: usize = 1 << 20;
/// Characters of a pattern.
const PATTERN_BYTES_MAX: usize = 16 << 10;
/// What compiling a byte of a pattern costs, if that has to be done while evaluating.
const COMPILE_COST: u64 = 20;

pub const ROWS: &[Row] = &[
    (
        "matches",
        &["string.matches(string) -> bool", "matches(string, string) -> bool"],
        |cx, args| with(cx, args, |regex, text| Value::Bool(regex.is_match(text))),
    ),
    ("find", &["string.find(string) -> string"], |cx, args| {
        with(cx, args, |regex, text| {
            Value::text(regex.find(text).map_or("", |found| found.as_str()))
        })
    }),
    (
        "findAll",
        &["string.findAll(string) -> list<string>", "string.findAll(string, int) -> list<string>"],
        |cx, args| {
            let most = match args.get(2).map(int_of).transpose()? {
                Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
                None => usize::MAX,
            };
            let found = with(cx, args, |regex, text| {
                let all = regex.find_iter(text).take(most);
                Value::list(all.map(|found| Value::text(found.as_str())).collect())
            })?;
            cx.budget.charge(found.size() as u64)?;
            Ok(found)
        },
    ),
];

/// Patterns that stand in the expression itself: compiled once.
#[derive(Debug, Default)]
pub struct Regexes(HashMap<String, Regex>);

impl Regexes {
    /// Compiles a pattern ahead; what is wrong with it, if it is wrong.
    pub fn add(&mut self, pattern: &str) -> Result<(), String> {
        let regex = compile(pattern)?;
        self.0.insert(pattern.to_owned(), regex);
        Ok(())
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("expression is longer than {PATTERN_BYTES_MAX} bytes"));
    }
    let built = RegexBuilder::new(pattern)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .nest_limit(100)
        .build();
    built.map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => "expression too large".to_owned(),
        // The last line says what; those before draw a picture.
        e => e.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    })
}

fn with<'a>(
    cx: &mut Context<'_, 'a>,
    args: &[Value<'a>],
    act: impl Fn(&Regex, &str) -> Value<'a>,
) -> Out<'a> {
    let (text, pattern) = (text_of(&args[0])?, text_of(&args[1])?);
    // A pattern has a state for about every four characters.
    cx.budget.charge(tenth(text.len() + 1).saturating_mul((pattern.len() as u64).div_ceil(4)))?;
    if let Some(regex) = cx.regexes.0.get(pattern) {
        return Ok(act(regex, text));
    }
    cx.budget.charge((pattern.len() as u64).saturating_mul(COMPILE_COST))?;
    let regex = compile(pattern).map_err(|e| EvalError::Other(format!("Illegal regex: {e}")))?;
    // Repetitions make a program far larger than its text.
    Ok(act(&regex, text))
}
