//! What the expressions of admission policies, and the match conditions of webhooks, see of a request.
//! <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/#validation-expression>

use std::sync::{Arc, LazyLock};

use serde_json::Value as Json;

use crate::authorizer::{Asked, Authorizer, Check};
use crate::environment::{Environment, Program};
use crate::error::CompileError;
use crate::eval::Bindings;
use crate::limits::Budget;
use crate::schema::{Kind, Schema};
use crate::types::Type;
use crate::value::Value;

/// What is declared beside the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub params: bool,
    pub authorizer: bool,
    /// `Object{…}` and `JSONPatch{…}`, for mutations.
    pub patches: bool,
}

/// The variables of an admission expression. Objects are of any type here: what a resource looks like
/// is known when a request comes.
pub fn environment(scope: Scope) -> Environment {
    let mut environment = Environment::new()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("namespaceObject", Type::Object(NAMESPACE.clone()))
        .with("request", Type::Object(REQUEST.clone()));
    if scope.params {
        environment = environment.with("params", Type::Dyn);
    }
    if scope.authorizer {
        environment = environment
            .with("authorizer", Type::Named("kubernetes.authorization.Authorizer"))
            .with(
                "authorizer.requestResource",
                Type::Named("kubernetes.authorization.ResourceCheck"),
            );
    }
    if scope.patches {
        environment = environment.with_patches();
    }
    environment
}

/// A request, as JSON: null for what there is not.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub object: &'a Json,
    pub old_object: &'a Json,
    /// An AdmissionRequest without its objects.
    pub request: &'a Json,
    pub namespace: &'a Json,
    pub params: &'a Json,
}

