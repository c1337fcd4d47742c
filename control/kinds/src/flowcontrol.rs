//! flowcontrol.apiserver.k8s.io: who is served how, when there are too many.

use rimward_api::names;
use serde_json::{Value, json};

use crate::check;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill, member};
use crate::rules::Rules;

/// The name of the schema and of the level that are never made to wait.
const EXEMPT: &str = "exempt";

pub const FLOW_SCHEMA: Rules = Rules {
    default: |object| {
        if let Some(spec) = member(object, "spec")
            && spec.int("matchingPrecedence").unwrap_or_default() == 0
        {
            spec["matchingPrecedence"] = 1000.into();
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| flow_schema(object, e),
    update: |new, _, e| flow_schema(new, e),
    status: true,
    generation: true,
    cells: print::extension::flow_schema,
    ..Rules::PLAIN
};

fn flow_schema(object: &Value, e: &mut Errors) {
    const PRECEDENCE_MAX: i64 = 10_000;
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let (precedence, at) =
        (spec.int("matchingPrecedence").unwrap_or_default(), path.field("matchingPrecedence"));
    if precedence <= 0 {
        e.invalid(&at, precedence, "must be a positive value");
    }
    if precedence > PRECEDENCE_MAX {
        e.invalid(&at, precedence, &format!("must not be greater than {PRECEDENCE_MAX}"));
    }
    if precedence == 1 && object.at("metadata").text("name") != EXEMPT {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        e.invalid(&at, precedence, why);
    }
    if spec.has("distinguisherMethod") {
        let kind = spec.at("distinguisherMethod").text("type");
        let at = path.field("distinguisherMethod");
        check::one_of(&kind.into(), &["ByNamespace", "ByUser"], &at.field("type"), e);
    }
    let at = path.field("priorityLevelConfiguration");
    match spec.at("priorityLevelConfiguration").text("name") {
        "" => e.required(&at.field("name"), "must reference a priority level"),
        name => e.invalid_each(&at.field("name"), name, names::dns1123_subdomain(name)),
    }
    let list = path.field("rules");
    for (i, rule) in spec.list("rules").iter().enumerate() {
        policy_rule(rule, &list.index(i), e);
    }
}

/// Who asks for what.
fn policy_rule(rule: &Value, path: &Path<'_>, e: &mut Errors) {
    let (subjects, list) = (rule.list("subjects"), path.field("subjects"));
    if subjects.is_empty() {
        e.required(&list, "subjects must contain at least one value");
    }
    for (i, subject) in subjects.iter().enumerate() {
        self::subject(subject, &list.index(i), e);
    }
    let [resources, urls] = ["resourceRules", "nonResourceRules"].map(|field| rule.list(field));
    if resources.is_empty() && urls.is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        e.required(path, why);
    }
    let list = path.field("resourceRules");
    for (i, rule) in resources.iter().enumerate() {
        resource_rule(rule, &list.index(i), e);
    }
    let list = path.field("nonResourceRules");
    for (i, rule) in urls.iter().enumerate() {
        let at = list.index(i);
        verbs(rule, &at, e);
        let (urls, list) = (rule.list("nonResourceURLs"), at.field("nonResourceURLs"));
        let missing = "nonResourceURLs must contain at least one value";
        some_or_all(urls, missing, "non-resource URLs", &list, e);
        if urls.iter().any(|url| url == "*") {
            continue;
        }
        for (j, url) in urls.iter().filter_map(Value::as_str).enumerate() {
            if let Some(why) = bad_url(url) {
                e.invalid(&list.index(j), url, why);
            }
        }
    }
}

fn subject(subject: &Value, path: &Path<'_>, e: &mut Errors) {
    let (field, of) = match subject.text("kind") {
        "User" => ("user", "User"),
        "Group" => ("group", "Group"),
        "ServiceAccount" => ("serviceAccount", "ServiceAccount"),
        other => {
            let kinds = ["Group", "ServiceAccount", "User"];
            return e.not_supported(&path.field("kind"), other, &kinds);
        }
    };
    let (who, at) = (subject.at(field), path.field(field));
    if !who.is_object() {
        return e.required(&at, &format!("{field} is required when subject kind is '{of}'"));
    }
    let (name, named) = (who.text("name"), at.field("name"));
    if field != "serviceAccount" {
        if name.is_empty() {
            e.required(&named, "");
        }
        return;
    }
    let namespace = who.text("namespace");
    match namespace {
        "" => e.required(&at.field("namespace"), "must specify namespace for service account"),
        _ => e.invalid_each(&at.field("namespace"), namespace, names::dns1123_label(namespace)),
    }
    match name {
        "" => e.required(&named, ""),
        "*" => {}
        _ => e.invalid_each(&named, name, names::dns1123_subdomain(name)),
    }
}

/// A list that must not be empty, in which `*` stands alone.
fn some_or_all(list: &[Value], missing: &str, others: &str, path: &Path<'_>, e: &mut Errors) {
    if list.is_empty() {
        e.required(path, missing);
    } else if list.len() > 1 && list.iter().any(|item| item == "*") {
        let why = format!("if '*' is present, must not specify other {others}");
        e.invalid(path, list.to_vec(), &why);
    }
}

fn verbs(rule: &Value, path: &Path<'_>, e: &mut Errors) {
    const VERBS: [&str; 17] = [
        "connect",
        "create",
        "delete",
        "deletecollection",
        "get",
        "head",
        "list",
        "options",
        "patch",
        "post",
        "proxy",
        "put",
        "trace",
        "update",
        "use",
        "watch",
        "*",
    ];
    let (verbs, at) = (rule.list("verbs"), path.field("verbs"));
    some_or_all(verbs, "verbs must contain at least one value", "verbs", &at, e);
    let known = |verb: &Value| verb.as_str().is_some_and(|verb| VERBS.contains(&verb));
    if !verbs.is_empty() && !verbs.iter().all(known) {
        e.not_supported(&at, &Value::from(verbs).to_string(), &VERBS[..16]);
    }
}

fn resource_rule(rule: &Value, path: &Path<'_>, e: &mut Errors) {
    verbs(rule, path, e);
    for (field, missing, others) in [
        ("apiGroups", "resource rules must supply at least one api group", "api groups"),
        ("resources", "resource rules must supply at least one resource", "resources"),
    ] {
        some_or_all(rule.list(field), missing, others, &path.field(field), e);
    }
    let (namespaces, list) = (rule.list("namespaces"), path.field("namespaces"));
    if namespaces.is_empty() {
        if !rule.flag("clusterScope") {
            let why =
                "resource rules that are not cluster scoped must supply at least one namespace";
            e.required(&list, why);
        }
        return;
    }
    some_or_all(namespaces, "", "namespaces", &list, e);
    for (i, name) in namespaces.iter().filter_map(Value::as_str).enumerate() {
        for why in names::dns1123_label(name).into_iter().filter(|_| name != "*") {
            let why = format!("field must be \"*\" or a valid namespace name: {why}");
            e.invalid(&list.index(i), name, &why);
        }
    }
}

/// A path that begins with a slash, with a `*` at most as its last part.
fn bad_url(url: &str) -> Option<&'static str> {
    let inner = url.strip_prefix('/').unwrap_or(url);
    let parts: Vec<&str> = inner.split('/').collect();
    if url.is_empty() {
        Some("must not be empty")
    } else if !url.starts_with('/') {
        Some("must start with slash")
    } else if url == "/" {
        None
    } else if url.contains(' ') {
        Some("must not contain white-space")
    } else if url.contains("//") {
        Some("must not contain double slash")
    } else {
        let (last, rest) = parts.split_last()?;
        let misplaced = rest.iter().any(|part| part.contains('*'));
        let glued = last.contains('*') && *last != "*";
        (misplaced || glued).then_some("wildcard can only do suffix matching")
    }
}

