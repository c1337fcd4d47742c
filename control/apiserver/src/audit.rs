//! The audit log: who asked what, and what came of it, as events of `audit.k8s.io/v1`.
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>
//!
//! A [`Policy`] says how much is told of which request, [`Log`] where it goes. A request that nothing is
//! told of costs one look at the policy; without an auditor nothing is done at all.

mod log;
mod notes;
mod policy;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use rimward_api::UserInfo;
use serde_json::{Value, json};

use crate::body::{self, BoxError, Response};
use crate::request::Attributes;

pub use log::{Log, LogConfig};
pub(crate) use notes::{annotate, carried, wants_patches};
pub use policy::{Level, Policy, PolicyError, Stage, Verdict};

/// From where a request came; a request's extension.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub IpAddr);

/// Hears events, one line of JSON each. It must not wait.
pub trait Sink: std::fmt::Debug + Send + Sync + 'static {
    fn write(&self, line: String);
}

impl Sink for Log {
    fn write(&self, line: String) {
        Log::write(self, line);
    }
}

/// What decides and tells.
#[derive(Clone, Debug)]
pub struct Auditor {
    pub policy: Arc<Policy>,
    pub sink: Arc<dyn Sink>,
}

/// What is known of a request when it comes in.
pub struct Arrival {
    /// As the answer's `Audit-Id` has it.
    pub id: String,
    pub uri: String,
    pub source: Option<IpAddr>,
    pub received: Timestamp,
}

/// One request on its way to the log.
#[derive(Debug)]
pub struct Trail {
    sink: Arc<dyn Sink>,
    verdict: Verdict,
    event: Value,
    annotations: BTreeMap<String, String>,
}

impl Auditor {
    /// Begins to tell of a request; None if nothing is told.
    pub fn begin(
        &self,
        arrival: &Arrival,
        user: &UserInfo,
        asked: &Attributes,
        headers: &HeaderMap,
    ) -> Option<Trail> {
        let verdict = self.policy.verdict(user, asked);
        if verdict.level == Level::None {
            return None;
        }
        let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok());
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1",
            "level": verdict.level,
            "auditID": arrival.id,
            "requestURI": arrival.uri,
            "verb": asked.verb,
            "user": shown(user),
            "sourceIPs": sources(arrival, headers),
            "requestReceivedTimestamp": micros(arrival.received),
        });
        if let Some(agent) = agent {
            event["userAgent"] = agent.into();
        }
        if let Some(reference) = reference(asked) {
            event["objectRef"] = reference;
        }
        let trail = Trail { sink: self.sink.clone(), verdict, event, annotations: BTreeMap::new() };
        trail.tell(Stage::RequestReceived, arrival.received);
        Some(trail)
    }
}

impl Trail {
    /// Whether bodies of requests are wanted.
    pub fn wants_request(&self) -> bool {
        self.verdict.level >= Level::Request
    }

    /// `constraint` is the constrained verb by which the user may be impersonated, if it is one.
    pub fn acts_as(&mut self, user: &UserInfo, constraint: Option<&str>) {
        self.event["impersonatedUser"] = shown(user);
        if let Some(constraint) = constraint {
            self.event["authenticationMetadata"] = json!({ "impersonationConstraint": constraint });
        }
    }

    pub fn annotate(&mut self, key: &str, value: impl Into<String>) {
        self.annotations.insert(key.to_owned(), value.into());
    }

    /// Does the work of the request; what is noted meanwhile becomes annotations. What the trail was
    /// told before stays as it is.
    pub async fn noting<T>(&mut self, work: impl Future<Output = T>) -> T {
        let (done, notes) = notes::collected(self.wants_request(), work).await;
        for (key, value) in notes {
            self.annotations.entry(key).or_insert(value);
        }
        done
    }

    pub fn request(&mut self, body: &Bytes) {
        if let Some(object) = self.object(body) {
            self.event["requestObject"] = object;
        }
    }

