//! Questions that are asked by creating something that is never stored: may I, may they, who am I.

use std::sync::Arc;

use rimward_api::meta::str_at;
use rimward_api::{FieldError, GroupKind, Status, UserInfo};
use rimward_control_kinds::check::selector as check;
use rimward_control_kinds::read::Read;
use rimward_control_kinds::{Errors, Path};
use serde_json::{Value, json};

use crate::authn;
use crate::body::Response;
use crate::decode;
use crate::negotiate::{self, Offer};
use crate::options::WriteOptions;
use crate::rbac::Rule;
use crate::request::{Attributes, Call, Resource};
use crate::rest::take_body;
use crate::served::Served;
use crate::server::Inner;
use crate::views;

pub fn is_review(served: &Served) -> bool {
    matches!(served.kind.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
}

pub async fn answer(
    server: &Arc<Inner>,
    call: &mut Call,
    served: &Served,
    namespace: &str,
) -> Result<Response, Status> {
    let form = negotiate::form(&call.headers, Offer::OWN)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions", call.agent(), false)?;
    let body = take_body(call).await?;
    let mut review = decode::object(served, call, &body, options.validation)?;
    let own = review["metadata"].get("namespace").and_then(Value::as_str).unwrap_or_default();
    if !own.is_empty() && own != namespace {
        return Err(Status::bad_request(match served.kind.namespaced() {
            true => {
                "the namespace of the provided object does not match the namespace sent on the request"
            }
            false => "namespace is not allowed on this type",
        }));
    }
    let spec = &review["spec"];
    let checked = |within: Option<&str>, of_another: bool| {
        let errors = question_errors(spec, within, of_another);
        if errors.is_empty() {
            return Ok(());
        }
        let kind = GroupKind { group: served.kind.group.clone(), kind: served.kind.kind.clone() };
        Err(Status::invalid(&kind, "", &errors))
    };
    let status = match served.kind.resource.as_str() {
        "selfsubjectreviews" => json!({ "userInfo": shown(&call.user) }),
        "selfsubjectaccessreviews" => {
            checked(None, false)?;
            decision(server, &call.user, spec)
        }
        "subjectaccessreviews" => {
            checked(None, true)?;
            decision(server, &asked_user(spec), spec)
        }
        "localsubjectaccessreviews" => {
            checked(Some(namespace), true)?;
            decision(server, &asked_user(spec), spec)
        }
        "selfsubjectrulesreviews" => rules(server, &call.user, spec)?,
        "tokenreviews" => token(server, spec).await?,
        other => return Err(Status::internal(format!("nobody answers {other}"))),
    };
    review["status"] = status;
    review["kind"] = served.kind.kind.as_str().into();
    review["apiVersion"] = served.kind.api_version().into();
    if !review["metadata"].is_object() {
        review["metadata"] = json!({ "creationTimestamp": null });
    }
    Ok(views::encoded(call, 201, form, &review))
}

/// `authentication.k8s.io/v1` UserInfo.
fn shown(user: &UserInfo) -> Value {
    let mut shown = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        shown["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        shown["extra"] = json!(user.extra);
    }
    shown
}

/// The user that a SubjectAccessReview asks about.
fn asked_user(spec: &Value) -> UserInfo {
    let text = |field| str_at(spec, &[field]).unwrap_or_default().to_owned();
    let list = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = spec.get("extra").and_then(Value::as_object).into_iter().flatten();
    UserInfo {
        name: text("user"),
        uid: text("uid"),
        groups: spec.get("groups").map(list).unwrap_or_default(),
        extra: extra.map(|(key, values)| (key.to_lowercase(), list(values))).collect(),
    }
}

/// What is wrong with a question about access; `within` is the namespace of a local one.
fn question_errors(spec: &Value, within: Option<&str>, of_another: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let given = |field: &str| spec.get(field).filter(|v| v.is_object());
    let (resource, path) = (given("resourceAttributes"), given("nonResourceAttributes"));
    match (resource, path) {
        (Some(_), Some(path)) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            path,
            "cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let nobody = str_at(spec, &["user"]).unwrap_or_default().is_empty()
        && spec.get("groups").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if of_another && nobody {
        errors.push(FieldError::invalid(
            "spec.user",
            &json!(""),
            "at least one of user or group must be specified",
        ));
    }
    if let Some(resource) = resource {
        errors.extend(selector_errors(resource));
    }
    let Some(within) = within else { return errors };
    if let Some(namespace) = resource.map(|r| str_at(r, &["namespace"]).unwrap_or_default())
        && namespace != within
    {
        errors.push(FieldError::invalid(
            "spec.resourceAttributes.namespace",
            &json!(namespace),
            "must match metadata.namespace",
        ));
    }
    if let Some(path) = path {
        errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            path,
            "disallowed on this kind of request",
        ));
    }
    errors
}

