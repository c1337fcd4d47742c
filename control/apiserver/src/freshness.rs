//! Reads that ask for a revision: one that has not happened yet is waited for, a moment.
//!
//! Clients carry revisions from one server to the next, and a server may be a little behind. Rejected:
//! refusing at once, which makes a client that is faster than a server begin anew.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#unavailable-resource-versions>

use std::time::Duration;

use rimward_api::Status;
use rimward_control_store::Revision;

use crate::error;
use crate::options::too_large;
use crate::server::Inner;

/// As long as kube-apiserver's watch cache waits.
const PATIENCE: Duration = Duration::from_secs(3);
/// No key begins with it: its watch tells of nothing but that the revision moved.
const NO_KEY: &str = "\0";

/// Returns when the revision has happened.
///
/// # Errors
/// It did not in time: 504, with the newest revision there is.
pub async fn reached(server: &Inner, asked: Revision) -> Result<(), Status> {
    let newest = server.store.revision();
    if asked <= newest {
        return Ok(());
    }
    let mut feed = server.store.watch(NO_KEY, newest).map_err(error::store)?;
    feed.progress(true);
    let coming = async {
        while server.store.revision() < asked {
            feed.next().await.map_err(error::store)?;
        }
        Ok(())
    };
    let stopped = server.stop.cancelled();
    tokio::select! {
        came = tokio::time::timeout(PATIENCE, coming) => {
            came.unwrap_or_else(|_| Err(too_large(asked, server.store.revision())))
        }
        () = stopped => Err(Status::unavailable("the server is shutting down")),
    }
}
