//! Rules of a schema, compiled, and what is wrong with them. What they may cost is estimated here:
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#resource-use-by-validation-functions>

use std::sync::Arc;

use rimward_api::FieldError;
use rimward_api::status::CauseReason;
use serde_json::{Value as Json, json};

use super::{Node, Rule, path};
use crate::environment::{Environment, Program};
use crate::estimate;
use crate::limits::{ESTIMATE_PER_DEFINITION, ESTIMATE_PER_EXPRESSION};
use crate::schema::{Kind, ListType, REQUEST_BYTES_MAX, Schema};
use crate::types::Type;

/// Expressions named when all together may cost too much.
const DEAREST_NAMED: usize = 4;

#[derive(Default)]
pub struct Compiler {
    errors: Vec<FieldError>,
    total: u64,
    dearest: Vec<(u64, String)>,
}

/// Where in an object a part of the schema applies.
#[derive(Clone)]
pub struct Place {
    /// How often the part occurs at most; None if the schema does not say.
    times: Option<u64>,
    /// The list whose elements cannot be followed from one version of the object to the next.
    uncorrelatable: Option<String>,
}

impl Place {
    pub fn root() -> Self {
        Self { times: Some(1), uncorrelatable: None }
    }

    fn times(&self, more: Option<u64>) -> Self {
        let times = self.times.zip(more).map(|(a, b)| a.saturating_mul(b));
        Self { times, ..self.clone() }
    }
}

/// `type` of a schema, as messages name it.
pub fn type_name(schema: &Schema) -> &'static str {
    match schema.kind {
        Kind::Boolean => "boolean",
        Kind::Integer => "integer",
        Kind::Number => "number",
        Kind::String | Kind::Timestamp | Kind::Duration | Kind::Bytes => "string",
        Kind::Any | Kind::IntOrString => "",
        Kind::Array => "array",
        Kind::Map | Kind::Object => "object",
    }
}

