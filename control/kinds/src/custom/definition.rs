//! The rules of a CustomResourceDefinition itself.
//! <https://kubernetes.io/docs/reference/kubernetes-api/extend-resources/custom-resource-definition-v1/>

mod conversion;
mod versions;

use rimward_api::names;
use serde_json::{Value, json};

use super::formats;
use super::schema::Schema;
use crate::check;
use crate::kind::Write;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill_text, member};
use crate::rules::Rules;

/// What holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Says that a group of Kubernetes' own may be extended.
pub const APPROVED: &str = "api-approved.kubernetes.io";

pub const CUSTOM_RESOURCE_DEFINITION: Rules = Rules {
    default: |object| {
        let Some(spec) = member(object, "spec") else { return };
        if let Some(conversion) = member(spec, "conversion") {
            fill_text(conversion, "strategy", "None");
            if let Some(service) =
                conversion.pointer_mut("/webhook/clientConfig/service").filter(|s| s.is_object())
            {
                crate::read::fill(service, "port", 443);
            }
        }
        if let Some(names) = member(spec, "names") {
            let kind = names.text("kind").to_owned();
            if !kind.is_empty() {
                fill_text(names, "singular", &kind.to_lowercase());
                fill_text(names, "listKind", &format!("{kind}List"));
            }
        }
    },
    prepare_create: |object| {
        let stored: Vec<&str> = storage_version(object).into_iter().collect();
        object["status"] = json!({ "conditions": null, "acceptedNames": { "plural": "", "kind": "" }, "storedVersions": stored });
    },
    prepare_update: |write, new, _| {
        if write == Write::Main {
            store_too(new);
        }
    },
    create: |object, e| {
        named(object, e);
        definition(object, None, e);
    },
    update: |new, old, e| {
        definition(new, Some(old), e);
        unchanged(new, old, e);
    },
    update_sub: |_, new, _, e| {
        accepted_names(new, e);
    },
    status: true,
    generation: true,
    unconditional: false,
    cells: print::name_created,
    warnings,
    ..Rules::PLAIN
};

/// The name of the version in which objects are stored.
pub fn storage_version(definition: &Value) -> Option<&str> {
    let versions = definition.at("spec").list("versions");
    versions.iter().find(|v| v.flag("storage")).map(|v| v.text("name"))
}

/// Whether a condition of the definition is True.
pub fn is_true(definition: &Value, condition: &str) -> bool {
    print::condition(definition.at("status"), condition) == Some("True")
}

/// The storage version counts among the stored ones from now on.
fn store_too(definition: &mut Value) {
    let Some(version) = storage_version(definition).map(str::to_owned) else { return };
    let Some(status) = member(definition, "status") else { return };
    if !status.list("storedVersions").iter().any(|v| *v == *version) {
        let mut all = status.list("storedVersions").to_vec();
        all.push(version.into());
        status["storedVersions"] = all.into();
    }
}

fn named(object: &Value, e: &mut Errors) {
    let names = object.at("spec").at("names");
    let name = object.at("metadata").text("name");
    if !name.is_empty()
        && name != format!("{}.{}", names.text("plural"), object.at("spec").text("group"))
    {
        let at = Path::Root.field("metadata");
        e.invalid(&at.field("name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
}

fn definition(object: &Value, old: Option<&Value>, e: &mut Errors) {
    let (spec, path) = (object.at("spec"), Path::Root.field("spec"));
    group(spec.text("group"), &path.field("group"), e);
    check::required_one_of(spec.at("scope"), &["Cluster", "Namespaced"], &path.field("scope"), e);
    let list = path.field("versions");
    let all = spec.list("versions");
    for (i, version) in all.iter().enumerate() {
        if !version.deep(&["schema", "openAPIV3Schema"]).is_object() {
            e.required(&list.index(i).field("schema").field("openAPIV3Schema"), "");
        }
    }
    versions::check(spec, old.map_or(&Value::Null, |o| o.at("spec")), &path, e);
    names_of(spec, &path.field("names"), e);
    if spec.flag("preserveUnknownFields")
        && !old.is_some_and(|o| o.at("spec").flag("preserveUnknownFields"))
    {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        e.invalid(&path.field("preserveUnknownFields"), true, why);
    }
    conversion::check(spec.at("conversion"), &path.field("conversion"), e);
    accepted_names(object, e);
    stored_versions(object, e);
    approval(object, old, e);
}

fn group(group: &str, path: &Path<'_>, e: &mut Errors) {
    let wrong = names::dns1123_subdomain(group);
    if group.is_empty() {
        e.required(path, "");
    } else if !wrong.is_empty() {
        e.invalid(path, group, &wrong.join(","));
    } else if !group.contains('.') {
        e.invalid(path, group, "should be a domain with at least one dot");
    }
}

fn names_of(spec: &Value, path: &Path<'_>, e: &mut Errors) {
    let names = spec.at("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        if names.text(field).is_empty() {
            e.required(&path.field(field), "");
        }
    }
    well_formed(names, path, e);
}

/// The form of names, wanted or accepted.
fn well_formed(names: &Value, path: &Path<'_>, e: &mut Errors) {
    for field in ["plural", "singular"] {
        let text = names.text(field);
        let wrong = names::dns1035_label(text);
        if !text.is_empty() && !wrong.is_empty() {
            e.invalid(&path.field(field), text, &wrong.join(","));
        }
    }
    for field in ["kind", "listKind"] {
        let text = names.text(field);
        let wrong = names::dns1035_label(&text.to_lowercase());
        if !text.is_empty() && !wrong.is_empty() {
            let why =
                format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
            e.invalid(&path.field(field), text, &why);
        }
    }
    if !names.text("kind").is_empty() && names.text("kind") == names.text("listKind") {
        e.invalid(
            &path.field("listKind"),
            names.text("listKind"),
            "kind and listKind may not be the same",
        );
    }
    for field in ["shortNames", "categories"] {
        let list = path.field(field);
        for (i, text) in names.list(field).iter().filter_map(Value::as_str).enumerate() {
            let wrong = names::dns1035_label(text);
            if !wrong.is_empty() {
                e.invalid(&list.index(i), text, &wrong.join(","));
            }
        }
    }
}

fn accepted_names(object: &Value, e: &mut Errors) {
    let path = Path::Root.field("status");
    well_formed(object.at("status").at("acceptedNames"), &path.field("acceptedNames"), e);
}

fn stored_versions(object: &Value, e: &mut Errors) {
    let status = Path::Root.field("status");
    let at = status.field("storedVersions");
    let stored = object.at("status").list("storedVersions");
    let shown = || Value::Array(stored.to_vec());
    if stored.is_empty() {
        return e.invalid(&at, shown(), "must have at least one stored version");
    }
    let versions = object.at("spec").list("versions");
    for version in versions.iter().filter(|v| v.flag("storage")).map(|v| v.text("name")) {
        if !stored.iter().any(|s| *s == *version) {
            e.invalid(&at, shown(), &format!("must have the storage version {version}"));
        }
    }
    for (i, version) in stored.iter().filter_map(Value::as_str).enumerate() {
        if !versions.iter().any(|v| v.text("name") == version) {
            let why = format!(
                "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
            );
            e.invalid(&at.index(i), version, &why);
        }
    }
}

/// Whether a group is Kubernetes' own.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"].iter().any(|own| {
        group.strip_suffix(own).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    })
}

