//! Probes and lifecycle hooks.

use serde_json::Value;

use crate::check::{self, net, text};
use crate::path::{Errors, Path};
use crate::read::Read;

pub fn probes(container: &Value, path: &Path<'_>, e: &mut Errors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.at(name);
        if !probe.is_object() {
            continue;
        }
        let at = path.field(name);
        self::probe(probe, &at, e);
        let successes = probe.int("successThreshold").unwrap_or_default();
        if name != "readinessProbe" && successes != 1 {
            e.invalid(&at.field("successThreshold"), successes, "must be 1");
        }
        let grace = probe.at("terminationGracePeriodSeconds");
        if name == "readinessProbe" && !grace.is_null() {
            e.invalid(
                &at.field("terminationGracePeriodSeconds"),
                grace.clone(),
                "must not be set for readinessProbes",
            );
        }
    }
}

fn probe(probe: &Value, path: &Path<'_>, e: &mut Errors) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], path, e);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        check::not_negative(probe.at(field), &path.field(field), e);
    }
    if let Some(seconds) = probe.int("terminationGracePeriodSeconds").filter(|s| *s <= 0) {
        e.invalid(&path.field("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

/// `grace_seconds` bounds how long a sleep may last.
pub fn lifecycle(lifecycle: &Value, grace_seconds: i64, path: &Path<'_>, e: &mut Errors) {
    for name in ["postStart", "preStop"] {
        let hook = lifecycle.at(name);
        if hook.is_object() {
            handler(hook, &["exec", "httpGet", "tcpSocket", "sleep"], &path.field(name), e);
            sleep(hook.at("sleep"), grace_seconds, &path.field(name).field("sleep"), e);
        }
    }
}

fn sleep(sleep: &Value, grace_seconds: i64, path: &Path<'_>, e: &mut Errors) {
    let seconds = sleep.int("seconds").unwrap_or_default();
    if sleep.is_object() && !(0..=grace_seconds).contains(&seconds) {
        let why = format!(
            "must be non-negative and less than terminationGracePeriodSeconds ({grace_seconds}). Enable AllowPodLifecycleSleepActionZeroValue feature gate for zero sleep."
        );
        e.invalid(path, seconds, &why);
    }
}

/// Exactly one way to ask.
fn handler(handler: &Value, kinds: &[&str], path: &Path<'_>, e: &mut Errors) {
    let mut count = 0;
    for kind in kinds {
        let action = handler.at(kind);
        if !action.is_object() {
            continue;
        }
        count += 1;
        let at = path.field(kind);
        if count > 1 {
            e.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if action.list("command").is_empty() => e.required(&at.field("command"), ""),
            "httpGet" => http_get(action, &at, e),
            "tcpSocket" => net::port_or_name(action.at("port"), &at.field("port"), e),
            "grpc" => net::port_number(action.at("port"), &at.field("port"), e),
            _ => {}
        }
    }
    if count == 0 {
        e.required(path, "must specify a handler type");
    }
}

fn http_get(get: &Value, path: &Path<'_>, e: &mut Errors) {
    if get.text("path").is_empty() {
        e.required(&path.field("path"), "");
    }
    net::port_or_name(get.at("port"), &path.field("port"), e);
    check::one_of(get.at("scheme"), &["HTTP", "HTTPS"], &path.field("scheme"), e);
    // Which header it is, Kubernetes does not say.
    for name in get.list("httpHeaders").iter().map(|header| header.text("name")) {
        e.invalid_each(&path.field("httpHeaders"), name, text::http_header(name));
    }
}
