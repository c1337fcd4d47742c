//! The versions of a definition: schema, subresources, printer columns, selectable fields.

use rimward_api::names;
use serde_json::Value;

use crate::check;
use crate::custom::schema::{DEPTH_MAX, Schema};
use crate::custom::{default_rules, jsonpath, openapi_rules, structural};
use crate::path::{Errors, Path};
use crate::read::Read;

const SELECTABLE_FIELDS_MAX: usize = 8;

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

pub(super) fn check(spec: &Value, was: &Value, path: &Path<'_>, e: &mut Errors) {
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