/// What the approval annotation says: a state's name, and why.
pub fn approval_of(definition: &Value) -> (&'static str, String) {
    let text = definition.deep(&["metadata", "annotations"]).text(APPROVED);
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/')
    });
    match text {
        "" => (
            "Missing",
            format!("protected groups must have approval annotation {APPROVED:?}, {see}"),
        ),
        text if text.starts_with("unapproved") => ("Unapproved", format!("not approved: {text:?}")),
        text if is_url => ("Approved", format!("approved in {text}")),
        _ => (
            "Invalid",
            format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {see}"
            ),
        ),
    }
}

fn approval(object: &Value, old: Option<&Value>, e: &mut Errors) {
    if !is_protected(object.at("spec").text("group")) {
        return;
    }
    let (state, why) = approval_of(object);
    if old.is_some_and(|old| approval_of(old).0 == state) {
        return;
    }
    let (metadata, annotations) = (Path::Root.field("metadata"), "annotations");
    let at = metadata.field(annotations);
    let at = at.key(APPROVED);
    match state {
        "Missing" => e.required(&at, &why),
        "Invalid" => {
            let text = object.deep(&["metadata", "annotations"]).text(APPROVED);
            e.invalid(&at, text, &why);
        }
        _ => {}
    }
}

/// What an update must leave as it is.
fn unchanged(new: &Value, old: &Value, e: &mut Errors) {
    let (path, spec, was) = (Path::Root.field("spec"), new.at("spec"), old.at("spec"));
    let names = path.field("names");
    if is_true(old, "Established") {
        check::immutable(spec.at("scope"), was.at("scope"), &path.field("scope"), e);
        check::immutable(
            spec.at("names").at("kind"),
            was.at("names").at("kind"),
            &names.field("kind"),
            e,
        );
    }
    check::immutable(spec.at("group"), was.at("group"), &path.field("group"), e);
    check::immutable(
        spec.at("names").at("plural"),
        was.at("names").at("plural"),
        &names.field("plural"),
        e,
    );
}

/// Formats that nobody checks, and sets that cannot be merged.
fn warnings(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for version in object.at("spec").list("versions") {
        warn_below(&Schema::read(version.deep(&["schema", "openAPIV3Schema"])), &mut found);
    }
    let mut seen = check::Seen::default();
    found.retain(|text| !seen.again(text.clone()));
    found
}

fn warn_below(s: &Schema, found: &mut Vec<String>) {
    if !s.format.is_empty() && !formats::is_known(&s.kind, &s.format) {
        found.push(format!("unrecognized format {:?}", s.format));
    }
    if let (Some("set"), Some(items)) = (s.list_type.as_deref(), &s.items)
        && matches!(&*items.kind, "object" | "array")
    {
        found.push(format!(
            "x-kubernetes-list-type: set for items of type {:?} is not supported by server-side apply or CEL validation rules",
            items.kind
        ));
    }
    s.children().chain(s.junctors()).for_each(|below| warn_below(below, found));
}
