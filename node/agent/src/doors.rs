//! Ports of this node's own servers that the kernel leads to.
//!
//! As root, Service addresses of DNS and of the API lead by rules to servers in this process, and the rules
//! outlive it. The next agent listens on the same ports: what a client sends again arrives, and nothing has to
//! be changed before the rules are.

use std::path::Path;

/// Binds to the port that `record` names, else to any, and keeps a record of it. `bind` gets the port, 0 for any;
/// `port_of` says which one it became.
pub(crate) async fn same_port<T, E>(
    record: &Path,
    bind: impl AsyncFn(u16) -> Result<T, E>,
    port_of: impl Fn(&T) -> std::io::Result<u16>,
) -> Result<T, E> {
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let before = text.trim().parse().unwrap_or(0);
    let bound = match bind(before).await {
        // Another program has it meanwhile.
        Err(_) if before != 0 => bind(0).await?,
        other => other?,
    };
    let kept = match port_of(&bound) {
        Ok(port) if port == before => Ok(()),
        Ok(port) => std::fs::write(record, port.to_string()),
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        tracing::warn!(path = %record.display(), %error, "cannot keep a record of a port; the next agent takes another");
    }
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_port_is_the_same_unless_it_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("dns-port");
        let bind = async || {
            let bound = same_port(
                &record,
                async |port| TcpListener::bind(("127.0.0.1", port)).await,
                |listener: &TcpListener| Ok(listener.local_addr()?.port()),
            );
            bound.await.unwrap()
        };
        let first = bind().await;
        let port = first.local_addr().unwrap().port();
        let second = bind().await;
        let other = second.local_addr().unwrap().port();
        assert_ne!(other, port, "the first still has it");
        drop(second);
        assert_eq!(bind().await.local_addr().unwrap().port(), other);
        std::fs::write(&record, "no port").unwrap();
        bind().await;
    }
}
