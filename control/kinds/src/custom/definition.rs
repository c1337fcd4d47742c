//! The rules of a CustomResourceDefinition itself.
//! <https://kubernetes.io/docs/reference/kubernetes-api/extend-resources/custom-resource-definition-v1/>

use rimward_api::names;
use serde_json::{Value, json};

use super::schema::{DEPTH_MAX, Schema};
use super::{default_rules, formats, jsonpath, openapi_rules, structural};
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
const SELECTABLE_FIELDS_MAX: usize = 8;

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
    versions(spec, old.map_or(&Value::Null, |o| o.at("spec")), &path, e);
    names_of(spec, &path.field("names"), e);
    if spec.flag("preserveUnknownFields")
        && !old.is_some_and(|o| o.at("spec").flag("preserveUnknownFields"))
    {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        e.invalid(&path.field("preserveUnknownFields"), true, why);
    }
    conversion(spec.at("conversion"), &path.field("conversion"), e);
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

/// What versions may share: Kubernetes looks at it once, under the name that it had when there was
/// one version only.
fn shared<'v>(versions: &'v [Value], field: &str) -> Option<&'v Value> {
    let (first, rest) = versions.split_first()?;
    let first = first.at(field);
    rest.iter().all(|v| v.at(field) == first).then_some(first)
}

/// Whether an update leaves the schema of a version, and what else says how it is checked, as it was:
/// then it is not held against the definition that rules became stricter since.
fn kept(version: &Value, was: &Value) -> bool {
    let same = |old: &&Value| old.text("name") == version.text("name");
    was.list("versions").iter().find(same).is_some_and(|old| {
        ["schema", "subresources"].iter().all(|field| old.at(field) == version.at(field))
    })
}

fn versions(spec: &Value, was: &Value, path: &Path<'_>, e: &mut Errors) {
    let (all, list) = (spec.list("versions"), path.field("versions"));
    let [schema, subresources, columns, selectable] =
        ["schema", "subresources", "additionalPrinterColumns", "selectableFields"]
            .map(|f| shared(all, f));
    let has_status = |v: &Value| v.at("subresources").get("status").is_some();
    let any_status = all.iter().any(has_status);
    for (i, version) in all.iter().enumerate() {
        let (at, name) = (list.index(i), version.text("name"));
        let wrong = names::dns1035_label(name);
        if !wrong.is_empty() {
            e.invalid(&at.field("name"), name, &wrong.join(","));
        }
        deprecation(version, &at.field("deprecationWarning"), e);
        if schema.is_none() && !kept(version, was) {
            let at = at.field("schema");
            root_schema(version.at("schema"), has_status(version), &at, e);
        }
        if subresources.is_none() {
            scale(version.at("subresources"), &at.field("subresources"), e);
        }
        if columns.is_none() {
            printer_columns(version, &at, e);
        }
        if selectable.is_none() {
            selectable_fields(version, &at.field("selectableFields"), e);
        }
    }
    let shown = || Value::Array(all.to_vec());
    let mut seen = check::Seen::default();
    if all.iter().map(|v| v.text("name")).filter(|n| seen.again((*n).to_owned())).count() > 0 {
        e.invalid(&list, shown(), "must contain unique version names");
    }
    if all.iter().filter(|v| v.flag("storage")).count() != 1 {
        e.invalid(&list, shown(), "must have exactly one version marked as storage version");
    }
    let Some(first) = all.first() else { return };
    let wrong = names::dns1035_label(first.text("name"));
    if !first.text("name").is_empty() && !wrong.is_empty() {
        e.invalid(&path.field("version"), first.text("name"), &wrong.join(","));
    }
    if let Some(schema) = schema.filter(|_| !all.iter().all(|v| kept(v, was))) {
        root_schema(schema, any_status, &path.field("validation"), e);
    }
    if let Some(subresources) = subresources {
        scale(subresources, &path.field("subresources"), e);
    }
    if columns.is_some() {
        printer_columns(first, path, e);
    }
    if selectable.is_some() {
        selectable_fields(first, &path.field("selectableFields"), e);
    }
}

fn deprecation(version: &Value, at: &Path<'_>, e: &mut Errors) {
    let warning = version.at("deprecationWarning");
    let Some(text) = warning.as_str() else { return };
    if !version.flag("deprecated") {
        return e.invalid(at, text, "can only be set for deprecated versions");
    }
    if text.len() > 256 {
        e.invalid(at, text, "must be <= 256 characters long");
    }
    if text.is_empty() {
        e.invalid(at, text, "must not be an empty string");
    }
    if let Some((i, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
        let why = format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        );
        e.invalid(at, text, &why);
    }
}

/// What a schema may say at its root when the status is checked by itself.
const AT_ROOT_BESIDE_STATUS: [&str; 22] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

