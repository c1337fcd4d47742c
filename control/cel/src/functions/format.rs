//! Named formats. <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-format-library>

use rimward_api::names;

use super::standard::text_of;
use super::{Context, Out, Row, no_overload};
use crate::value::Value;

/// A format: its name, and what is wrong with a text.
#[derive(Debug)]
pub struct Format {
    pub name: &'static str,
    check: fn(&str) -> Vec<String>,
}

macro_rules! named_format {
    ($name:literal, $check:expr) => {
        Format { name: $name, check: $check }
    };
}

static FORMATS: [Format; 13] = [
    named_format!("dns1123Label", names::dns1123_label),
    named_format!("dns1123Subdomain", names::dns1123_subdomain),
    named_format!("dns1035Label", names::dns1035_label),
    named_format!("qualifiedName", names::qualified_name),
    named_format!("dns1123LabelPrefix", |text| names::dns1123_label(prefix(text))),
    named_format!("dns1123SubdomainPrefix", |text| names::dns1123_subdomain(prefix(text))),
    named_format!("dns1035LabelPrefix", |text| names::dns1035_label(prefix(text))),
    named_format!("labelValue", names::label_value),
    named_format!("uri", |text| said(
        ::url::Url::parse(text).is_ok() || text.starts_with('/'),
        "must be a valid URI"
    )),
    named_format!("uuid", |text| said(is_uuid(text), "does not match the UUID format")),
    named_format!("byte", |text| said(is_base64(text), "invalid base64")),
    named_format!("date", |text| said(
        text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "invalid date"
    )),
    named_format!("datetime", |text| said(
        super::time::parse_timestamp(text).is_some(),
        "invalid datetime"
    )),
];

macro_rules! named {
    ($name:literal) => {
        (
            concat!("format.", $name),
            &[concat!("format.", $name, "() -> Format")],
            |_, _| match find($name) {
                Some(format) => Ok(Value::Format(format)),
                None => no_overload(),
            },
        )
    };
}

pub const ROWS: &[Row] = &[
    ("format.named", &["format.named(string) -> optional<Format>"], |_, args| {
        let found = find(text_of(&args[0])?);
        Ok(found.map_or_else(Value::none, |format| Value::some(Value::Format(format))))
    }),
    ("validate", &["Format.validate(string) -> optional<list<string>>"], validate),
    named!("dns1123Label"),
    named!("dns1123Subdomain"),
    named!("dns1035Label"),
    named!("qualifiedName"),
    named!("dns1123LabelPrefix"),
    named!("dns1123SubdomainPrefix"),
    named!("dns1035LabelPrefix"),
    named!("labelValue"),
    named!("uri"),
    named!("uuid"),
    named!("byte"),
    named!("date"),
    named!("datetime"),
];

fn find(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

fn validate<'a>(cx: &mut Context<'_, 'a>, args: &[Value<'a>]) -> Out<'a> {
    let Value::Format(format) = &args[0] else { return no_overload() };
    let text = text_of(&args[1])?;
    cx.budget.charge(crate::limits::tenth(text.len() + 1).saturating_mul(32))?;
    let wrong = (format.check)(text);
    Ok(match wrong.is_empty() {
        true => Value::none(),
        false => Value::some(Value::list(wrong.into_iter().map(Value::text).collect())),
    })
}

/// A prefix may end in a dash: what follows completes it.
fn prefix(text: &str) -> &str {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => rest,
        _ => text,
    }
}

fn said(holds: bool, otherwise: &str) -> Vec<String> {
    if holds { Vec::new() } else { vec![otherwise.to_owned()] }
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.len() == 5
        && groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|g| g.chars().all(|c| c.is_ascii_hexdigit()))
}

fn is_base64(text: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}
