//! ReplicationController: what ReplicaSets were before they had selectors with expressions.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller/>
//!
//! [`crate::replicaset`] does it; here is how one looks as a ReplicaSet.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{
    ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::driver::Context;
use crate::replicaset::{self, Replicated};

pub const NAME: &str = "replication-controller";

pub fn start(context: &Context) {
    replicaset::start_of::<ReplicationController>(context);
}

impl Replicated for ReplicationController {
    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.as_ref().map(|spec| ReplicaSetSpec {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: spec.selector.clone(),
                ..LabelSelector::default()
            },
            template: spec.template.clone(),
        });
        let status = self.status.clone().map(|status| ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(set_condition).collect()),
        });
        Cow::Owned(ReplicaSet { metadata: self.metadata.clone(), spec, status })
    }

    fn with_status(&self, status: &ReplicaSetStatus) -> Option<Self> {
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status
                .conditions
                .clone()
                .map(|all| all.into_iter().map(own_condition).collect()),
        };
        let changed = self.status.as_ref() != Some(&status);
        changed.then(|| Self { status: Some(status), ..self.clone() })
    }
}

fn set_condition(own: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: own.type_,
        status: own.status,
        reason: own.reason,
        message: own.message,
        last_transition_time: own.last_transition_time,
    }
}

fn own_condition(of_set: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition {
        type_: of_set.type_,
        status: of_set.status,
        reason: of_set.reason,
        message: of_set.message,
        last_transition_time: of_set.last_transition_time,
    }
}