pub const PRIORITY_LEVEL: Rules = Rules {
    default: |object| {
        let Some(spec) = member(object, "spec") else { return };
        if let Some(limited) = spec.get_mut("limited") {
            fill(limited, "nominalConcurrencyShares", 30);
            fill(limited, "lendablePercent", 0);
            if let Some(queuing) =
                limited.get_mut("limitResponse").and_then(|r| r.get_mut("queuing"))
            {
                for (field, value) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                    fill(queuing, field, value);
                }
            }
        }
        if spec.text("type") == "Exempt"
            && let Some(exempt) = member(spec, "exempt")
        {
            fill(exempt, "nominalConcurrencyShares", 0);
            fill(exempt, "lendablePercent", 0);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    create: |object, e| priority_level(object, e),
    update: |new, _, e| priority_level(new, e),
    status: true,
    generation: true,
    cells: print::extension::priority_level,
    ..Rules::PLAIN
};

fn priority_level(object: &Value, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    let kind = spec.text("type");
    if (object.at("metadata").text("name") == EXEMPT) != (kind == "Exempt") {
        let why = "type must be 'Exempt' if and only if `name` is 'exempt'";
        e.invalid(&path.field("type"), kind, why);
    }
    let [limited, exempt] = ["limited", "exempt"].map(|field| spec.at(field));
    let (limited_at, exempt_at) = (path.field("limited"), path.field("exempt"));
    match kind {
        "Exempt" => {
            if limited.is_object() {
                e.forbidden(&limited_at, "must be nil if the type is not Limited");
            }
            match exempt.is_object() {
                true => seats(exempt, &exempt_at, e),
                false => e.required(&exempt_at, "must not be empty if type is Exempt"),
            }
        }
        "Limited" => {
            if exempt.is_object() {
                e.forbidden(&exempt_at, "must be nil if the type is Limited");
            }
            match limited.is_object() {
                true => self::limited(limited, &limited_at, e),
                false => e.required(&limited_at, "must not be empty if type is Limited"),
            }
        }
        other => e.not_supported(&path.field("type"), other, &["Exempt", "Limited"]),
    }
}

fn seats(level: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Some(shares) = level.int("nominalConcurrencyShares")
        && shares < 0
    {
        let why = "must be a non-negative integer";
        e.invalid(&path.field("nominalConcurrencyShares"), shares, why);
    }
    if let Some(percent) = level.int("lendablePercent")
        && !(0..=100).contains(&percent)
    {
        let why = "must be between 0 and 100, inclusive";
        e.invalid(&path.field("lendablePercent"), percent, why);
    }
}

fn limited(limited: &Value, path: &Path<'_>, e: &mut Errors) {
    seats(limited, path, e);
    if let Some(percent) = limited.int("borrowingLimitPercent")
        && percent < 0
    {
        let why = "if specified, must be a non-negative integer";
        e.invalid(&path.field("borrowingLimitPercent"), percent, why);
    }
    let (response, at) = (limited.at("limitResponse"), path.field("limitResponse"));
    let (queuing, queues_at) = (response.at("queuing"), at.field("queuing"));
    match (response.text("type"), queuing.is_object()) {
        ("Reject", true) => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            e.forbidden(&queues_at, why);
        }
        ("Reject", false) => {}
        ("Queue", false) => {
            let why = "must not be empty if limited.limitResponse.type is Limited";
            e.required(&queues_at, why);
        }
        ("Queue", true) => self::queuing(queuing, &queues_at, e),
        ("", _) => e.required(&at.field("type"), ""),
        (other, _) => e.not_supported(&at.field("type"), other, &["Queue", "Reject"]),
    }
}

