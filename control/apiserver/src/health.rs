//! `/livez`, `/readyz` and `/healthz`: whole, check by check (`?verbose`), without some
//! (`?exclude=`), and each check by itself (`/readyz/ping`).
//! <https://kubernetes.io/docs/reference/using-api/health-checks/>
//!
//! The checks have kube-apiserver's names, since probes and dashboards ask for them: `etcd` is the store,
//! whichever backend that is, and a hook is the part of the start that does what that hook does there.

mod parts;

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::body::Response;
use crate::error;
use crate::request::{Call, Query};
use crate::server::Inner;

pub use parts::{Part, Parts};

/// What the names of the start's checks begin with.
const HOOK: &str = "poststarthook/";
/// How long the store may take to answer.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// What the start does, by the names of kube-apiserver's hooks, and the part of this server that does
/// it.
const HOOKS: [(&str, Part); 28] = [
    ("start-apiserver-admission-initializer", Part::PolicyStatuses),
    ("generic-apiserver-start-informers", Part::Mirrors),
    ("priority-and-fairness-config-consumer", Part::FlowStatuses),
    ("priority-and-fairness-filter", Part::FlowSeats),
    ("storage-object-count-tracker-hook", Part::Sweep),
    ("start-apiextensions-informers", Part::Mirrors),
    ("start-apiextensions-controllers", Part::Definitions),
    ("crd-informer-synced", Part::Mirrors),
    ("start-system-namespaces-controller", Part::Namespaces),
    ("start-cluster-authentication-info-controller", Part::OwnObjects),
    ("start-kube-apiserver-identity-lease-controller", Part::Identity),
    ("start-kube-apiserver-identity-lease-garbage-collector", Part::Identity),
    ("start-legacy-token-tracking-controller", Part::TokenTracking),
    ("start-service-ip-repair-controllers", Part::ClusterIps),
    ("rbac/bootstrap-roles", Part::Roles),
    ("scheduling/bootstrap-system-priority-classes", Part::PriorityClasses),
    ("priority-and-fairness-config-producer", Part::FlowObjects),
    ("bootstrap-controller", Part::OwnObjects),
    ("start-kubernetes-service-cidr-controller", Part::OwnObjects),
    ("aggregator-reload-proxy-client-cert", Part::Mirrors),
    ("start-kube-aggregator-informers", Part::Mirrors),
    ("apiservice-status-local-available-controller", Part::Registration),
    ("apiservice-status-remote-available-controller", Part::Availability),
    ("apiservice-registration-controller", Part::Registration),
    ("apiservice-discovery-controller", Part::Availability),
    ("kube-apiserver-autoregistration", Part::Registration),
    ("apiservice-openapi-controller", Part::Availability),
    ("apiservice-openapiv3-controller", Part::Availability),
];

/// One of what is looked at.
pub struct Check {
    pub name: String,
    pub well: bool,
}

/// Where checks are asked for.
pub const ENDPOINTS: [&str; 3] = ["healthz", "livez", "readyz"];

/// Answers a path below one of the three; None for another path.
pub async fn serve(server: &Inner, call: &Call, path: &str) -> Option<Response> {
    let mut words = path.trim_start_matches('/').splitn(2, '/');
    let name = words.next()?;
    let name = ENDPOINTS.into_iter().find(|e| *e == name)?;
    let checks = checks(server, name).await;
    server.metrics.looked(name, &checks);
    let (code, text) = match words.next() {
        None => whole(name, &checks, &call.query),
        Some(one) => alone(checks.iter().find(|c| c.name == one)?),
    };
    let mut response = error::text(code, text);
    let nosniff = http::HeaderValue::from_static("nosniff");
    response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Some(response)
}

