//! Questions that are asked by creating something that is never stored: may I, may they, who am I.

use std::sync::Arc;

use rimward_api::meta::str_at;
use rimward_api::{Status, UserInfo};
use serde_json::{Value, json};

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
    let mut review = decode::object(&server.registry, served, call, &body, options.validation)?;
    review["status"] = match served.kind.resource.as_str() {
        "selfsubjectreviews" => json!({ "userInfo": shown(&call.user) }),
        "selfsubjectaccessreviews" => decision(server, &call.user, &review["spec"], None)?,
        "subjectaccessreviews" => {
            decision(server, &asked_user(&review["spec"])?, &review["spec"], None)?
        }
        "localsubjectaccessreviews" => {
            decision(server, &asked_user(&review["spec"])?, &review["spec"], Some(namespace))?
        }
        "selfsubjectrulesreviews" => rules(server, &call.user, &review["spec"])?,
        "tokenreviews" => token(server, &review["spec"]).await?,
        other => return Err(Status::internal(format!("nobody answers {other}"))),
    };
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

fn asked_user(spec: &Value) -> Result<UserInfo, Status> {
    let name = str_at(spec, &["user"]).unwrap_or_default();
    let groups = spec.get("groups").and_then(Value::as_array).into_iter().flatten();
    let groups: Vec<String> = groups.filter_map(Value::as_str).map(str::to_owned).collect();
    if name.is_empty() && groups.is_empty() {
        return Err(Status::bad_request("at least one of user or group must be specified"));
    }
    Ok(UserInfo { name: name.to_owned(), groups, ..UserInfo::default() })
}

fn decision(
    server: &Inner,
    user: &UserInfo,
    spec: &Value,
    within: Option<&str>,
) -> Result<Value, Status> {
    let text = |of: &Value, field: &str| {
        of.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let asked = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(r), None) => {
            let namespace = text(r, "namespace");
            if within.is_some_and(|ns| ns != namespace) {
                return Err(Status::bad_request(
                    "spec.resourceAttributes.namespace must be the review's own namespace",
                ));
            }
            Attributes {
                verb: text(r, "verb"),
                path: String::new(),
                resource: Some(Resource {
                    group: text(r, "group"),
                    version: text(r, "version"),
                    namespace,
                    resource: text(r, "resource"),
                    subresource: text(r, "subresource"),
                    name: text(r, "name"),
                    rest: String::new(),
                }),
            }
        }
        (None, Some(u)) if within.is_none() => {
            Attributes { verb: text(u, "verb"), path: text(u, "path"), resource: None }
        }
        _ => {
            return Err(Status::bad_request(
                "exactly one of resourceAttributes or nonResourceAttributes must be specified",
            ));
        }
    };
    Ok(json!({ "allowed": server.rbac.allows(user, &asked) }))
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
    Ok(match server.tokens.authenticate(server, token, &audiences).await {
        Ok((user, audiences)) => {
            json!({ "authenticated": true, "user": shown(&user), "audiences": audiences })
        }
        Err(e) => json!({ "user": {}, "error": e.to_string() }),
    })
}