impl Compiler {
    pub fn finish(mut self, path: &str) -> Result<(), Vec<FieldError>> {
        if self.total > ESTIMATE_PER_DEFINITION {
            self.dearest.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            for (_, place) in self.dearest.iter().take(DEAREST_NAMED) {
                let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
                self.errors.push(FieldError::forbidden(place.as_str(), why));
            }
            let what =
                "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
            let why = over_budget(what, self.total, ESTIMATE_PER_DEFINITION);
            self.errors.push(FieldError::forbidden(path, &why));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }

    /// The part with all its parts; None if there is no rule in it.
    pub fn node(
        &mut self,
        schema: &Json,
        seen: &Arc<Schema>,
        path: &str,
        place: Place,
    ) -> Option<Node> {
        let rules = self.rules(schema, seen, path, &place);
        let mut properties = Vec::new();
        for property in seen.properties.values() {
            let Some(below) = schema.get("properties").and_then(|p| p.get(&property.name)) else {
                continue;
            };
            let path = format!("{path}.properties[{}]", property.name);
            if let Some(node) = self.node(below, &property.schema, &path, place.clone()) {
                properties.push((property.name.clone(), node));
            }
        }
        let bound = |field: &str| schema.get(field).and_then(Json::as_u64);
        let items = seen.items.as_ref().zip(schema.get("items")).and_then(|(seen_items, items)| {
            let mut place = place.times(bound("maxItems"));
            if !matches!(seen.list_type, ListType::Map(_)) {
                place.uncorrelatable.get_or_insert_with(|| path.to_owned());
            }
            self.node(items, seen_items, &format!("{path}.items"), place)
        });
        let additional = seen.additional.as_ref().zip(schema.get("additionalProperties"));
        let additional = additional.and_then(|(seen, below)| {
            let place = place.times(bound("maxProperties"));
            self.node(below, seen, &format!("{path}.additionalProperties"), place)
        });
        let none =
            rules.is_empty() && properties.is_empty() && items.is_none() && additional.is_none();
        (!none).then(|| Node {
            schema: seen.clone(),
            rules,
            properties,
            items: items.map(Box::new),
            additional: additional.map(Box::new),
        })
    }

    fn rules(&mut self, schema: &Json, seen: &Arc<Schema>, path: &str, place: &Place) -> Vec<Rule> {
        let given = schema.get("x-kubernetes-validations").and_then(Json::as_array);
        let mut rules = Vec::new();
        for (i, rule) in given.into_iter().flatten().enumerate() {
            let at = format!("{path}.x-kubernetes-validations[{i}]");
            if let Some(rule) = self.rule(rule, schema, seen, &at, place) {
                rules.push(rule);
            }
        }
        rules
    }

    fn rule(
        &mut self,
        rule: &Json,
        schema: &Json,
        seen: &Arc<Schema>,
        at: &str,
        place: &Place,
    ) -> Option<Rule> {
        let text = |field: &str| rule.get(field).and_then(Json::as_str).unwrap_or_default();
        let known = self.errors.len();
        self.check_texts(rule, at);
        let field_path = match text("fieldPath") {
            "" => String::new(),
            given => path::normalized(schema, given).unwrap_or_else(|| {
                let value = Json::from(given);
                self.errors.push(FieldError::invalid(
                    format!("{at}.fieldPath"),
                    &value,
                    "must be a valid path",
                ));
                String::new()
            }),
        };
        if self.errors.len() > known {
            return None;
        }
        let given_optional = rule.get("optionalOldSelf").and_then(Json::as_bool);
        let optional_old = given_optional.unwrap_or(false);
        let environment = environment(seen, optional_old);
        let program = match environment.compile(text("rule")) {
            Ok(program) if matches!(program.output(), Type::Bool) => program,
            Ok(_) => {
                self.wrong(rule, &format!("{at}.rule"), "cel expression must evaluate to a bool");
                return None;
            }
            Err(e) => {
                self.wrong(rule, &format!("{at}.rule"), &e.to_string());
                return None;
            }
        };
        self.estimate(&program, seen, place, &format!("{at}.rule"), "estimated rule cost");
        let message_program = self.message_program(rule, &environment, at);
        if let Some(program) = &message_program {
            let at = format!("{at}.messageExpression");
            self.estimate(program, seen, &Place::root(), &at, "estimated messageExpression cost");
        }
        let uses_old = program.uses("oldSelf");
        self.check_old(rule, uses_old, given_optional, at, place);
        Some(Rule {
            text: text("rule").to_owned(),
            program,
            uses_old: uses_old || message_program.as_ref().is_some_and(|p| p.uses("oldSelf")),
            optional_old,
            message: text("message").to_owned(),
            message_program,
            reason: reason(text("reason")).unwrap_or(CauseReason::FieldValueInvalid),
            field_path,
        })
    }

    fn message_program(
        &mut self,
        rule: &Json,
        environment: &Environment,
        at: &str,
    ) -> Option<Program> {
        let text =
            rule.get("messageExpression").and_then(Json::as_str).filter(|t| !t.is_empty())?;
        let at = format!("{at}.messageExpression");
        match environment.compile(text) {
            Ok(program) if matches!(program.output(), Type::String) => Some(program),
            Ok(_) => {
                self.wrong(rule, &at, "messageExpression must evaluate to a string");
                None
            }
            Err(e) => {
                self.wrong(rule, &at, &format!("messageExpression {e}"));
                None
            }
        }
    }

    fn check_texts(&mut self, rule: &Json, at: &str) {
        let text = |field: &str| rule.get(field).and_then(Json::as_str).unwrap_or_default();
        let breaks = |text: &str| text.contains(['\n', '\r']);
        let place = |field: &str| format!("{at}.{field}");
        let errors = &mut self.errors;
        let (rule_text, message) = (text("rule").trim(), text("message").trim());
        let sent = |field: &str| Json::from(text(field));
        if rule_text.is_empty() {
            errors.push(FieldError::required(place("rule"), "rule is not specified"));
        } else if !text("message").is_empty() && message.is_empty() {
            let why = "must be non-empty if specified";
            errors.push(FieldError::invalid(place("message"), &sent("message"), why));
        } else if breaks(message) {
            let why = "must not contain line breaks";
            errors.push(FieldError::invalid(place("message"), &sent("message"), why));
        } else if breaks(rule_text) && message.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(place("message"), why));
        }
        if !text("messageExpression").is_empty() && text("messageExpression").trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(place("messageExpression"), why));
        }
        if !text("reason").is_empty() && reason(text("reason")).is_none() {
            errors.push(FieldError::not_supported(place("reason"), &sent("reason"), &REASONS));
        }
        if !text("fieldPath").is_empty() && text("fieldPath").trim().is_empty() {
            let why = "must be non-empty if specified";
            errors.push(FieldError::invalid(place("fieldPath"), &sent("fieldPath"), why));
        }
        if breaks(text("fieldPath")) {
            let why = "must not contain line breaks";
            errors.push(FieldError::invalid(place("fieldPath"), &sent("fieldPath"), why));
        }
    }

    fn check_old(
        &mut self,
        rule: &Json,
        uses_old: bool,
        given_optional: Option<bool>,
        at: &str,
        place: &Place,
    ) {
        if let (true, Some(list)) = (uses_old, &place.uncorrelatable) {
            let why = format!(
                "oldSelf cannot be used on the uncorrelatable portion of the schema within {list}"
            );
            let text = rule.get("rule").cloned().unwrap_or_default();
            self.errors.push(FieldError::invalid(format!("{at}.rule"), &text, &why));
        }
        if let (false, Some(given)) = (uses_old, given_optional) {
            let why = "may not be set if oldSelf is not used in rule";
            let at = format!("{at}.optionalOldSelf");
            self.errors.push(FieldError::invalid(at, &Json::from(given), why));
        }
    }

    fn wrong(&mut self, rule: &Json, at: &str, why: &str) {
        self.errors.push(FieldError {
            field: at.to_owned(),
            reason: CauseReason::FieldValueInvalid,
            message: format!("Invalid value: {}: {why}", shown(rule)),
        });
    }

    fn estimate(
        &mut self,
        program: &Program,
        seen: &Arc<Schema>,
        place: &Place,
        at: &str,
        what: &str,
    ) {
        let once = estimate::worst(&program.expr, &[("self", seen), ("oldSelf", seen)]);
        // As often as the smallest value fits into a request, if nothing bounds it.
        let times = place.times.unwrap_or(REQUEST_BYTES_MAX / (seen.size_min + 1));
        let cost = once.saturating_mul(times);
        if cost > ESTIMATE_PER_EXPRESSION {
            let why = over_budget(what, cost, ESTIMATE_PER_EXPRESSION);
            self.errors.push(FieldError::forbidden(at, &why));
        }
        self.total = self.total.saturating_add(cost);
        self.dearest.push((cost, at.to_owned()));
    }
}

