//! A policy and a binding, taken apart and compiled.

use rimward_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Typed;
use rimward_api::selector::LabelSelector;
use rimward_control_cel::policy::{Scope, environment};
use rimward_control_cel::{Environment, MatchConditions, Program, Type};
use serde_json::{Value, json};

use crate::admission::matching::Constraints;

/// What the two kinds of policy differ in: what they do once they match.
pub trait Body: Send + Sync + Sized + 'static {
    /// `environment` declares the request and the policy's variables.
    fn compile(spec: &Value, environment: &Environment) -> Self;
    /// Mutations make patches.
    const PATCHES: bool;
}

/// Programs by name; what is wrong with one that did not compile.
pub type Variables = Vec<(String, Result<Program, String>)>;

#[derive(Debug)]
pub struct Policy<B> {
    pub name: String,
    /// None if its selectors do not parse.
    pub constraints: Option<Constraints>,
    /// apiVersion and kind of what parameterizes it.
    pub param_kind: Option<(String, String)>,
    /// `failurePolicy: Ignore`
    pub ignores_failure: bool,
    pub variables: Variables,
    pub conditions: MatchConditions,
    pub body: B,
}

impl<B: Body> Policy<B> {
    pub fn compile(name: &str, object: &Value) -> Self {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let scope = scope(spec, B::PATCHES);
        let (environment, variables) = declared(spec, environment(scope));
        let null = Value::Null;
        let text = |v: &Value, field: &str| v.get(field).and_then(Value::as_str).map(str::to_owned);
        let param_kind = spec
            .get("paramKind")
            .and_then(|kind| Some((text(kind, "apiVersion")?, text(kind, "kind")?)));
        // Conditions come before variables.
        let of_conditions = rimward_control_cel::policy::environment(scope);
        let conditions = spec.get("matchConditions").unwrap_or(&null);
        Self {
            name: name.to_owned(),
            constraints: Constraints::parse(
                spec.get("matchConstraints").unwrap_or(&null),
                "resourceRules",
            ),
            param_kind,
            ignores_failure: text(spec, "failurePolicy").as_deref() == Some("Ignore"),
            conditions: MatchConditions::compile(conditions, &of_conditions),
            body: B::compile(spec, &environment),
            variables,
        }
    }
}

/// What a policy's expressions may name.
pub fn scope(spec: &Value, patches: bool) -> Scope {
    Scope { params: spec.get("paramKind").is_some_and(Value::is_object), authorizer: true, patches }
}

/// The environment with the policy's variables, each compiled knowing those before it.
pub fn declared(spec: &Value, base: Environment) -> (Environment, Variables) {
    let mut environment = base.clone();
    let mut variables: Variables = Vec::new();
    let mut types: Vec<(String, Type)> = Vec::new();
    for variable in spec.get("variables").and_then(Value::as_array).into_iter().flatten() {
        let text = |field: &str| variable.get(field).and_then(Value::as_str).unwrap_or_default();
        environment = base.clone().with("variables", Type::Variables(types.clone().into()));
        let program = environment.compile(text("expression")).map_err(|e| e.to_string());
        let output = program.as_ref().map_or(Type::Dyn, |p| p.output().clone());
        types.push((text("name").to_owned(), output));
        variables.push((text("name").to_owned(), program));
    }
    if !types.is_empty() {
        environment = base.with("variables", Type::Variables(types.into()));
    }
    (environment, variables)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Deny,
    Warn,
    Audit,
}

impl Action {
    /// As bindings write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deny => "Deny",
            Self::Warn => "Warn",
            Self::Audit => "Audit",
        }
    }
}

#[derive(Debug)]
pub struct Binding {
    pub name: String,
    pub policy: String,
    /// What narrows the policy's own constraints: None if nothing does, an error if its selectors do
    /// not parse.
    pub constraints: Option<Result<Constraints, ()>>,
    pub param_ref: Option<ParamRef>,
    pub actions: Vec<Action>,
}

#[derive(Debug)]
pub struct ParamRef {
    pub name: String,
    pub namespace: String,
    /// None if it does not parse, which selects nothing.
    pub selector: Option<LabelSelector>,
    /// `parameterNotFoundAction: Deny`
    pub denies_missing: bool,
}

impl Binding {
    pub fn read(name: &str, object: &Value) -> Self {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let text = |v: &Value, field: &str| {
            v.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let actions = spec.get("validationActions").and_then(Value::as_array).into_iter().flatten();
        let actions = actions.filter_map(|action| match action.as_str()? {
            "Deny" => Some(Action::Deny),
            "Warn" => Some(Action::Warn),
            "Audit" => Some(Action::Audit),
            _ => None,
        });
        let param_ref = spec.get("paramRef").filter(|r| r.is_object()).map(|reference| ParamRef {
            name: text(reference, "name"),
            namespace: text(reference, "namespace"),
            selector: reference.get("selector").and_then(|selector| {
                let typed: Typed = serde_json::from_value(selector.clone()).ok()?;
                LabelSelector::from_typed(&typed).ok()
            }),
            denies_missing: text(reference, "parameterNotFoundAction") == "Deny",
        });
        let narrowed = spec.get("matchResources").filter(|m| m.is_object());
        Self {
            name: name.to_owned(),
            policy: text(spec, "policyName"),
            constraints: narrowed
                .map(|m| Constraints::parse(&with_rules(m), "resourceRules").ok_or(())),
            param_ref,
            actions: actions.collect(),
        }
    }
}

/// A binding without rules is about everything that its policy is about.
fn with_rules(matches: &Value) -> Value {
    let mut matches = matches.clone();
    let rules = matches.get("resourceRules").and_then(Value::as_array);
    if rules.is_none_or(Vec::is_empty) {
        matches["resourceRules"] = json!([{
            "operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"],
        }]);
    }
    matches
}
