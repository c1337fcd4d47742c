//! Whether extension API servers can be reached: one task for each, which looks when something that
//! it depends on has changed, and now and then.
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/api-service-v1/>

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_store::Watch;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{ApiService, Told, discovery, openapi};
use crate::health::Part;
use crate::meta;
use crate::options::WriteOptions;
use crate::outbound::{Destination, Missing, Target};
use crate::rest::write::{Author, Change};
use crate::server::Inner;

const CHECK_MAX: Duration = Duration::from_secs(5);
const CHECK_BYTES_MAX: usize = 8 << 20;
/// Attempts of one look: one lost answer is no news.
const ATTEMPTS: usize = 3;
const WELL_PAUSE: Duration = Duration::from_secs(30);
const ILL_PAUSE_MIN: Duration = Duration::from_millis(500);
const ILL_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Endpoints come and go in bursts.
const SETTLE: Duration = Duration::from_millis(50);

/// The condition `Available`, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    available: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn no(reason: &'static str, message: String) -> Self {
        Self { available: false, reason, message }
    }
}

/// Watches over all remote APIServices until the server stops.
pub fn start(server: &Arc<Inner>) {
    server.parts.run(Part::Availability, &server.stop, follow(server.clone()));
}

async fn follow(server: Arc<Inner>) {
    let mut changes = server.aggregation.generation.subscribe();
    let mut running: HashMap<String, (String, CancellationToken)> = HashMap::new();
    loop {
        changes.borrow_and_update();
        let remote: HashMap<String, Arc<ApiService>> = server
            .aggregation
            .all()
            .into_iter()
            .filter(|s| s.destination.is_some())
            .map(|s| (s.name.clone(), s))
            .collect();
        running.retain(|name, (identity, stop)| {
            let same = remote.get(name).is_some_and(|s| identity_of(s) == *identity);
            if !same {
                stop.cancel();
                server.aggregation.tell(name, None);
            }
            same
        });
        for (name, service) in remote {
            if running.contains_key(&name) {
                continue;
            }
            let stop = server.stop.child_token();
            running.insert(name, (identity_of(&service), stop.clone()));
            let server = server.clone();
            tokio::spawn(async move {
                stop.run_until_cancelled(keep(&server, service)).await;
            });
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// What a task was started for; its status is its own doing.
fn identity_of(service: &ApiService) -> String {
    format!("{} {:?}", service.uid, service.destination)
}

async fn keep(server: &Arc<Inner>, service: Arc<ApiService>) {
    let mut pause = ILL_PAUSE_MIN;
    loop {
        let mut feeds = Feeds::open(server, &service);
        let (verdict, told) = look(server, &service).await;
        let available = verdict.available;
        server.aggregation.tell(&service.name, Some(told));
        if let Err(e) = write(server, &service, verdict).await
            && !e.is_not_found()
        {
            tracing::warn!(apiservice = %service.name, error = %e, "its status was not written");
        }
        let wait = match available {
            true => WELL_PAUSE,
            false => pause,
        };
        pause = if available { ILL_PAUSE_MIN } else { (pause * 2).min(ILL_PAUSE_MAX) };
        if let Ok(()) = tokio::time::timeout(wait, feeds.changed()).await {
            tokio::time::sleep(SETTLE).await;
            pause = ILL_PAUSE_MIN;
        }
    }
}

/// What an endpoint depends on.
struct Feeds {
    all: Vec<Box<dyn Watch>>,
    service: String,
}

impl Feeds {
    fn open(server: &Inner, service: &ApiService) -> Self {
        let Some(Ok(Destination { target: Target::Service(s), .. })) = &service.destination else {
            return Self { all: Vec::new(), service: String::new() };
        };
        let after = server.store.revision();
        let reach = server.outbound.reach();
        let prefixes = [
            format!("{}{}/{}", reach.services_prefix, s.namespace, s.name),
            format!("{}{}/{}", reach.endpoints_prefix, s.namespace, s.name),
            format!("{}{}/", reach.slices_prefix, s.namespace),
        ];
        let all = prefixes.iter().filter_map(|p| server.store.watch(p, after).ok()).collect();
        Self { all, service: s.name.clone() }
    }

    /// Answers when one of them has changed; never, when there is nothing to watch.
    async fn changed(&mut self) {
        let name = &self.service;
        let waits = self.all.iter_mut().map(|feed| Box::pin(relevant(&mut **feed, name)));
        let waits: Vec<_> = waits.collect();
        match waits.is_empty() {
            true => std::future::pending().await,
            false => {
                futures::future::select_all(waits).await;
            }
        }
    }
}

async fn relevant(feed: &mut dyn Watch, name: &str) {
    loop {
        let Ok(batch) = feed.next().await else {
            // Closed, or too far behind: the next look opens another.
            return tokio::time::sleep(Duration::from_secs(1)).await;
        };
        if batch.events.iter().any(|e| e.key.contains(name)) {
            return;
        }
    }
}

/// Looks once: from the Service to an answer of its server.
async fn look(server: &Arc<Inner>, service: &ApiService) -> (Verdict, Told) {
    let destination = match &service.destination {
        Some(Ok(destination)) => destination,
        Some(Err(e)) => {
            return (Verdict::no("FailedDiscoveryCheck", e.to_string()), Told::default());
        }
        None => return (local(), Told::default()),
    };
    let Target::Service(target) = &destination.target else { return (local(), Told::default()) };
    if let Err(missing) = server.outbound.reach().check(target).await {
        return (
            missing_verdict(&missing, &target.namespace, &target.name, target.port),
            Told::default(),
        );
    }
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match ask(server, service, destination).await {
            Ok(told) => {
                let message = "all checks passed".to_owned();
                return (Verdict { available: true, reason: "Passed", message }, told);
            }
            Err(e) => why = e,
        }
    }
    let url =
        destination.with_path(&service.path()).map_or_else(|e| e.to_string(), |u| u.to_string());
    let message = format!("failing or missing response from {url}: {why}");
    (Verdict::no("FailedDiscoveryCheck", message), Told::default())
}

fn local() -> Verdict {
    Verdict {
        available: true,
        reason: "Local",
        message: "Local APIServices are always available".into(),
    }
}

fn missing_verdict(missing: &Missing, namespace: &str, name: &str, port: u16) -> Verdict {
    match missing {
        Missing::Service => Verdict::no(
            "ServiceNotFound",
            format!("service/{name} in {namespace:?} is not present"),
        ),
        Missing::Port => Verdict::no(
            "ServicePortError",
            format!("service/{name} in {namespace:?} is not listening on port {port}"),
        ),
        Missing::Endpoints(port) => Verdict::no(
            "MissingEndpoints",
            format!(
                "endpoints for service/{name} in {namespace:?} have no addresses with port name {port:?}"
            ),
        ),
        Missing::Other(why) => Verdict::no(
            "ServiceAccessError",
            format!("service/{name} in {namespace:?} cannot be checked due to: {why}"),
        ),
    }
}

/// The group's and version's own page, and what else the server says of itself.
async fn ask(
    server: &Arc<Inner>,
    service: &ApiService,
    destination: &Destination,
) -> Result<Told, String> {
    let get = |path: String, accept: &'static str| async move {
        let headers = [
            ("accept", accept),
            ("x-remote-user", "system:kube-aggregator"),
            ("x-remote-group", "system:masters"),
        ];
        server.outbound.get(destination, &path, &headers, CHECK_MAX, CHECK_BYTES_MAX).await
    };
    let (parts, page) = get(service.path(), "application/json").await.map_err(|e| e.to_string())?;
    if !parts.status.is_success() {
        let url = destination.with_path(&service.path()).map_err(|e| e.to_string())?;
        return Err(format!("bad status from {url}: {}", parts.status.as_u16()));
    }
    let aggregated = get("/apis".into(), discovery::AGGREGATED_ACCEPT).await.ok();
    let aggregated = aggregated.filter(|(parts, _)| parts.status.is_success());
    let version = aggregated
        .and_then(|(_, bytes)| discovery::version_of_list(&bytes, &service.group, &service.version))
        .or_else(|| discovery::version_of_page(&page, &service.group, &service.version));
    let index = get("/openapi/v3".into(), "application/json").await.ok();
    let index = index.filter(|(parts, _)| parts.status.is_success());
    let openapi = index.and_then(|(_, bytes)| openapi::entry(&bytes, service));
    Ok(Told { version, openapi })
}

/// Writes the condition, if it is another than before.
async fn write(server: &Arc<Inner>, service: &ApiService, verdict: Verdict) -> Result<(), Status> {
    let served = server
        .registry()
        .resource("apiregistration.k8s.io", "apiservices")
        .expect("a built-in kind");
    let user = UserInfo::authenticated("system:kube-aggregator", &["system:masters"]);
    let query = crate::request::Query::default();
    let options = WriteOptions::parse(&query, "UpdateOptions", "kube-apiserver", false)?;
    let author = Author { user: &user, options: &options };
    let rewrite = |mut object: Value| {
        set_condition(&mut object, &verdict, Timestamp::now());
        Ok(object)
    };
    let key = ObjectKey::new("", service.name.clone());
    let change = Change::Rewrite(&rewrite);
    server.update(&served, &key, "status", change, &author, &mut Vec::new()).await.map(|_| ())
}

fn set_condition(object: &mut Value, verdict: &Verdict, now: Timestamp) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let status = if verdict.available { "True" } else { "False" };
    let conditions = object["status"]["conditions"].as_array_mut().expect("was just made one");
    let before = conditions.iter().position(|c| c["type"] == "Available");
    let since = before
        .filter(|i| conditions[*i]["status"] == status)
        .and_then(|i| conditions[i]["lastTransitionTime"].as_str().map(str::to_owned))
        .unwrap_or_else(|| meta::time(now));
    let condition = json!({
        "type": "Available", "status": status, "lastTransitionTime": since,
        "reason": verdict.reason, "message": verdict.message,
    });
    match before {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let mut object = json!({});
        let down = |why: &str| Verdict::no("FailedDiscoveryCheck", why.into());
        set_condition(&mut object, &down("a"), at("2026-01-01T00:00:00Z"));
        set_condition(&mut object, &down("b"), at("2026-01-02T00:00:00Z"));
        let condition = &object["status"]["conditions"][0];
        assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(condition["message"], "b");
        set_condition(&mut object, &local(), at("2026-01-03T00:00:00Z"));
        let condition = &object["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Local")));
        assert_eq!(condition["lastTransitionTime"], "2026-01-03T00:00:00Z");
    }
}