fn environment(seen: &Arc<Schema>, optional_old: bool) -> Environment {
    let of = Type::of(seen);
    let old = if optional_old { Type::optional(of.clone()) } else { of.clone() };
    Environment::new().with("self", of).with("oldSelf", old)
}

/// Sorted, as a message lists them.
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

fn reason(text: &str) -> Option<CauseReason> {
    match text {
        "FieldValueInvalid" => Some(CauseReason::FieldValueInvalid),
        "FieldValueForbidden" => Some(CauseReason::FieldValueForbidden),
        "FieldValueRequired" => Some(CauseReason::FieldValueRequired),
        "FieldValueDuplicate" => Some(CauseReason::FieldValueDuplicate),
        _ => None,
    }
}

fn over_budget(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// The rule as Kubernetes' errors repeat it: with the names and the order of its Go type.
fn shown(rule: &Json) -> String {
    let text = |field: &str| json!(rule.get(field).and_then(Json::as_str).unwrap_or_default());
    let or_null = |field: &str| rule.get(field).cloned().unwrap_or(Json::Null);
    format!(
        r#"{{"Rule":{},"Message":{},"MessageExpression":{},"Reason":{},"FieldPath":{},"OptionalOldSelf":{}}}"#,
        text("rule"),
        text("message"),
        text("messageExpression"),
        or_null("reason"),
        text("fieldPath"),
        or_null("optionalOldSelf"),
    )
}
