//! How objects of one version become those of another.

use rimward_api::names;
use serde_json::Value;

use crate::check;
use crate::path::{Errors, Path};
use crate::read::Read;

pub(super) fn check(conversion: &Value, path: &Path<'_>, e: &mut Errors) {
    if conversion.is_null() {
        return;
    }
    let strategies = ["None", "Webhook"];
    check::required_one_of(conversion.at("strategy"), &strategies, &path.field("strategy"), e);
    let webhook = conversion.at("webhook");
    let config = webhook.at("clientConfig");
    let (at, reviews_at) =
        (path.field("webhookClientConfig"), path.field("conversionReviewVersions"));
    let reviews = webhook.list("conversionReviewVersions");
    if conversion.text("strategy") != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if config.is_object() {
            e.forbidden(&at, why);
        }
        if !reviews.is_empty() {
            e.forbidden(&reviews_at, why);
        }
        return;
    }
    match (config.is_object(), config.has("url"), config.has("service")) {
        (false, ..) => e.required(&at, "required when strategy is set to Webhook"),
        (_, url, service) if url == service => {
            e.required(&at, "exactly one of url or service is required");
        }
        (_, true, _) => webhook_url(config.text("url"), &at.field("url"), e),
        _ => webhook_service(config.at("service"), &at.field("service"), e),
    }
    review_versions(reviews, &reviews_at, e);
}

fn webhook_url(url: &str, at: &Path<'_>, e: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some(rest) = url.strip_prefix("https://") else {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        return e.invalid(at, scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        e.invalid(at, host, &format!("host must be specified{FORM}"));
    }
    if host.contains('@') {
        e.invalid(at, host, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        e.invalid(at, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = rest.split('#').next().unwrap_or_default().split_once('?') {
        e.invalid(at, query, "query parameters are not permitted in the URL");
    }
}

fn webhook_service(service: &Value, at: &Path<'_>, e: &mut Errors) {
    for (field, what) in
        [("name", "service name is required"), ("namespace", "service namespace is required")]
    {
        if service.text(field).is_empty() {
            e.required(&at.field(field), what);
        }
    }
    if let Some(port) = service.int("port")
        && !(1..=65535).contains(&port)
    {
        e.invalid(
            &at.field("port"),
            port,
            "port is not valid: must be between 1 and 65535, inclusive",
        );
    }
    let path = service.text("path");
    if !path.is_empty() && !path.starts_with('/') {
        e.invalid(&at.field("path"), path, "must start with a '/'");
    }
}

fn review_versions(versions: &[Value], at: &Path<'_>, e: &mut Errors) {
    if versions.is_empty() {
        return e.required(at, "");
    }
    let mut seen = check::Seen::default();
    for (i, version) in versions.iter().filter_map(Value::as_str).enumerate() {
        if seen.again(version) {
            e.invalid(&at.index(i), version, "duplicate version");
            continue;
        }
        e.invalid_each(&at.index(i), version, names::dns1035_label(version));
    }
    if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        e.invalid(at, Value::Array(versions.to_vec()), "must include at least one of v1, v1beta1");
    }
}
