//! Pod, and the pod templates inside other kinds.

pub(crate) mod affinity;
pub(crate) mod claim;
pub(crate) mod container;
pub(crate) mod defaults;
pub(crate) mod env;
pub(crate) mod probe;
mod projected;
pub mod resources;
pub(crate) mod security;
pub(crate) mod spec;
pub(crate) mod update;
pub(crate) mod volume;
pub(crate) mod volume_source;
pub(crate) mod warnings;

pub use resources::{pod_limits, pod_requests, qos_class};

use crate::print;
use crate::rules::{Field, Rules, Updates};

pub(crate) const POD: Rules = Rules {
    default: defaults::pod,
    prepare_create: update::prepare_create,
    prepare_update: update::prepare_update,
    create: spec::create,
    update: update::update,
    update_sub: update::update_sub,
    status: true,
    generation: true,
    fields: &[
        ("spec.nodeName", Field::Text(&["spec", "nodeName"])),
        ("spec.restartPolicy", Field::Text(&["spec", "restartPolicy"])),
        ("spec.schedulerName", Field::Text(&["spec", "schedulerName"])),
        ("spec.serviceAccountName", Field::Text(&["spec", "serviceAccountName"])),
        ("spec.hostNetwork", Field::Flag(&["spec", "hostNetwork"])),
        ("status.phase", Field::Text(&["status", "phase"])),
        ("status.podIP", Field::Text(&["status", "podIP"])),
        ("status.nominatedNodeName", Field::Text(&["status", "nominatedNodeName"])),
    ],
    cells: print::pod::pod,
    warnings: crate::warnings::pod,
    warns_of_updates: Updates::None,
    grace_period: update::grace_period,
    ..Rules::PLAIN
};
