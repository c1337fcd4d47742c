//! `fieldPath` of a rule: `.spec.name`, `.labels['a.b']`.

use serde_json::Value as Json;

/// The path as errors show it, without the dot before it; None if the schema has no such field.
pub fn normalized(schema: &Json, path: &str) -> Option<String> {
    let mut shown = String::new();
    let mut schema = schema;
    let mut rest = path;
    while !rest.is_empty() {
        let (name, after) = next(rest)?;
        rest = after;
        if let Some(properties) = schema.get("properties") {
            schema = properties.get(&name)?;
            if !shown.is_empty() {
                shown.push('.');
            }
            shown.push_str(&name);
        } else {
            schema = schema.get("additionalProperties").filter(|a| a.is_object())?;
            shown.push_str(&format!("[{name}]"));
        }
    }
    (!shown.is_empty()).then_some(shown)
}

/// The first name of a path, and what follows it.
fn next(path: &str) -> Option<(String, &str)> {
    if let Some(rest) = path.strip_prefix('.') {
        let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
        return (end > 0).then(|| (rest[..end].to_owned(), &rest[end..]));
    }
    let rest = path.strip_prefix("['")?;
    let mut name = String::new();
    let mut chars = rest.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\'' => return Some((name, rest[i + 1..].strip_prefix(']')?)),
            '\\' => name.push(match chars.next()?.1 {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                c @ ('\'' | '\\') => c,
                _ => return None,
            }),
            c => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn field_paths() {
        let schema = json!({"properties": {
            "spec": {"properties": {"a.b": {"type": "string"}, "name": {"type": "string"}}},
            "labels": {"additionalProperties": {"type": "string"}},
        }});
        #[track_caller]
        fn check(schema: &serde_json::Value, path: &str, expected: Option<&str>) {
            assert_eq!(super::normalized(schema, path).as_deref(), expected, "{path}");
        }
        check(&schema, ".spec.name", Some("spec.name"));
        check(&schema, ".spec['a.b']", Some("spec.a.b"));
        check(&schema, ".labels['x/y']", Some("labels[x/y]"));
        check(&schema, ".spec.nothing", None);
        check(&schema, "spec", None);
        check(&schema, ".spec[0]", None);
        check(&schema, ".", None);
        check(&schema, "['spec", None);
        check(&schema, "", None);
    }
}
