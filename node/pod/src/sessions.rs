//! Which running container or network a session (exec, attach, port-forward) of the API is for.

use std::sync::Arc;

use crate::outside::Attachment;
use crate::pods::Pods;
use crate::runtime::{RunId, Runtime};
use crate::state::{Phase, Setup};

/// A run that goes on, and what runs it.
#[derive(Clone)]
pub struct RunningContainer {
    pub runtime: Arc<dyn Runtime>,
    pub id: RunId,
}

/// Why there is nothing to connect to. The texts are the kubelet's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSession {
    /// The pod is not on this node, or not any more.
    #[error("pod does not exist")]
    NoPod,
    /// The pod has no such container, or it does not run now.
    #[error("container not found ({0:?})")]
    NotRunning(String),
    #[error("pod {0} has no network yet")]
    NoNetwork(String),
}

impl Pods {
    /// A container of a pod, if it runs. `uid` may be empty: then namespace and name identify the
    /// pod.
    ///
    /// # Errors
    /// Says what there is not.
    pub fn running(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
    ) -> Result<RunningContainer, NoSession> {
        let handle = self.find(namespace, name, uid).ok_or(NoSession::NoPod)?;
        let found = handle.look(|state| {
            let index = state.containers.iter().position(|c| c.name == container)?;
            let runs = matches!(state.containers[index].phase, Phase::Running(_));
            let runtime = state.containers[index].runtime?.0;
            runs.then(|| (runtime, state.run_id(index)))
        });
        let (runtime, id) = found.ok_or_else(|| NoSession::NotRunning(container.to_owned()))?;
        Ok(RunningContainer { runtime: handle.node.runtime(runtime).clone(), id })
    }

    /// A pod's place in the network.
    ///
    /// # Errors
    /// Says what there is not.
    pub fn attachment(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Attachment, NoSession> {
        let handle = self.find(namespace, name, uid).ok_or(NoSession::NoPod)?;
        let mut attachment = handle.look(|state| match &state.network {
            Setup::Done(attachment) => Ok(attachment.clone()),
            _ => Err(NoSession::NoNetwork(state.full_name())),
        })?;
        // It comes with the first container that needs it, after the address.
        if attachment.netns.is_none() {
            attachment.netns = handle.node.config.network.namespace_of(&handle.uid);
        }
        Ok(attachment)
    }
}