    /// A body as it may be shown: JSON, without what the policy leaves out.
    fn object(&self, body: &Bytes) -> Option<Value> {
        use rimward_control_schema::{Format, decode};
        let mut object = decode::any(body, Format::Json)
            .or_else(|_| decode::any(body, Format::Yaml))
            .ok()
            .filter(|o| !o.is_null() && !o.is_string())?;
        if self.verdict.omit_managed_fields {
            drop_managed_fields(&mut object);
            for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten()
            {
                drop_managed_fields(item);
            }
        }
        Some(object)
    }

    /// Tells of the answer. One that goes on (a watch) is told of at its beginning and at its end.
    pub async fn answered(mut self, response: Response, long: bool) -> Response {
        let code = response.status().as_u16();
        self.event["responseStatus"] = json!({ "metadata": {}, "code": code });
        let (parts, mut body) = response.into_parts();
        if long {
            self.tell(Stage::ResponseStarted, Timestamp::now());
            let end = AtEnd(Some(self));
            let body = body.map_frame(move |frame| {
                let _told_when_dropped = &end;
                frame
            });
            return http::Response::from_parts(parts, body.boxed_unsync());
        }
        let failed = code >= 400;
        let plain = !parts.headers.contains_key(http::header::CONTENT_ENCODING);
        if plain && (failed || self.verdict.level == Level::RequestResponse) {
            let whole = match body.collect().await {
                Ok(whole) => whole.to_bytes(),
                Err(e) => {
                    self.tell(Stage::ResponseComplete, Timestamp::now());
                    return http::Response::from_parts(parts, broken(e));
                }
            };
            self.response(&whole, failed);
            body = body::full(whole);
        }
        self.tell(Stage::ResponseComplete, Timestamp::now());
        http::Response::from_parts(parts, body)
    }

    fn response(&mut self, body: &Bytes, failed: bool) {
        let Some(object) = self.object(body) else { return };
        if failed && object["kind"] == "Status" {
            let mut status = object.clone();
            if let Some(status) = status.as_object_mut() {
                status.remove("kind");
                status.remove("apiVersion");
            }
            self.event["responseStatus"] = status;
        }
        if self.verdict.level == Level::RequestResponse {
            self.event["responseObject"] = object;
        }
    }

    fn tell(&self, stage: Stage, at: Timestamp) {
        if self.verdict.omitted.contains(&stage) {
            return;
        }
        let mut event = self.event.clone();
        event["stage"] = json!(stage);
        event["stageTimestamp"] = micros(at).into();
        if !self.annotations.is_empty() {
            event["annotations"] = json!(self.annotations);
        }
        self.sink.write(event.to_string());
    }
}

/// Tells of the end of an answer when its body is dropped, however it ends.
struct AtEnd(Option<Trail>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        if let Some(trail) = self.0.take() {
            trail.tell(Stage::ResponseComplete, Timestamp::now());
        }
    }
}

fn broken(error: BoxError) -> body::BoxBody {
    body::stream(futures::stream::once(async move { Err(error) }))
}

fn drop_managed_fields(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
}

fn shown(user: &UserInfo) -> Value {
    let mut shown = json!({ "username": user.name });
    if !user.uid.is_empty() {
        shown["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        shown["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        shown["extra"] = json!(user.extra);
    }
    shown
}

/// The object that a request is about.
fn reference(asked: &Attributes) -> Option<Value> {
    let r = asked.resource.as_ref()?;
    let parts = [
        ("resource", &r.resource),
        ("namespace", &r.namespace),
        ("name", &r.name),
        ("apiGroup", &r.group),
        ("apiVersion", &r.version),
        ("subresource", &r.subresource),
    ];
    let said = parts.into_iter().filter(|(_, text)| !text.is_empty());
    Some(Value::Object(said.map(|(name, text)| (name.to_owned(), text.as_str().into())).collect()))
}

/// Whom proxies say they speak for, then who really connected.
fn sources(arrival: &Arrival, headers: &HeaderMap) -> Vec<String> {
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
    let mut all: Vec<String> = forwarded
        .flat_map(|v| v.split(','))
        .filter_map(|a| a.trim().parse::<IpAddr>().ok())
        .map(|a| a.to_string())
        .collect();
    let own = arrival.source.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)).to_string();
    if all.last() != Some(&own) {
        all.push(own);
    }
    all
}

fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