/// The checks of one of [`ENDPOINTS`], looked at now.
pub async fn checks(server: &Inner, endpoint: &str) -> Vec<Check> {
    let stopping = server.stop.is_cancelled();
    let started = server.ready.load(Ordering::Acquire);
    // A server that stops ends its parts, which is no fault of theirs.
    let is_well = |part| stopping || server.parts.is_well(part);
    let read = server.store.get(&server.namespaces_prefix, None);
    let stored = matches!(tokio::time::timeout(STORE_PATIENCE, read).await, Ok(Ok(_)));
    names(endpoint)
        .map(|name| {
            let well = match name.as_str() {
                "ping" | "log" => true,
                "etcd" | "etcd-readiness" => stored,
                "shutdown" => !stopping,
                "informer-sync" => is_well(Part::Mirrors) && server.mirrors.are_current(),
                "autoregister-completion" => stopping || started,
                hook => {
                    let hook = hook.strip_prefix(HOOK).unwrap_or_default();
                    HOOKS.iter().any(|(name, part)| *name == hook && is_well(*part))
                }
            };
            Check { name, well }
        })
        .collect()
}

/// The names of the checks of one of [`ENDPOINTS`], in the order in which they are shown.
pub fn names(endpoint: &str) -> impl Iterator<Item = String> {
    let ready = endpoint == "readyz";
    let of_readiness = ["etcd-readiness", "informer-sync"].iter().filter(move |_| ready);
    let plain = ["ping", "log", "etcd"].iter().chain(of_readiness).map(|n| (*n).to_owned());
    let hooks = HOOKS.iter().map(|(hook, _)| format!("{HOOK}{hook}"));
    let last = ["autoregister-completion"].iter().chain(["shutdown"].iter().filter(move |_| ready));
    plain.chain(hooks).chain(last.map(|n| (*n).to_owned()))
}

fn alone(check: &Check) -> (u16, String) {
    match check.well {
        true => (200, "ok".to_owned()),
        false => (500, format!("internal server error: {} failed\n", check.name)),
    }
}

fn whole(name: &str, checks: &[Check], query: &Query) -> (u16, String) {
    let mut unknown: Vec<&str> = query.all("exclude").collect();
    let (mut shown, mut well) = (String::new(), true);
    for check in checks {
        let excluded = query.all("exclude").any(|x| x == check.name);
        unknown.retain(|x| *x != check.name);
        let line = match (excluded, check.well) {
            (true, _) => "excluded: ok",
            (false, true) => "ok",
            (false, false) => "failed: reason withheld",
        };
        let sign = if excluded || check.well { '+' } else { '-' };
        well &= excluded || check.well;
        writeln!(shown, "[{sign}]{} {line}", check.name).expect("writing to a String cannot fail");
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        unknown.dedup();
        let quoted: Vec<String> = unknown.iter().map(|x| format!("{x:?}")).collect();
        let list = quoted.join(",");
        writeln!(shown, "warn: some health checks cannot be excluded: no matches for {list}")
            .expect("writing to a String cannot fail");
    }
    match (well, query.get("verbose")) {
        (false, _) => (500, format!("{shown}{name} check failed\n")),
        (true, None) => (200, "ok".to_owned()),
        (true, Some(_)) => (200, format!("{shown}{name} check passed\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, ready: bool, expected: (u16, &str)) {
        let check = |name: &str, well| Check { name: name.to_owned(), well };
        let checks = [check("ping", true), check("started", ready)];
        let (code, text) = whole("readyz", &checks, &Query::parse(Some(query)));
        assert_eq!((code, text.as_str()), expected, "{query}");
    }

    #[test]
    fn texts() {
        check("", true, (200, "ok"));
        check("verbose", true, (200, "[+]ping ok\n[+]started ok\nreadyz check passed\n"));
        let failed = "[+]ping ok\n[-]started failed: reason withheld\nreadyz check failed\n";
        check("", false, (500, failed));
        check("exclude=started", false, (200, "ok"));
        check(
            "verbose&exclude=started&exclude=x",
            false,
            (
                200,
                "[+]ping ok\n[+]started excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"x\"\nreadyz check passed\n",
            ),
        );
    }
}
