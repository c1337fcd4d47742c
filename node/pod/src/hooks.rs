//! Lifecycle hooks: postStart and preStop.
//! <https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/>

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;

use crate::command;
use crate::probe::{Target, http};

/// Does what the hook says. Err is why not; it goes to the node's log, since it may tell secrets.
pub(crate) async fn run(hook: &LifecycleHandler, target: &Target<'_>) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    if let Some(get) = &hook.http_get {
        // Any answer will do.
        return http::get(http::prepare(get, target)?).await.map(drop);
    }
    if let Some(exec) = &hook.exec {
        let argv = exec.command.clone().unwrap_or_default();
        let run = command::run(target.runtime, target.id, argv).await;
        let (exit, printed) = run.map_err(|e| e.to_string())?;
        return match exit.code {
            0 => Ok(()),
            code => Err(format!("exit code {code}: {}{printed}", exit.message)),
        };
    }
    // tcpSocket is accepted and does nothing, as in Kubernetes.
    Ok(())
}
