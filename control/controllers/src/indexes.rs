//! How controllers find objects without scanning: indexes that the shared caches keep.

use k8s_openapi::api::apps::v1::{
    DaemonSet, DaemonSetSpec, Deployment, StatefulSet, StatefulSetSpec,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use rimward_client::{Cache, Object};
use rimward_control_lean::Pod;

use crate::pods::controller_of;

/// Value: the uid of the controlling owner.
pub const BY_CONTROLLER: &str = "controller";
/// Value: as of [`BY_SELECTOR`]. Only objects that nobody controls.
pub const ORPHANS: &str = "orphans";
/// Value: the node.
pub const BY_NODE: &str = "node";
/// Value: [`pair`].
pub const BY_LABEL: &str = "label";
/// Value: one [`pair`] that everything selected must have.
pub const BY_SELECTOR: &str = "selector";

/// One label in one namespace.
pub fn pair(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// Under this value of [`BY_SELECTOR`] are those that demand no single label.
fn any(namespace: &str) -> String {
    format!("{namespace}/*")
}

/// The values of [`BY_SELECTOR`] under which the selectors are that could match an object.
pub fn selector_values(meta: &ObjectMeta) -> Vec<String> {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let labels = meta.labels.iter().flatten().map(|(k, v)| pair(namespace, k, v));
    labels.chain([any(namespace)]).collect()
}

fn by_controller<K: Object>(object: &K) -> Vec<String> {
    controller_of(object.metadata()).map(|o| o.uid.clone()).into_iter().collect()
}

fn orphans<K: Object>(object: &K) -> Vec<String> {
    let meta = object.metadata();
    if controller_of(meta).is_some() { Vec::new() } else { selector_values(meta) }
}

/// The value of [`ORPHANS`] and [`BY_LABEL`] under which everything is that a selector could match.
pub fn selector_value(meta: &ObjectMeta, selector: &LabelSelector) -> String {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let first = selector.match_labels.iter().flatten().next();
    first.map_or_else(|| any(namespace), |(k, v)| pair(namespace, k, v))
}

pub fn owned<K: Object>(cache: &Cache<K>) {
    cache.add_index(BY_CONTROLLER, by_controller::<K>);
    cache.add_index(ORPHANS, orphans::<K>);
}

pub fn pods_by_node(cache: &Cache<Pod>) {
    cache.add_index(BY_NODE, |pod| {
        pod.spec.as_ref().and_then(|s| s.node_name.clone()).into_iter().collect()
    });
}

pub fn pods_by_label(cache: &Cache<Pod>) {
    cache.add_index(BY_LABEL, |pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        pod.metadata.labels.iter().flatten().map(|(k, v)| pair(namespace, k, v)).collect()
    });
}

pub fn deployments_by_selector(cache: &Cache<Deployment>) {
    cache.add_index(BY_SELECTOR, |d| {
        d.spec.as_ref().map(|s| selector_value(&d.metadata, &s.selector)).into_iter().collect()
    });
}

pub fn stateful_sets_by_selector(cache: &Cache<StatefulSet>) {
    cache.add_index(BY_SELECTOR, |s| {
        let value = |spec: &StatefulSetSpec| selector_value(&s.metadata, &spec.selector);
        s.spec.as_ref().map(value).into_iter().collect()
    });
}

pub fn daemon_sets_by_selector(cache: &Cache<DaemonSet>) {
    cache.add_index(BY_SELECTOR, |s| {
        let value = |spec: &DaemonSetSpec| selector_value(&s.metadata, &spec.selector);
        s.spec.as_ref().map(value).into_iter().collect()
    });
}

pub fn jobs_by_selector(cache: &Cache<Job>) {
    cache.add_index(BY_SELECTOR, |job| {
        let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector.map(|s| selector_value(&job.metadata, s)).into_iter().collect()
    });
}

pub fn services_by_selector(cache: &Cache<Service>) {
    cache.add_index(BY_SELECTOR, |service| {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        let first = selector.and_then(|s| s.iter().next());
        first.map(|(k, v)| pair(namespace, k, v)).into_iter().collect()
    });
}
