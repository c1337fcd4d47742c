//! Objects that a cluster has from its start: made once, the operator's from then on.

use std::time::Duration;

use rimward_client::{Client, Object};
use tokio_util::sync::CancellationToken;

const AGAIN: Duration = Duration::from_secs(5);

/// Creates the object unless one of its name is there; tries until that is so.
pub async fn once<K: Object>(client: Client, object: K, shutdown: CancellationToken) {
    let publish = async {
        while let Err(error) = client.create(&object).await {
            if error.is_already_exists() {
                return;
            }
            let name = object.metadata().name.clone().unwrap_or_default();
            tracing::warn!(%error, "cannot publish the {} {name}; trying again", K::KIND);
            tokio::time::sleep(AGAIN).await;
        }
    };
    shutdown.run_until_cancelled(publish).await;
}
