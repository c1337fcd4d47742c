//! Roles and bindings.

use rimward_api::names;
use serde_json::Value;

use crate::check::text;
use crate::path::{Errors, Path};
use crate::print;
use crate::read::{Read, fill_text, items_mut, member};
use crate::rules::Rules;

const GROUP: &str = "rbac.authorization.k8s.io";

pub const ROLE: Rules = Rules {
    create: |object, e| rules(object, true, e),
    update: |new, _, e| rules(new, true, e),
    name: text::path_segment,
    cells: print::name_created,
    ..Rules::PLAIN
};

pub const CLUSTER_ROLE: Rules =
    Rules { create: cluster_role, update: |new, _, e| cluster_role(new, e), ..ROLE };

fn cluster_role(object: &Value, e: &mut Errors) {
    rules(object, false, e);
    let aggregation = object.at("aggregationRule");
    if aggregation.is_null() {
        return;
    }
    let path = Path::Root.field("aggregationRule");
    let list = path.field("clusterRoleSelectors");
    let selectors = aggregation.list("clusterRoleSelectors");
    if selectors.is_empty() {
        e.required(
            &list,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        );
    }
    for (i, selector) in selectors.iter().enumerate() {
        crate::check::selector::label_selector(selector, &list.index(i), e);
    }
}

fn rules(object: &Value, namespaced: bool, e: &mut Errors) {
    let list = Path::Root.field("rules");
    for (i, rule) in object.list("rules").iter().enumerate() {
        let at = list.index(i);
        if rule.list("verbs").is_empty() {
            e.required(&at.field("verbs"), "verbs must contain at least one value");
        }
        if !rule.list("nonResourceURLs").is_empty() {
            if namespaced {
                e.invalid(
                    &at.field("nonResourceURLs"),
                    rule.at("nonResourceURLs").clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|f| !rule.list(f).is_empty())
            {
                e.invalid(
                    &at.field("nonResourceURLs"),
                    rule.at("nonResourceURLs").clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        for (field, why) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if rule.list(field).is_empty() {
                e.required(&at.field(field), why);
            }
        }
    }
}

pub const ROLE_BINDING: Rules = Rules {
    default: default_binding,
    create: |object, e| binding(object, true, e),
    update: |new, old, e| {
        binding(new, true, e);
        same_role(new, old, e);
    },
    name: text::path_segment,
    cells: print::config::role_binding,
    ..Rules::PLAIN
};

pub const CLUSTER_ROLE_BINDING: Rules = Rules {
    create: |object, e| binding(object, false, e),
    update: |new, old, e| {
        binding(new, false, e);
        same_role(new, old, e);
    },
    ..ROLE_BINDING
};

fn default_binding(object: &mut Value) {
    if let Some(role) = member(object, "roleRef") {
        fill_text(role, "apiGroup", GROUP);
    }
    for subject in items_mut(object, "subjects") {
        if matches!(subject.text("kind"), "User" | "Group") {
            fill_text(subject, "apiGroup", GROUP);
        }
    }
}

fn same_role(new: &Value, old: &Value, e: &mut Errors) {
    if new.at("roleRef") != old.at("roleRef") {
        e.invalid(&Path::Root.field("roleRef"), new.at("roleRef").clone(), "cannot change roleRef");
    }
}

fn binding(object: &Value, namespaced: bool, e: &mut Errors) {
    let (role, path) = (object.at("roleRef"), Path::Root.field("roleRef"));
    if role.text("apiGroup") != GROUP {
        e.not_supported(&path.field("apiGroup"), role.text("apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
    if !kinds.contains(&role.text("kind")) {
        e.not_supported(&path.field("kind"), role.text("kind"), kinds);
    }
    match role.text("name") {
        "" => e.required(&path.field("name"), ""),
        name => e.invalid_each(&path.field("name"), name, text::path_segment(name)),
    }
    let list = Path::Root.field("subjects");
    for (i, subject) in object.list("subjects").iter().enumerate() {
        self::subject(subject, namespaced, &list.index(i), e);
    }
}

fn subject(subject: &Value, namespaced: bool, path: &Path<'_>, e: &mut Errors) {
    let name = subject.text("name");
    if name.is_empty() {
        e.required(&path.field("name"), "");
    }
    let group = match subject.text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                e.invalid_each(&path.field("name"), name, names::dns1123_subdomain(name));
            }
            if subject.text("namespace").is_empty() && !namespaced {
                e.required(&path.field("namespace"), "");
            }
            ""
        }
        "User" | "Group" => GROUP,
        other => {
            return e.not_supported(
                &path.field("kind"),
                other,
                &["Group", "ServiceAccount", "User"],
            );
        }
    };
    if subject.text("apiGroup") != group {
        e.not_supported(&path.field("apiGroup"), subject.text("apiGroup"), &[group]);
    }
}
