//! The parts of the API server that a start brings up, each with a state of its own. What runs for good
//! is well while it runs; what only has to be done is well once it is.

use std::collections::HashMap;
use std::future::Future;

use parking_lot::RwLock;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// What authorization, admission and routing look up is in memory, and is kept current.
    Mirrors,
    /// What a fresh cluster holds, by what it is about.
    Roles,
    PriorityClasses,
    FlowObjects,
    Namespaces,
    /// The `kubernetes` Service, its range, and what extension API servers read.
    OwnObjects,
    /// Names, conditions and ends of CustomResourceDefinitions.
    Definitions,
    /// The statuses of FlowSchemas, which follow the configuration in effect.
    FlowStatuses,
    /// What is wrong with the types in policies.
    PolicyStatuses,
    /// Seats lent between priority levels.
    FlowSeats,
    /// Ends of Events and of history.
    Sweep,
    /// IPAddresses of Services.
    ClusterIps,
    /// Use of ServiceAccounts' legacy tokens.
    TokenTracking,
    /// The Lease of this server, and those of others that are gone.
    Identity,
    /// Health of extension API servers.
    Availability,
    /// APIServices of what this server serves itself.
    Registration,
}

enum State {
    Done,
    Runs(AbortHandle),
}

/// How far the start is.
#[derive(Default)]
pub struct Parts(RwLock<HashMap<Part, State>>);

impl Parts {
    /// It is done, and stays so.
    pub fn done(&self, part: Part) {
        self.0.write().insert(part, State::Done);
    }

    /// Starts what is to run until `stop`.
    pub fn run(
        &self,
        part: Part,
        stop: &CancellationToken,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let stop = stop.clone();
        let task = tokio::spawn(async move {
            stop.run_until_cancelled(work).await;
        });
        self.0.write().insert(part, State::Runs(task.abort_handle()));
    }

    /// Whether it was brought up, and has not ended since.
    pub fn is_well(&self, part: Part) -> bool {
        match self.0.read().get(&part) {
            None => false,
            Some(State::Done) => true,
            Some(State::Runs(task)) => !task.is_finished(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_part_tells_its_own_state() {
        let (parts, stop) = (Parts::default(), CancellationToken::new());
        parts.done(Part::Roles);
        parts.run(Part::Sweep, &stop, std::future::pending());
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        parts.run(Part::Definitions, &stop, async move {
            let _held = ended;
            panic!("a bug in one part");
        });
        end.await.expect_err("the task is gone");
        while parts.is_well(Part::Definitions) {
            tokio::task::yield_now().await;
        }
        assert!(parts.is_well(Part::Roles));
        assert!(parts.is_well(Part::Sweep), "others go on");
        assert!(!parts.is_well(Part::Identity), "it was never brought up");
    }
}