impl<'a> Input<'a> {
    /// Binds the variables; those that an expression's scope does not declare are not seen by it.
    pub fn bindings(&self, authorizer: &'a dyn Authorizer) -> Bindings<'a> {
        let text = |value: &Json, field: &str| {
            value.get(field).and_then(Json::as_str).unwrap_or_default().to_owned()
        };
        let resource = self.request.get("requestResource").unwrap_or(&Json::Null);
        let asked = Asked {
            group: text(resource, "group"),
            resource: text(resource, "resource"),
            subresource: text(self.request, "requestSubResource"),
            namespace: text(self.request, "namespace"),
            name: text(self.request, "name"),
            ..Asked::default()
        };
        Bindings::new()
            .with("object", Value::of(self.object, None))
            .with("oldObject", Value::of(self.old_object, None))
            .with("namespaceObject", Value::of(self.namespace, Some(&NAMESPACE)))
            .with("request", Value::of(self.request, Some(&REQUEST)))
            .with("params", Value::of(self.params, None))
            .with("authorizer", Value::Check(Arc::new(Check::Authorizer(Asked::default()))))
            .with("authorizer.requestResource", Value::Check(Arc::new(Check::Resource(asked))))
            .with_authorizer(authorizer)
    }
}

/// An authorizer where nobody asks.
pub struct Nobody;

impl Authorizer for Nobody {
    fn check(&self, _: &Asked) -> crate::authorizer::Decision {
        crate::authorizer::Decision {
            error: "no authorizer is at hand".into(),
            ..crate::authorizer::Decision::default()
        }
    }
}

/// The `matchConditions` of a webhook or a policy.
#[derive(Debug, Default)]
pub struct MatchConditions(Vec<Condition>);

#[derive(Debug)]
struct Condition {
    expression: String,
    program: Result<Program, CompileError>,
}

impl MatchConditions {
    /// Compiles a list of `{name, expression}`; anything else is no condition. One that does not
    /// compile (it was refused when it was written, by a server that knew more) is an error whenever
    /// it is asked.
    pub fn compile(list: &Json, environment: &Environment) -> Self {
        let conditions = list.as_array().into_iter().flatten().map(|condition| {
            let text = condition.get("expression").and_then(Json::as_str).unwrap_or_default();
            let program = environment.compile_to(text, &[Type::Bool]);
            Condition { expression: text.to_owned(), program }
        });
        Self(conditions.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that does not decides, whatever is wrong with others.
    ///
    /// # Errors
    /// What is wrong, when none decides; the failure policy says what follows.
    pub fn matches<'a>(
        &'a self,
        bindings: &Bindings<'a>,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        let mut wrong = Vec::new();
        for condition in &self.0 {
            let program = match &condition.program {
                Ok(program) => program,
                Err(e) => {
                    wrong.push(format!("compilation error: {e}"));
                    continue;
                }
            };
            match program.eval(bindings, budget) {
                Ok(Value::Bool(true)) => {}
                Ok(Value::Bool(false)) => return Ok(false),
                Ok(_) => wrong.push(format!("expression '{}' gave no bool", condition.expression)),
                Err(e) if e.is_final() && budget.left() == 0 => {
                    return Err("validation failed due to running out of cost budget, no further validation rules will be run".into());
                }
                Err(e) => {
                    wrong.push(format!(
                        "expression '{}' resulted in error: {e}",
                        condition.expression
                    ));
                }
            }
        }
        match wrong.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}

fn string() -> Schema {
    Schema::simple(Kind::String)
}

/// Who asks.
pub(crate) static USER_INFO: LazyLock<Arc<Schema>> = LazyLock::new(|| Arc::new(user_info()));

fn user_info() -> Schema {
    Schema::declare(
        "kubernetes.UserInfo",
        vec![
            ("username", string()),
            ("uid", string()),
            ("groups", Schema::list_of(string())),
            ("extra", Schema::map_of(Schema::list_of(string()))),
        ],
    )
}

/// <https://kubernetes.io/docs/reference/config-api/apiserver-admission.v1/#admission-k8s-io-v1-AdmissionRequest>
static REQUEST: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    let kind = || {
        let fields = vec![("group", string()), ("version", string()), ("kind", string())];
        Schema::declare("kubernetes.GroupVersionKind", fields)
    };
    let resource = || {
        let fields = vec![("group", string()), ("version", string()), ("resource", string())];
        Schema::declare("kubernetes.GroupVersionResource", fields)
    };
    Arc::new(Schema::declare(
        "kubernetes.AdmissionRequest",
        vec![
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", string()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", string()),
            ("name", string()),
            ("namespace", string()),
            ("operation", string()),
            ("userInfo", user_info()),
            ("dryRun", Schema::simple(Kind::Boolean)),
            ("options", Schema::simple(Kind::Any)),
        ],
    ))
});

/// The parts of a Namespace that policies may look at.
static NAMESPACE: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    let texts = || Schema::list_of(string());
    let time = || Schema::simple(Kind::Timestamp);
    let int = || Schema::simple(Kind::Integer);
    let metadata = Schema::declare(
        "kubernetes.NamespaceMetadata",
        vec![
            ("name", string()),
            ("generateName", string()),
            ("namespace", string()),
            ("labels", Schema::map_of(string())),
            ("annotations", Schema::map_of(string())),
            ("UID", string()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", int()),
            ("deletionTimestamp", time()),
            ("generation", int()),
            ("resourceVersion", string()),
            ("finalizers", texts()),
        ],
    );
    let condition = Schema::declare(
        "kubernetes.NamespaceCondition",
        vec![
            ("status", string()),
            ("type", string()),
            ("lastTransitionTime", time()),
            ("message", string()),
            ("reason", string()),
        ],
    );
    let spec = Schema::declare("kubernetes.NamespaceSpec", vec![("finalizers", texts())]);
    let status = Schema::declare(
        "kubernetes.NamespaceStatus",
        vec![("conditions", Schema::list_of(condition)), ("phase", string())],
    );
    Arc::new(Schema::declare(
        "kubernetes.Namespace",
        vec![("metadata", metadata), ("spec", spec), ("status", status)],
    ))
});
