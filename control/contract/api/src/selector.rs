//! Label and field selectors.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Typed;

/// A conjunction of requirements on labels; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub op: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In(Vec<String>),
    /// Also matches objects without the key.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// Why a selector does not parse; the text is for `unable to parse requirement: …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),!h,i`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut requirements = Vec::new();
        for part in split_top_level(text)? {
            requirements.push(Requirement::parse(part.trim())?);
        }
        Ok(Self { requirements })
    }

    /// Every given label, exactly.
    pub fn equal_to<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let requirements = labels
            .into_iter()
            .map(|(k, v)| Requirement { key: k.clone(), op: Operator::In(vec![v.clone()]) })
            .collect();
        Self { requirements }
    }

    /// From `spec.selector` of a workload. A missing selector matches nothing in Kubernetes; that
    /// case is the caller's.
    pub fn from_typed(typed: &Typed) -> Result<Self, ParseError> {
        let mut selector = Self::equal_to(typed.match_labels.iter().flatten());
        for e in typed.match_expressions.iter().flatten() {
            let values = e.values.clone().unwrap_or_default();
            let op = match e.operator.as_str() {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(ParseError(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            };
            selector.requirements.push(Requirement { key: e.key.clone(), op });
        }
        Ok(selector)
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// Matches labels in any form that can be looked up.
    pub fn matches_by<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.op.matches(get(&r.key)))
    }
}

impl Operator {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Self::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::GreaterThan(n) => number().is_some_and(|v| v > *n),
            Self::LessThan(n) => number().is_some_and(|v| v < *n),
        }
    }
}

impl Requirement {
    fn parse(text: &str) -> Result<Self, ParseError> {
        let wrong = |why: &str| ParseError(format!("unable to parse requirement: {why}"));
        let make = |key: &str, op| {
            let key = key.trim();
            match crate::names::qualified_name(key).first() {
                Some(e) => Err(wrong(&format!("<nil>: Invalid value: {key:?}: {e}"))),
                None => Ok(Self { key: key.to_owned(), op }),
            }
        };
        let value = |v: &str| {
            let v = v.trim();
            match crate::names::label_value(v).first() {
                Some(e) => Err(wrong(&format!("values[0][]: Invalid value: {v:?}: {e}"))),
                None => Ok(v.to_owned()),
            }
        };
        if let Some(key) = text.strip_prefix('!') {
            return make(key, Operator::DoesNotExist);
        }
        if let Some(open) = text.find('(') {
            let inner = text[open + 1..].strip_suffix(')').ok_or_else(|| {
                wrong(&format!("found '{}', expected: ',' or ')'", &text[open + 1..]))
            })?;
            let mut words = text[..open].split_whitespace();
            let (key, op) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let values = inner.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
            return match op {
                "in" => make(key, Operator::In(values)),
                "notin" => make(key, Operator::NotIn(values)),
                other => Err(wrong(&format!("found '{other}', expected: in, notin"))),
            };
        }
        if let Some((key, v)) = text.split_once("!=") {
            return make(key, Operator::NotIn(vec![value(v)?]));
        }
        if let Some((key, v)) = text.split_once("==").or_else(|| text.split_once('=')) {
            if v.trim_start().starts_with('=') {
                return Err(wrong("found '=', expected: identifier"));
            }
            return make(key, Operator::In(vec![value(v)?]));
        }
        for (sign, greater) in [('>', true), ('<', false)] {
            if let Some((key, v)) = text.split_once(sign) {
                let n = v.trim().parse().map_err(|_| {
                    wrong(&format!("values[0]: Invalid value: {v:?}: for 'Gt', 'Lt' operators, the value must be an integer"))
                })?;
                return make(
                    key,
                    if greater { Operator::GreaterThan(n) } else { Operator::LessThan(n) },
                );
            }
        }
        match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key] => make(key, Operator::Exists),
            [_, op, ..] => {
                Err(wrong(&format!("found '{op}', expected: in, notin, =, ==, !=, gt, lt")))
            }
            [] => Err(wrong("found '', expected: identifier")),
        }
    }
}

/// Splits at commas outside parentheses; an empty text has no parts.
fn split_top_level(text: &str) -> Result<Vec<&str>, ParseError> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0i32);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(ParseError(format!(
            "unable to parse requirement: unbalanced parentheses in {text:?}"
        )));
    }
    if !text[start..].trim().is_empty() {
        parts.push(&text[start..]);
    }
    Ok(parts)
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Requirement { key, op }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match op {
                Operator::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Operator::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Operator::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Operator::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Operator::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

/// `metadata.name=x,status.phase!=Running`. Which fields a kind offers is the kind's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// (field path, value, whether equal is wanted).
    pub terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (field, value, equal) = if let Some((f, v)) = part.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (f, v, true)
            } else {
                return Err(ParseError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            terms.push((field.trim().to_owned(), value.trim().to_owned(), equal));
        }
        Ok(Self { terms })
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// A field that is not there has the value "".
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|(f, v, equal)| (get(f).unwrap_or_default() == v) == *equal)
    }

    /// The value that a field must equal, if one is demanded: lets a list become a get.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, _, equal)| f == field && *equal).map(|(_, v, _)| v.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors() {
        #[track_caller]
        fn check(text: &str, labels: &[(&str, &str)], expected: bool) {
            let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let selector = LabelSelector::parse(text).expect("parses");
            assert_eq!(selector.matches(&labels), expected, "{text}");
            assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector), "round trip");
        }
        check("", &[], true);
        check("a=b", &[("a", "b")], true);
        check("a==b,c", &[("a", "b")], false);
        check("a!=b", &[], true);
        check("a in (b, c),!d", &[("a", "c")], true);
        check("a notin (b,c)", &[("a", "c")], false);
        check("a>3", &[("a", "4")], true);
        check("a<3", &[("a", "x")], false);
        for wrong in ["a in (b", "a foo b", "=b", "a in", "a=b c!"] {
            assert!(LabelSelector::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("metadata.name=x,status.phase!=Running").expect("parses");
        let get = |f: &str| if f == "metadata.name" { Some("x") } else { None };
        assert!(s.matches(get));
        assert_eq!(s.required("metadata.name"), Some("x"));
        assert!(FieldSelector::parse("x").is_err());
    }
}
