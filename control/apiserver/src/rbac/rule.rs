//! What a role allows: a list of rules, and what it takes to hold one.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::request::Attributes;

/// One PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|v| v == "*" || v == wanted)
}

impl Rule {
    /// Every verb on every resource.
    pub fn everything() -> Self {
        let star = || vec!["*".to_owned()];
        Self { verbs: star(), groups: star(), resources: star(), ..Self::default() }
    }

    /// Every verb on every path that is no resource.
    pub fn every_path() -> Self {
        Self { verbs: vec!["*".into()], urls: vec!["*".into()], ..Self::default() }
    }

    fn parse(value: &Value) -> Self {
        let list = |field: &str| {
            let items = value.get(field).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn all_of(role: &Value) -> Vec<Self> {
        role.get("rules").and_then(Value::as_array).into_iter().flatten().map(Self::parse).collect()
    }

    pub fn to_value(&self) -> Value {
        let lists = [
            ("verbs", &self.verbs),
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ];
        let said = lists.into_iter().filter(|(_, list)| !list.is_empty());
        Value::Object(said.map(|(name, list)| (name.to_owned(), json!(list))).collect())
    }

    pub fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        match &asked.resource {
            Some(r) => {
                has(&self.groups, &r.group)
                    && self.allows_resource(&r.resource, &r.subresource)
                    && (self.names.is_empty() || self.names.contains(&r.name))
            }
            None => self.allows_url(&asked.path),
        }
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|r| match (r.as_str(), subresource) {
            ("*", _) => true,
            (r, "") => r == resource,
            (r, sub) => match r.split_once('/') {
                Some((parent, child)) => child == sub && (parent == "*" || parent == resource),
                None => false,
            },
        })
    }

    fn allows_url(&self, path: &str) -> bool {
        self.urls.iter().any(|u| match u.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => u == path,
        })
    }

    /// The single permissions that a rule is made of.
    pub fn breakdown(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    let one = |names: Vec<String>| Self {
                        verbs: vec![verb.clone()],
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        names,
                        urls: Vec::new(),
                    };
                    match self.names.as_slice() {
                        [] => parts.push(one(Vec::new())),
                        names => parts.extend(names.iter().map(|n| one(vec![n.clone()]))),
                    }
                }
            }
            for url in &self.urls {
                let (verbs, urls) = (vec![verb.clone()], vec![url.clone()]);
                parts.push(Self { verbs, urls, ..Self::default() });
            }
        }
        parts
    }

    /// Whether holding this rule is holding `part`, one of a [`Rule::breakdown`].
    pub fn covers(&self, part: &Self) -> bool {
        let within = |mine: &[String], theirs: &[String]| theirs.iter().all(|v| has(mine, v));
        if !within(&self.verbs, &part.verbs) {
            return false;
        }
        if let Some(url) = part.urls.first() {
            return self.urls.iter().any(|u| {
                u == "*" || u == url || u.strip_suffix('*').is_some_and(|p| url.starts_with(p))
            });
        }
        let resource = &part.resources[0];
        let resources = self.resources.iter().any(|r| {
            let same_sub = r
                .strip_prefix("*/")
                .zip(resource.split_once('/'))
                .is_some_and(|(mine, (_, theirs))| mine == theirs);
            r == "*" || r == resource || same_sub
        });
        within(&self.groups, &part.groups)
            && resources
            && (self.names.is_empty() || part.names.first().is_some_and(|n| self.names.contains(n)))
    }

    /// One group, one resource and at most one name: what rules are merged by.
    fn simple(&self) -> Option<(&str, &str, Option<&str>)> {
        match (self.groups.as_slice(), self.resources.as_slice(), self.names.as_slice()) {
            ([group], [resource], []) => Some((group, resource, None)),
            ([group], [resource], [name]) => Some((group, resource, Some(name))),
            _ => None,
        }
    }

    /// As Kubernetes prints a rule that is not held.
    fn show(&self) -> String {
        let mut parts = Vec::new();
        let lists = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        for (name, list) in lists {
            if !list.is_empty() {
                let quoted: Vec<String> = list.iter().map(|v| format!("{v:?}")).collect();
                parts.push(format!("{name}:[{}]", quoted.join(" ")));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// Single permissions as Kubernetes prints them: those on one resource in one line, lines in order.
pub fn shown(parts: Vec<Rule>) -> Vec<String> {
    let mut merged: Vec<Rule> = Vec::new();
    let mut places: HashMap<(String, String, Option<String>), usize> = HashMap::new();
    for part in parts {
        let key = part
            .simple()
            .filter(|_| part.urls.is_empty())
            .map(|(g, r, n)| (g.to_owned(), r.to_owned(), n.map(str::to_owned)));
        let place = key.map(|key| *places.entry(key).or_insert(merged.len()));
        match place.and_then(|at| merged.get_mut(at)) {
            Some(rule) => {
                for verb in part.verbs {
                    if !rule.verbs.contains(&verb) {
                        rule.verbs.push(verb);
                    }
                }
            }
            None => merged.push(part),
        }
    }
    let lines: BTreeSet<String> = merged.iter().map(Rule::show).collect();
    lines.into_iter().collect()
}