fn root_schema(validation: &Value, has_status: bool, path: &Path<'_>, e: &mut Errors) {
    let raw = validation.at("openAPIV3Schema");
    if !raw.is_object() {
        return;
    }
    let at = path.field("openAPIV3Schema");
    if has_status {
        if raw.text("type") != "object" && raw.has("type") {
            let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            e.invalid(&at.field("type"), raw.text("type"), why);
        }
        let set = |v: &Value| !crate::read::is_empty(v) && *v != Value::Bool(false);
        let other = crate::read::members(raw)
            .any(|(k, v)| set(v) && !AT_ROOT_BESIDE_STATUS.contains(&k.as_str()));
        if other {
            let why = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
            e.invalid(&at, raw.clone(), why);
        }
    }
    if raw.flag("nullable") {
        e.forbidden(&at.field("nullable"), "nullable cannot be true at the root");
    }
    let schema = Schema::read(raw);
    if schema.cut {
        let why = format!("must not be nested deeper than {DEPTH_MAX} levels");
        return e.invalid(&at, "", &why);
    }
    let wrong = structural::validate(&schema, &at);
    let is_structural = wrong.is_empty();
    wrong.into_iter().for_each(|w| e.push(w));
    let mut sound = false;
    if is_structural {
        sound = e.count(|e| default_rules::validate(&schema, &at, e)) == 0;
    }
    let clean = e.count(|e| openapi_rules::validate(raw, &schema, &at, e)) == 0;
    if sound && clean && schema.has_validations() {
        cel_rules(raw, &at, e);
    }
}

/// Compiles the rules of `x-kubernetes-validations`.
fn cel_rules(raw: &Value, path: &Path<'_>, e: &mut Errors) {
    if let Err(errors) = rimward_control_cel::Rules::compile(raw, &path.to_string()) {
        errors.into_iter().for_each(|error| e.push(error));
    }
}

fn scale(subresources: &Value, path: &Path<'_>, e: &mut Errors) {
    let scale = subresources.at("scale");
    if !scale.is_object() {
        return;
    }
    let at = path.field("scale");
    let required = [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")];
    for (field, under) in required {
        let (at, text) = (at.field(field), scale.text(field));
        if text.is_empty() {
            e.required(&at, "");
        } else if simple_path(text, &at, e) && !text.starts_with(under) {
            let under = under.trim_end_matches('.');
            e.invalid(&at, text, &format!("should be a json path under {under}"));
        }
    }
    let (at, text) = (at.field("labelSelectorPath"), scale.text("labelSelectorPath"));
    if !text.is_empty()
        && simple_path(text, &at, e)
        && !text.starts_with(".spec.")
        && !text.starts_with(".status.")
    {
        e.invalid(&at, text, "should be a json path under either .spec or .status");
    }
}

/// Whether a path starts as one; complains otherwise.
fn simple_path(text: &str, at: &Path<'_>, e: &mut Errors) -> bool {
    let good = text.starts_with('.');
    if !good {
        e.invalid(at, text, "must be a simple json path starting with .");
    }
    good
}

fn printer_columns(version: &Value, path: &Path<'_>, e: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 9] =
        ["byte", "date", "date-time", "double", "float", "int32", "int64", "password", "string"];
    let list = path.field("additionalPrinterColumns");
    for (i, column) in version.list("additionalPrinterColumns").iter().enumerate() {
        let at = list.index(i);
        if column.text("name").is_empty() {
            e.required(&at.field("name"), "");
        }
        let must = format!("must be one of {}", TYPES.join(","));
        match column.text("type") {
            "" => e.required(&at.field("type"), &must),
            kind if TYPES.contains(&kind) => {}
            kind => e.invalid(&at.field("type"), kind, &must),
        }
        let format = column.text("format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            e.invalid(
                &at.field("format"),
                format,
                &format!("must be one of {}", FORMATS.join(",")),
            );
        }
        match column.text("jsonPath") {
            "" => e.required(&at.field("JSONPath"), ""),
            text => {
                simple_path(text, &at.field("JSONPath"), e);
            }
        }
    }
}

fn selectable_fields(version: &Value, path: &Path<'_>, e: &mut Errors) {
    let fields = version.list("selectableFields");
    let raw = version.deep(&["schema", "openAPIV3Schema"]);
    if fields.is_empty() || !raw.is_object() {
        return;
    }
    let schema = Schema::read(raw);
    let mut seen = check::Seen::default();
    let mut different = 0;
    for (i, field) in fields.iter().enumerate() {
        let (at, text) = (path.index(i), field.text("jsonPath"));
        let at = at.field("jsonPath");
        if text.is_empty() {
            e.required(&at, "");
            continue;
        }
        let found = match jsonpath::schema_at(text, &schema, false) {
            Ok(found) => found,
            Err(why) => {
                e.invalid(&at, text, &format!("is an invalid path: {why}"));
                continue;
            }
        };
        if text == ".metadata" || text.starts_with(".metadata.") {
            e.invalid(&at, text, "must not point to fields in metadata");
        }
        if !matches!(&*found.kind, "string" | "boolean" | "integer") {
            let must = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            e.invalid(&at, text, must);
        }
        match seen.again(text.to_owned()) {
            true => e.duplicate(&at, text),
            false => different += 1,
        }
    }
    if different > SELECTABLE_FIELDS_MAX {
        e.too_many(path, different, SELECTABLE_FIELDS_MAX);
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

fn conversion(conversion: &Value, path: &Path<'_>, e: &mut Errors) {
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