/// How many queues a request may go to, so that shuffling keeps flows apart.
fn queuing(queuing: &Value, path: &Path<'_>, e: &mut Errors) {
    const ENTROPY_BITS_MAX: f64 = 60.0;
    const QUEUES_MAX: i64 = 10_000_000;
    let number = |field: &str| queuing.int(field).unwrap_or_default();
    if number("queueLengthLimit") <= 0 {
        e.invalid(&path.field("queueLengthLimit"), number("queueLengthLimit"), "must be positive");
    }
    let (queues, hand, at) = (number("queues"), number("handSize"), path.field("handSize"));
    if queues <= 0 {
        return e.invalid(&path.field("queues"), queues, "must be positive");
    }
    if queues > QUEUES_MAX {
        let why = format!("must not be greater than {QUEUES_MAX}");
        e.invalid(&path.field("queues"), queues, &why);
    }
    if hand <= 0 {
        return e.invalid(&at, hand, "must be positive");
    }
    if hand > queues {
        let why = format!("should not be greater than queues ({queues})");
        return e.invalid(&at, hand, &why);
    }
    // Each card of a hand is drawn from the queues that are left.
    let bits: f64 = (queues - hand + 1..=queues).take(1000).map(|n| (n as f64).log2()).sum();
    if bits.ceil() > ENTROPY_BITS_MAX {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {ENTROPY_BITS_MAX}"
        );
        e.invalid(&at, hand, &why);
    }
}