/// What is wrong with the selectors of a question.
fn selector_errors(resource: &Value) -> Vec<FieldError> {
    type Rule = fn(&Value, &Path<'_>, &mut Errors);
    let mut errors = Errors::new();
    let rules: [(&str, Rule); 2] =
        [("fieldSelector", check::field_expression), ("labelSelector", check::expression)];
    for (field, rule) in rules {
        let selector = resource.at(field);
        if selector.is_null() {
            continue;
        }
        let spec = Path::Root.field("spec");
        let place = spec.field("resourceAttributes");
        let path = place.field(field);
        let (raw, terms) = (selector.text("rawSelector"), selector.list("requirements"));
        if !raw.is_empty() && !terms.is_empty() {
            let why = "may not specified at the same time as requirements";
            errors.invalid(&path.field("rawSelector"), raw, why);
        }
        if raw.is_empty() && terms.is_empty() {
            let why = format!("when {path} is specified, requirements or rawSelector is required");
            errors.required(&path.field("requirements"), &why);
        }
        let list = path.field("requirements");
        for (i, term) in terms.iter().enumerate() {
            rule(term, &list.index(i), &mut errors);
        }
    }
    errors.into_vec()
}

fn decision(server: &Inner, user: &UserInfo, spec: &Value) -> Value {
    let text = |of: &Value, field: &str| {
        of.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let asked = match (&spec["resourceAttributes"], &spec["nonResourceAttributes"]) {
        (Value::Null, u) => {
            Attributes { verb: text(u, "verb"), path: text(u, "path"), resource: None }
        }
        (r, _) => Attributes {
            verb: text(r, "verb"),
            path: String::new(),
            resource: Some(Resource {
                group: text(r, "group"),
                version: text(r, "version"),
                namespace: text(r, "namespace"),
                resource: text(r, "resource"),
                subresource: text(r, "subresource"),
                name: text(r, "name"),
                rest: String::new(),
            }),
        },
    };
    match server.rbac.reason(user, &asked) {
        None => json!({ "allowed": false }),
        Some(why) if why.is_empty() => json!({ "allowed": true }),
        Some(why) => json!({ "allowed": true, "reason": why }),
    }
}

fn rules(server: &Inner, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let namespace = str_at(spec, &["namespace"]).filter(|n| !n.is_empty());
    let namespace = namespace.ok_or_else(|| Status::bad_request("no namespace on request"))?;
    let all = server.rbac.rules_for(user, namespace);
    let resource = |r: &Rule| {
        let mut rule = json!({ "verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources });
        if !r.names.is_empty() {
            rule["resourceNames"] = json!(r.names);
        }
        rule
    };
    let resources: Vec<Value> =
        all.iter().filter(|r| !r.resources.is_empty()).map(resource).collect();
    let urls: Vec<Value> = all
        .iter()
        .filter(|r| !r.urls.is_empty())
        .map(|r| json!({ "verbs": r.verbs, "nonResourceURLs": r.urls }))
        .collect();
    Ok(json!({ "resourceRules": resources, "nonResourceRules": urls, "incomplete": false }))
}

async fn token(server: &Inner, spec: &Value) -> Result<Value, Status> {
    let token = str_at(spec, &["token"]).filter(|t| !t.is_empty());
    let token = token.ok_or_else(|| {
        Status::bad_request("token is required for TokenReview in authentication")
    })?;
    let listed = spec.get("audiences").and_then(Value::as_array).into_iter().flatten();
    let mut audiences: Vec<String> = listed.filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.clone_from(&server.config.api_audiences);
    }
    Ok(match authn::token(server, token, &audiences).await {
        Ok((user, audiences)) => {
            json!({ "authenticated": true, "user": shown(&user), "audiences": audiences })
        }
        Err(e) => json!({ "user": {}, "error": e.to_string() }),
    })
}
