//! The JSON paths of definitions: printer columns, selectable fields, replicas.
//!
//! Kubernetes takes kubectl's JSONPath for columns; what of it makes sense in a column is here: members,
//! `['…']`, indices and slices, `*`, `..` and filters that compare with a constant. What is not
//! understood selects nothing.

use serde_json::Value;

use super::schema::{Additional, Schema};

/// Steps that one path may have.
const STEPS_MAX: usize = 64;
/// Values that one path may select on its way.
const SELECTED_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(Box<str>),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Anywhere,
    Filter(Vec<Step>, Comparison, Option<Value>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Exists,
    Equal,
    Unequal,
    Less,
    More,
    LessOrEqual,
    MoreOrEqual,
}

/// A path that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads `.spec.containers[0].name`; None when it is not understood.
    pub fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { rest: text };
        let steps = reader.steps()?;
        (reader.rest.is_empty() && steps.len() <= STEPS_MAX).then_some(Self(steps))
    }

    /// The values that the path selects.
    pub fn find<'v>(&self, object: &'v Value) -> Vec<&'v Value> {
        select(&self.0, object)
    }
}

fn select<'v>(steps: &[Step], object: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![object];
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            apply(step, value, &mut next);
            if next.len() > SELECTED_MAX {
                return Vec::new();
            }
        }
        found = next;
    }
    found
}

fn apply<'v>(step: &Step, value: &'v Value, out: &mut Vec<&'v Value>) {
    match (step, value) {
        (Step::Member(name), Value::Object(map)) => out.extend(map.get(&**name)),
        (Step::Index(i), Value::Array(items)) => {
            let at = if *i < 0 { items.len() as i64 + i } else { *i };
            out.extend(usize::try_from(at).ok().and_then(|at| items.get(at)));
        }
        (Step::Slice(from, to), Value::Array(items)) => {
            let len = items.len() as i64;
            let place = |n: i64| if n < 0 { (len + n).max(0) } else { n.min(len) };
            let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(len)));
            if from < to {
                out.extend(&items[from as usize..to as usize]);
            }
        }
        (Step::All, Value::Object(map)) => out.extend(map.values()),
        (Step::All, Value::Array(items)) => out.extend(items),
        (Step::Anywhere, value) => everywhere(value, out),
        (Step::Filter(path, how, constant), Value::Array(items)) => {
            let holds = |item: &&Value| {
                let found = select(path, item);
                match constant {
                    None => !found.is_empty(),
                    Some(constant) => found.iter().any(|v| compare(v, *how, constant)),
                }
            };
            out.extend(items.iter().filter(holds));
        }
        _ => {}
    }
}

fn everywhere<'v>(value: &'v Value, out: &mut Vec<&'v Value>) {
    if out.len() > SELECTED_MAX {
        return;
    }
    out.push(value);
    match value {
        Value::Object(map) => map.values().for_each(|v| everywhere(v, out)),
        Value::Array(items) => items.iter().for_each(|v| everywhere(v, out)),
        _ => {}
    }
}

fn compare(value: &Value, how: Comparison, constant: &Value) -> bool {
    let order = match (value, constant) {
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b))
        }
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
    };
    match how {
        Comparison::Exists => true,
        Comparison::Equal => order.is_some_and(|o| o.is_eq()),
        Comparison::Unequal => !order.is_some_and(|o| o.is_eq()),
        Comparison::Less => order.is_some_and(|o| o.is_lt()),
        Comparison::More => order.is_some_and(|o| o.is_gt()),
        Comparison::LessOrEqual => order.is_some_and(|o| o.is_le()),
        Comparison::MoreOrEqual => order.is_some_and(|o| o.is_ge()),
    }
}

struct Reader<'t> {
    rest: &'t str,
}

impl<'t> Reader<'t> {
    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn steps(&mut self) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        loop {
            if steps.len() > STEPS_MAX {
                return None;
            }
            if self.eat("..") {
                steps.push(Step::Anywhere);
                if !self.rest.starts_with('[') {
                    steps.push(self.member()?);
                }
            } else if self.eat(".") {
                // A lone dot is the object itself, and one before a bracket says nothing.
                if !self.rest.is_empty() && !self.rest.starts_with('[') {
                    steps.push(self.member()?);
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else {
                return Some(steps);
            }
        }
    }

    /// A member's name, in which a backslash makes a dot part of it.
    fn member(&mut self) -> Option<Step> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => name.push(chars.next()?.1),
                '.' | '[' | ' ' | '=' | '!' | '<' | '>' | ')' => {
                    end = at;
                    break;
                }
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        match name.as_str() {
            "" => None,
            "*" => Some(Step::All),
            _ => Some(Step::Member(name.into())),
        }
    }

