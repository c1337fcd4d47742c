//! Conversion between versions: none, or by a webhook.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/#webhook-conversion>

use std::time::Duration;

use rimward_api::Status;
use rimward_control_kinds::check::meta as rules;
use rimward_control_kinds::custom::embedded::Wrong;
use rimward_control_kinds::custom::version::Version;
use rimward_control_kinds::{Errors, Path};
use serde_json::{Value, json};

use super::Custom;
use super::body::normalize;
use crate::outbound::{CallError, Destination, Outbound};
use crate::server::Inner;

/// How long a webhook may take, and how much it may answer: a page of a list is one review.
const WAIT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Converts objects, each in a version of the definition, to a version, and prunes what that does not
/// know; as many as were given, in their order.
pub async fn convert(
    server: &Inner,
    custom: &Custom,
    to: &Version,
    objects: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let wanted = format!("{}/{}", custom.definition.group, to.name);
    let is: Vec<bool> = objects.iter().map(|o| o["apiVersion"] == *wanted).collect();
    let mut converted = convert_whole(server, custom, to, objects).await?;
    for (object, _) in converted.iter_mut().zip(is).filter(|(_, was)| !was) {
        let _dropped = normalize(object, &to.schema, Wrong::Drop, None);
    }
    Ok(converted)
}

/// As [`convert`], with all that conversion leaves.
pub async fn convert_whole(
    server: &Inner,
    custom: &Custom,
    to: &Version,
    objects: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let definition = &custom.definition;
    let wanted = format!("{}/{}", definition.group, to.name);
    let other = |o: &Value| o["apiVersion"] != *wanted;
    if !objects.iter().any(other) {
        return Ok(objects);
    }
    let Some(webhook) = &definition.webhook else {
        // Without a webhook only the version changes.
        let renamed = |mut object: Value| {
            object["apiVersion"] = wanted.as_str().into();
            object
        };
        return Ok(objects.into_iter().map(renamed).collect());
    };
    let asked: Vec<Value> = objects.iter().filter(|o| other(o)).cloned().collect();
    let failed = |from: &Value, why: String| {
        let from = from["apiVersion"].as_str().unwrap_or_default().to_owned();
        Status::internal(format!("conversion webhook for {from}, Kind={} {why}", definition.kind))
    };
    let first = asked[0].clone();
    let answer = ask(&server.outbound, webhook, &wanted, &asked).await;
    let converted = answer.map_err(|why| failed(&first, format!("failed: {why}")))?;
    if converted.len() != asked.len() {
        let why = format!("returned {} objects, expected {}", converted.len(), asked.len());
        return Err(failed(&first, why));
    }
    let mut converted = converted.into_iter().enumerate();
    objects
        .into_iter()
        .map(|object| {
            if !other(&object) {
                return Ok(object);
            }
            let (i, new) = converted.next().expect("one for each that was asked about");
            checked(&object, new, &wanted).map_err(|why| {
                failed(&object, format!("returned invalid object at index {i}: {why}"))
            })
        })
        .collect()
}

/// One ConversionReview with all objects.
async fn ask(
    outbound: &Outbound,
    webhook: &Value,
    wanted: &str,
    objects: &[Value],
) -> Result<Vec<Value>, String> {
    let known = ["v1", "v1beta1"];
    let versions = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
    let review = versions
        .filter_map(Value::as_str)
        .find(|v| known.contains(v))
        .ok_or("does not support any known conversion review version")?;
    let uid = uuid::Uuid::new_v4().to_string();
    let request = json!({
        "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{review}"),
        "request": { "uid": uid, "desiredAPIVersion": wanted, "objects": objects },
    });
    let call = async {
        let destination = Destination::of_client_config(&webhook["clientConfig"])?;
        outbound.post_json(&destination, &request, WAIT, ANSWER_BYTES_MAX).await
    };
    let mut answer = call.await.map_err(|e: CallError| e.to_string())?;
    if review == "v1" {
        let (api_version, kind) = (answer["apiVersion"].as_str(), answer["kind"].as_str());
        if (api_version, kind) != (Some("apiextensions.k8s.io/v1"), Some("ConversionReview")) {
            return Err(format!(
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {}, Kind={}",
                api_version.unwrap_or_default(),
                kind.unwrap_or_default()
            ));
        }
    }
    let response =
        answer.get_mut("response").filter(|r| r.is_object()).ok_or("no response provided")?;
    let got = response["uid"].as_str().unwrap_or_default();
    if review == "v1" && got != uid {
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let status = response["result"]["status"].as_str().unwrap_or_default();
    if status != "Success" {
        return Err(match response["result"]["message"].as_str().unwrap_or_default() {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// A converted object is the same one: only labels and annotations of its metadata may differ.
fn checked(original: &Value, mut new: Value, wanted: &str) -> Result<Value, String> {
    let text = |o: &Value, field: &str| o[field].as_str().unwrap_or_default().to_owned();
    if text(&new, "apiVersion") != wanted {
        return Err(format!(
            "invalid groupVersion (expected {wanted}, received {})",
            text(&new, "apiVersion")
        ));
    }
    if new["kind"] != original["kind"] {
        return Err(format!(
            "invalid kind (expected {}, received {})",
            text(original, "kind"),
            text(&new, "kind")
        ));
    }
    for (field, what) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (e, a) = (text(&original["metadata"], field), text(&new["metadata"], field));
        if e != a {
            return Err(format!("must have the same {what}: {e} != {a}"));
        }
    }
    let Some(sent) = new.get("metadata").and_then(Value::as_object).cloned() else {
        return Err("invalid metadata: missing metadata in converted object".to_owned());
    };
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let map = metadata.as_object_mut().ok_or("invalid metadata in input object")?;
        match sent.get(field).filter(|v| !v.is_null()) {
            None => drop(map.remove(field)),
            Some(value) => {
                let entries = value
                    .as_object()
                    .ok_or_else(|| format!("invalid metadata.{field} in converted object"))?;
                if let Some((key, _)) = entries.iter().find(|(_, v)| !v.is_string()) {
                    return Err(format!(
                        "metadata.{field}[{key}] must be a string in converted object"
                    ));
                }
                let mut errors = Errors::new();
                let root = Path::Root.field("metadata");
                match field {
                    "labels" => rules::labels(value, &root.field(field), &mut errors),
                    _ => rules::annotations(value, &root.field(field), &mut errors),
                }
                if let Some(error) = errors.into_vec().first() {
                    return Err(error.to_string());
                }
                map.insert(field.to_owned(), value.clone());
            }
        }
    }
    new["metadata"] = metadata;
    Ok(new)
}
