//! Joining, and who is turned away.

use super::*;
use crate::call;
use crate::wire::{Reply, Request};

#[tokio::test]
async fn a_token_becomes_a_certificate() {
    let pair = Pair::new();
    let (token, dir) = (pair.token(), pair.identity_dir("edge-1"));
    let admit = async {
        let request = pair.joiner_arrives().await;
        assert_eq!(request.join.name, "edge-1");
        assert_eq!(request.join.token_id, token.id);
        assert_eq!(request.join.token_secret, token.secret);
        let csr = Signer::read_request(&request.join.csr).unwrap();
        let certificate = pair.signer.sign_node("edge-1", &csr, Timestamp::now()).unwrap();
        request.admit(&certificate, pair.signer.ca()).await;
    };
    let (identity, ()) = tokio::join!(pair.dialer.join(&token, "edge-1", "test", &dir), admit);
    let identity = identity.unwrap();
    assert_eq!(identity.holder.node, "edge-1");
    assert_eq!(dir.load().unwrap().unwrap().holder, identity.holder);

    use std::os::unix::fs::PermissionsExt as _;
    let key = std::fs::metadata(pair.dir.path().join("edge-1/node.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    let hello = hello();
    let (opened, node) = tokio::join!(pair.dialer.open(&identity, &hello), async {
        let mut node = pair.node_arrives().await;
        node.writer.push(&Welcome::default());
        node.writer.flush().await.unwrap();
        node
    });
    assert!(opened.is_ok());
    assert_eq!(node.holder, identity.holder);
}

#[tokio::test]
async fn a_wrong_token_is_permanent() {
    let pair = Pair::new();
    let (token, dir) = (pair.token(), pair.identity_dir("edge-1"));
    let refuse = async {
        pair.joiner_arrives().await.refuse(CloseCode::Denied, "the token is not valid");
    };
    let (joined, ()) = tokio::join!(pair.dialer.join(&token, "edge-1", "test", &dir), refuse);
    let error = joined.unwrap_err();
    refused_with(&error, CloseCode::Denied);
    assert!(error.permanent());
    assert!(error.to_string().contains("the token is not valid"), "{error}");
    assert!(dir.load().unwrap().is_none());
}

#[tokio::test]
async fn a_token_of_another_cluster_is_not_shown_to_this_one() {
    let pair = Pair::new();
    let token = BootstrapToken::generate(&"00".repeat(32));
    let dir = pair.identity_dir("edge-1");
    let (joined, arrival) =
        tokio::join!(pair.dialer.join(&token, "edge-1", "test", &dir), pair.arrival());
    let error = joined.unwrap_err();
    assert!(matches!(error, Error::WrongCa { joining: true, .. }), "{error}");
    assert!(error.permanent());
    assert!(matches!(arrival, Err(ArrivalError::Handshake { .. })));
}

#[tokio::test]
async fn a_control_plane_with_another_ca_is_not_believed() {
    let (mine, other) = (Pair::new(), Pair::new());
    let identity = mine.identity("edge-1");
    let (error, _) = other.refused_open(&identity, &hello()).await;
    assert!(matches!(error, Error::WrongCa { joining: false, .. }), "{error}");
    // What answers at an address may change: a joined node keeps trying, slowly.
    assert!(!error.permanent());
}

#[tokio::test]
async fn a_node_of_another_cluster_is_turned_away() {
    let (pair, other) = (Pair::new(), Pair::new());
    let mut identity = other.identity("edge-1");
    identity.ca = pair.signer.ca().clone();
    let (error, arrival) = pair.refused_open(&identity, &hello()).await;
    refused_with(&error, CloseCode::Denied);
    assert!(matches!(arrival, ArrivalError::Handshake { .. }), "{arrival}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_at_both_ends() {
    let pair = Pair::new();
    let dir = pair.identity_dir("edge-1");
    let request = Signer::read_request(&dir.request("edge-1").unwrap()).unwrap();
    let at = |seconds: i64| Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap();
    let certificate = pair.signer.sign_node_until("edge-1", &request, at(-7200), at(-60)).unwrap();
    let mut identity = dir.store(&certificate, pair.signer.ca()).unwrap();

    let error = pair.dialer.open(&identity, &hello()).await.err().unwrap();
    assert!(matches!(error, Error::Expired(_)) && error.permanent(), "{error}");

    // A node whose clock is wrong does not notice; the control plane does.
    identity.holder.not_after = at(3600);
    let (error, arrival) = pair.refused_open(&identity, &hello()).await;
    assert!(matches!(error, Error::Expired(_)), "{error}");
    assert!(matches!(arrival, ArrivalError::Handshake { .. }), "{arrival}");
}

#[tokio::test]
async fn a_newer_protocol_is_told_so() {
    let pair = Pair::new();
    let identity = pair.identity("edge-1");
    let newer = Hello { protocol_min: 900, protocol_max: 901, ..hello() };
    let (error, arrival) = pair.refused_open(&identity, &newer).await;
    refused_with(&error, CloseCode::Protocol);
    assert!(
        error.permanent() && error.to_string().contains("upgrade the control plane"),
        "{error}"
    );
    assert!(arrival.to_string().contains("edge-1"), "{arrival}");
}

#[test]
fn protocols_agree_on_the_highest() {
    assert_eq!(crate::agree(1, 7), Ok(crate::PROTOCOL));
    assert!(crate::agree(900, 901).is_err());
    assert!(crate::agree(0, 0).unwrap_err().contains("upgrade the node"));
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_tunnel() {
    let pair = Pair::new();
    let (tunnel, node) = pair.connected("edge-1").await;
    let dir = pair.identity_dir("edge-1");
    let before = dir.load().unwrap().unwrap();
    let serve = async {
        let (request, incoming) =
            call::accept(&node.connection).await.unwrap().request().await.unwrap();
        let Request::RenewRequest(renew) = request else { panic!("{request:?}") };
        let csr = Signer::read_request(&renew.csr).unwrap();
        assert_eq!(csr.key_hash, node.holder.key_hash, "the key stays");
        let later = Timestamp::from_second(Timestamp::now().as_second() + 100).unwrap();
        let certificate = pair.signer.sign_node("edge-1", &csr, later).unwrap();
        incoming.answer(Reply { code: 200, body: certificate.to_vec(), ..Reply::default() }).await;
    };
    let (renewed, ()) = tokio::join!(crate::dial::renew(&tunnel.connection, "edge-1", &dir), serve);
    let renewed = renewed.unwrap();
    assert!(renewed.holder.not_after > before.holder.not_after);
    assert_eq!(dir.load().unwrap().unwrap().holder, renewed.holder);
    assert!(tunnel.connection.close_reason().is_none());
}

#[test]
fn renewal_is_due_after_two_thirds() {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    let holder = crate::identity::Holder {
        node: "n".into(),
        key_hash: String::new(),
        not_before: at(0),
        not_after: at(300),
    };
    assert!(!holder.renewal_due(at(199)));
    assert!(holder.renewal_due(at(200)));
}