    fn bracket(&mut self) -> Option<Step> {
        if self.eat("?(") {
            return self.filter();
        }
        if self.rest.starts_with(['\'', '"']) {
            let name = self.quoted()?;
            return self.eat("]").then(|| Step::Member(name.into()));
        }
        let (inside, rest) = self.rest.split_once(']')?;
        self.rest = rest;
        let inside = inside.trim();
        if inside == "*" {
            return Some(Step::All);
        }
        let number = |t: &str| match t.trim() {
            "" => Some(None),
            t => t.parse().ok().map(Some),
        };
        match inside.split_once(':') {
            Some((from, to)) => Some(Step::Slice(number(from)?, number(to)?)),
            None => Some(Step::Index(inside.parse().ok()?)),
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.push(chars.next()?.1),
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Some(text);
                }
                c => text.push(c),
            }
        }
        None
    }

    /// `?(@.type=="Ready")`
    fn filter(&mut self) -> Option<Step> {
        self.rest = self.rest.trim_start();
        if !self.eat("@") {
            return None;
        }
        let path = self.steps()?;
        self.rest = self.rest.trim_start();
        let how = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::MoreOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::More),
        ];
        let how = how.into_iter().find(|(text, _)| self.eat(text)).map(|(_, how)| how);
        let Some(how) = how else {
            return self.eat(")]").then_some(Step::Filter(path, Comparison::Exists, None));
        };
        self.rest = self.rest.trim_start();
        let constant = if self.rest.starts_with(['\'', '"']) {
            Value::String(self.quoted()?)
        } else {
            let end = self.rest.find(')')?;
            let (text, rest) = self.rest.split_at(end);
            self.rest = rest;
            serde_json::from_str(text.trim()).ok()?
        };
        self.rest = self.rest.trim_start();
        self.eat(")]").then_some(Step::Filter(path, how, Some(constant)))
    }
}

/// Segments of a simple path, the dot before it set aside: `.spec.replicas`.
pub fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('.').unwrap_or(path).split('.')
}

/// The value at a simple path.
pub fn simple<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    segments(path).try_fold(object, |value, key| value.get(key))
}

/// The schema that a field path leads to: `.spec.color`, and with `brackets` also `.spec['a-b']`.
/// The error says why there is none.
pub fn schema_at<'s>(path: &str, schema: &'s Schema, brackets: bool) -> Result<&'s Schema, String> {
    let mut reader = Reader { rest: path };
    let mut at = schema;
    while !reader.rest.is_empty() {
        let name = if reader.eat(".") {
            let end = reader.rest.find(['.', '[', ']']).unwrap_or(reader.rest.len());
            let (name, rest) = reader.rest.split_at(end);
            if name.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
            reader.rest = rest;
            name.to_owned()
        } else if reader.rest.starts_with('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            reader.eat("[");
            let wrong = || format!("expected single quoted string but got {}", reader.rest);
            if !reader.rest.starts_with('\'') {
                return Err(wrong());
            }
            let name = reader.quoted().ok_or("unexpected end of JSON path")?;
            if !reader.eat("]") {
                return Err("unexpected end of JSON path".to_owned());
            }
            name
        } else {
            return Err(format!("expected [ or . but got: {}", reader.rest));
        };
        let next = match (at.properties.is_empty(), &at.additional) {
            (false, _) => at.properties.get(&*name),
            (true, Some(Additional::Of(all))) => Some(&**all),
            _ => None,
        };
        at = next.ok_or("does not refer to a valid field")?;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let object = json!({
            "metadata": { "labels": { "a.b/c": "x" } },
            "spec": { "n": 3, "list": [{ "t": "A", "v": 1 }, { "t": "B", "v": 2 }] },
        });
        #[track_caller]
        fn check(object: &Value, path: &str, expected: Value) {
            let path = JsonPath::parse(path).unwrap_or_else(|| panic!("{path} is a path"));
            let found: Vec<Value> = path.find(object).into_iter().cloned().collect();
            assert_eq!(Value::from(found), expected);
        }
        check(&object, ".spec.n", json!([3]));
        check(&object, ".spec.list[*].v", json!([1, 2]));
        check(&object, ".spec.list[1].t", json!(["B"]));
        check(&object, ".spec.list[-1:].t", json!(["B"]));
        check(&object, r#".spec.list[?(@.t=="A")].v"#, json!([1]));
        check(&object, ".spec.list[?(@.v>1)].t", json!(["B"]));
        check(&object, r".metadata.labels.a\.b/c", json!(["x"]));
        check(&object, ".metadata.labels['a.b/c']", json!(["x"]));
        check(&object, "..v", json!([1, 2]));
        check(&object, ".spec.none.x", json!([]));
        for wrong in ["spec", ".spec[", ".a[x]", ".a[?(@.b==", ".a['b"] {
            assert_eq!(
                JsonPath::parse(wrong).map(|p| p.find(&object).len()).unwrap_or(0),
                0,
                "{wrong}"
            );
        }
        assert_eq!(JsonPath::parse(&".a".repeat(10_000)), None);
    }

    #[test]
    fn schemas_by_path() {
        let schema = Schema::read(
            &json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
            "color": { "type": "string" }, "m": { "type": "object", "additionalProperties": { "type": "integer" } } } } } }),
        );
        assert_eq!(&*schema_at(".spec.color", &schema, false).unwrap().kind, "string");
        assert_eq!(&*schema_at(".spec.m['x']", &schema, true).unwrap().kind, "integer");
        assert_eq!(
            schema_at(".spec.none", &schema, false).unwrap_err(),
            "does not refer to a valid field"
        );
        assert_eq!(
            schema_at(".spec.m['x']", &schema, false).unwrap_err(),
            "array notation is not allowed"
        );
        assert_eq!(schema_at("spec", &schema, false).unwrap_err(), "expected [ or . but got: spec");
    }
}
