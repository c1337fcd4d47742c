//! One webhook of a configuration, taken apart.

use std::sync::Arc;
use std::time::Duration;

use rimward_api::Status;
use rimward_control_cel::MatchConditions;
use serde_json::Value;

use super::review::{self, Answer, Failure};
use crate::admission::Review;
use crate::admission::matching::Constraints;
use crate::admission::policies;
use crate::audit;
use crate::outbound::{CallError, Destination};
use crate::served::Served;
use crate::server::Inner;
use crate::views::Stored;

const TIMEOUT_DEFAULT_SECONDS: u64 = 10;
const TIMEOUT_MAX_SECONDS: u64 = 30;
/// A patch of the largest object, in base64, with room to spare.
const ANSWER_BYTES_MAX: usize = 6 << 20;

pub struct Hook {
    pub configuration: String,
    pub name: String,
    /// Among all webhooks: configuration, name and position.
    pub uid: Arc<str>,
    constraints: Constraints,
    conditions: MatchConditions,
    destination: Result<Destination, CallError>,
    /// `failurePolicy: Ignore`
    pub ignored: bool,
    timeout: Duration,
    /// May be called for a dry run.
    dry_runs: bool,
    /// `reinvocationPolicy: IfNeeded`
    pub reinvoked: bool,
    /// The version of AdmissionReview that it is sent; None when it reads none of ours.
    version: Option<&'static str>,
}

/// The webhooks of a stored configuration, in its order.
pub fn of_configuration(name: &str, stored: &Stored) -> Vec<Arc<Hook>> {
    let object: Value = match serde_json::from_slice(stored.record.body()) {
        Ok(object) => object,
        Err(e) => {
            tracing::error!(configuration = name, error = %e, "left out of admission");
            return Vec::new();
        }
    };
    let hooks = object.get("webhooks").and_then(Value::as_array).into_iter().flatten();
    hooks.enumerate().filter_map(|(i, hook)| Hook::parse(name, i, hook)).map(Arc::new).collect()
}

impl Hook {
    fn parse(configuration: &str, position: usize, hook: &Value) -> Option<Self> {
        let text = |field: &str| hook.get(field).and_then(Value::as_str).unwrap_or_default();
        let name = text("name").to_owned();
        let Some(constraints) = Constraints::parse(hook, "rules") else {
            tracing::error!(configuration, webhook = %name, "left out of admission: a selector does not parse");
            return None;
        };
        let seconds = hook.get("timeoutSeconds").and_then(Value::as_u64);
        let seconds = seconds.unwrap_or(TIMEOUT_DEFAULT_SECONDS).clamp(1, TIMEOUT_MAX_SECONDS);
        let null = Value::Null;
        let versions = hook.get("admissionReviewVersions").and_then(Value::as_array);
        let version =
            versions.into_iter().flatten().filter_map(Value::as_str).find_map(|v| match v {
                "v1" => Some(review::V1),
                "v1beta1" => Some(review::V1BETA1),
                _ => None,
            });
        Some(Self {
            uid: format!("{configuration}/{name}/{position}").into(),
            configuration: configuration.to_owned(),
            constraints,
            conditions: policies::conditions_of(hook),
            destination: Destination::of_client_config(hook.get("clientConfig").unwrap_or(&null)),
            ignored: text("failurePolicy") == "Ignore",
            timeout: Duration::from_secs(seconds),
            dry_runs: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            reinvoked: text("reinvocationPolicy") == "IfNeeded",
            version,
            name,
        })
    }

    /// The version of the resource in which it is to be asked, if at all.
    pub async fn matched(
        &self,
        server: &Inner,
        review: &Review<'_>,
    ) -> Result<Option<Arc<Served>>, Status> {
        let Some(served) = self.constraints.matched(server, review).await? else { return Ok(None) };
        match policies::conditions_hold(server, review, &served, &self.conditions).await? {
            Ok(true) => Ok(Some(served)),
            Ok(false) => Ok(None),
            Err(why) if self.ignored => {
                tracing::warn!(webhook = %self.name, error = %why, "a match condition failed, the webhook is not called");
                Ok(None)
            }
            Err(why) => Err(review.forbidden(&why)),
        }
    }

    /// Asks; `object` and `old` are in the form of `served`.
    pub async fn call(
        &self,
        server: &Inner,
        review: &Review<'_>,
        served: &Served,
        object: &Value,
        old: &Value,
        mutating: bool,
    ) -> Result<Answer, Failure> {
        if review.options.dry_run() && !self.dry_runs {
            let why = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Failure::Unfit(Status::bad_request(why)));
        }
        let Some(version) = self.version else {
            return Err(Failure::Call(
                "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)".into(),
            ));
        };
        let destination = self
            .destination
            .as_ref()
            .map_err(|e| Failure::Call(format!("could not get REST client: {e}")))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let request = review::request(version, &uid, review, served, object, old);
        let answer =
            server.outbound.post_json(destination, &request, self.timeout, ANSWER_BYTES_MAX).await;
        let answer = answer.map_err(|e| Failure::Call(format!("failed to call webhook: {e}")))?;
        for (key, value) in review::annotations(&self.name, &answer) {
            audit::annotate(key, || value);
        }
        review::read(version, &uid, &self.name, &answer, mutating)
    }
}
