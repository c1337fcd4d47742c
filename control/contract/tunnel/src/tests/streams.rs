//! The control stream, requests, packets, and ends that misbehave.

use bytes::Bytes;

use super::*;
use crate::call::{self, CallError};
use crate::wire::codec::{FRAME_BYTES_MAX, ReadError};
use crate::wire::{
    Delta, DialRequest, Down, PodReport, Reply, Request, SessionData, SessionEnd, SessionIn,
    SessionOut, SessionRequest, Up,
};

#[tokio::test]
async fn frames_travel_both_ways() {
    let pair = Pair::new();
    let (mut tunnel, mut node) = pair.connected("edge-1").await;
    assert_eq!(tunnel.welcome.pod_cidr, "10.42.0.0/24");

    let big = vec![b'x'; 1 << 20];
    let delta = Delta {
        revision: 7,
        kind: "Pod".into(),
        upserts: vec![big, b"{}".to_vec()],
        removes: vec![],
    };
    let report =
        PodReport { seq: 3, uid: "u".into(), status: b"{}".to_vec(), ..PodReport::default() };
    node.writer.push(&delta);
    tunnel.writer.push(&report);
    tunnel.writer.flush().await.unwrap();
    let (sent, received) = tokio::join!(node.writer.flush(), tunnel.reader.next());
    sent.unwrap();
    assert_eq!(received.unwrap(), Some(Down::Delta(delta)));
    assert_eq!(node.reader.next().await.unwrap(), Some(Up::PodReport(report)));
}

#[tokio::test]
async fn requests_carry_bytes_and_refusals() {
    let pair = Pair::new();
    let (tunnel, node) = pair.connected("edge-1").await;
    let serve = async {
        // The first is echoed, the second refused, the third dropped.
        let (_, incoming) =
            call::accept(&tunnel.connection).await.unwrap().request().await.unwrap();
        let mut duplex = incoming.begin(Reply { code: 200, ..Reply::default() }).await.unwrap();
        let mut text = vec![0; 4];
        tokio::io::AsyncReadExt::read_exact(&mut duplex, &mut text).await.unwrap();
        duplex.send(Bytes::from(text)).await.unwrap();
        duplex.finish();
        let (request, incoming) =
            call::accept(&tunnel.connection).await.unwrap().request().await.unwrap();
        assert!(matches!(request, Request::DialRequest(dial) if dial.port == 2));
        incoming.refuse(503, "no such pod").await;
        drop(call::accept(&tunnel.connection).await.unwrap().request().await.unwrap());
    };
    let ask = async {
        let request = |port| DialRequest { target: 0, ip: "10.42.0.9".into(), port };
        let (reply, mut duplex) = call::call(&node.connection, &request(1)).await.unwrap();
        assert_eq!(reply.code, 200);
        duplex.send(Bytes::from_static(b"ping")).await.unwrap();
        let mut body = duplex.into_body();
        assert_eq!(body.next().await.unwrap().unwrap(), "ping");
        assert!(body.next().await.unwrap().is_none());

        let refused = call::call(&node.connection, &request(2)).await.err().unwrap();
        assert!(
            matches!(&refused, CallError::Refused { code: 503, message } if message == "no such pod")
        );
        let dropped = call::call(&node.connection, &request(3)).await.err().unwrap();
        assert!(matches!(dropped, CallError::Broken(_)), "{dropped}");
    };
    tokio::join!(serve, ask);
}

/// Sends raw bytes as the control stream of an otherwise proper node.
async fn bytes_on_the_control_stream(bytes: &[u8]) -> ReadError {
    let pair = Pair::new();
    let (tunnel, mut node) = pair.connected("edge-1").await;
    let mut writer = tunnel.writer;
    writer.push_raw(bytes);
    writer.flush().await.unwrap();
    node.reader.next().await.unwrap_err()
}

#[tokio::test]
async fn malformed_frames_are_errors_not_panics() {
    let wrong_format = bytes_on_the_control_stream(&[9, 0, 3, 0, 0, 0, 0]).await;
    assert!(wrong_format.to_string().contains("format 9"), "{wrong_format}");

    let mut oversized = vec![crate::wire::codec::FORMAT, 0, 4];
    oversized.extend_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
    let oversized = bytes_on_the_control_stream(&oversized).await;
    assert!(oversized.to_string().contains("at most"), "{oversized}");

    // A PodReport whose first string claims more bytes than there are.
    let claims =
        bytes_on_the_control_stream(&[1, 0, 4, 0, 0, 0, 6, 1, 253, 255, 255, 255, 255]).await;
    assert!(claims.to_string().contains("namespace"), "{claims}");
}

#[tokio::test]
async fn unknown_frames_are_skipped() {
    let pair = Pair::new();
    let (tunnel, mut node) = pair.connected("edge-1").await;
    let mut writer = tunnel.writer;
    writer.push_raw(&[1, 0x7f, 0xff, 0, 0, 0, 3, 1, 2, 3]);
    writer.push(&crate::wire::Applied { revision: 5 });
    writer.flush().await.unwrap();
    let next = node.reader.next().await.unwrap();
    assert_eq!(next, Some(Up::Applied(crate::wire::Applied { revision: 5 })));
}

#[tokio::test]
async fn a_control_plane_that_stops_says_so() {
    let (ca, key) = Signer::generate_ca("test").unwrap();
    let pair = Pair::with(Signer::from_pem(&ca, &key).unwrap());
    let (mut tunnel, _node) = pair.connected("edge-1").await;
    pair.listener.close().await;
    let gone = tunnel.reader.next().await;
    assert!(!matches!(gone, Ok(Some(_))));
    let reason = pair.dialer.explain(&tunnel.connection.closed().await, false);
    refused_with(&reason, CloseCode::Stopping);
    assert!(!reason.permanent());
}

/// Passes packets between one node and whichever control plane `target` names: what the node's packets
/// meet when a control plane dies without a word and another starts on its port.
async fn forward(
    socket: tokio::net::UdpSocket,
    target: tokio::sync::watch::Receiver<std::net::SocketAddr>,
) {
    let far = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut up, mut down) = (vec![0; 2048], vec![0; 2048]);
    let mut node = None;
    loop {
        tokio::select! {
            packet = socket.recv_from(&mut up) => {
                let (bytes, from) = packet.unwrap();
                node = Some(from);
                let to = *target.borrow();
                far.send_to(&up[..bytes], to).await.unwrap();
            }
            packet = far.recv_from(&mut down) => {
                let (bytes, from) = packet.unwrap();
                if let Some(node) = node.filter(|_| from == *target.borrow()) {
                    socket.send_to(&down[..bytes], node).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn a_control_plane_that_was_killed_is_noticed_at_the_next_packet() {
    let (ca, key) = Signer::generate_ca("test").unwrap();
    let before = Pair::with(Signer::from_pem(&ca, &key).unwrap());
    let after = Pair::with(Signer::from_pem(&ca, &key).unwrap());
    let door = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dialer = Dialer::new(&door.local_addr().unwrap().to_string()).unwrap();
    let (target, targets) = tokio::sync::watch::channel(before.listener.local_addr().unwrap());
    let forwarding = tokio::spawn(forward(door, targets));
    let pair = Pair { dialer, ..before };
    let (mut tunnel, _node) = pair.connected("edge-1").await;

    target.send_replace(after.listener.local_addr().unwrap());
    tunnel.writer.push(&crate::wire::Applied { revision: 1 });
    tunnel.writer.flush().await.unwrap();
    let gone = tokio::time::timeout(std::time::Duration::from_secs(10), tunnel.connection.closed());
    let reason = gone.await.expect("a reset must come long before the idle timeout");
    assert!(matches!(reason, quinn::ConnectionError::Reset), "{reason}");
    forwarding.abort();
}

#[tokio::test]
async fn a_change_of_address_keeps_the_connection() {
    let pair = Pair::new();
    let (mut tunnel, mut node) = pair.connected("edge-1").await;
    let before = node.connection.remote_address();
    let fresh = UdpSocket::bind("[::]:0").unwrap();
    pair.dialer.rebind(fresh).unwrap();
    tunnel.writer.push(&crate::wire::Applied { revision: 1 });
    tunnel.writer.flush().await.unwrap();
    assert!(node.reader.next().await.unwrap().is_some());
    assert_ne!(node.connection.remote_address(), before);
}

#[tokio::test]
async fn packets_travel_both_ways() {
    let pair = Pair::new();
    let identity = pair.identity("edge-1");
    let (link, arrival) = tokio::join!(pair.dialer.packets(&identity), pair.arrival());
    let link = link.unwrap();
    let Ok(Arrival::Packets { holder, link: far }) = arrival else { panic!("no packet link") };
    assert_eq!(holder.node, "edge-1");
    // The path's size is being discovered.
    let roomy = async {
        while link.max_bytes() < 1280 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), roomy).await.unwrap();
    link.send(Bytes::from(vec![7; 1280])).unwrap();
    assert_eq!(far.recv().await.unwrap(), vec![7; 1280]);
    far.send(Bytes::from_static(b"back")).unwrap();
    assert_eq!(link.recv().await.unwrap(), "back");
    assert!(link.send(Bytes::from(vec![0; 9000])).is_err());
}

#[tokio::test]
async fn sessions_carry_pieces_both_ways() {
    let pair = Pair::new();
    let (tunnel, node) = pair.connected("edge-1").await;
    let serve = async {
        let (request, incoming) =
            call::accept(&tunnel.connection).await.unwrap().request().await.unwrap();
        assert!(matches!(request, Request::SessionRequest(s) if s.command == ["cat"]));
        let begun = incoming.begin(Reply { code: 200, ..Reply::default() }).await.unwrap();
        let (mut send, mut receive) = begun.into_frames();
        while let Some(frame) = receive.next().await.unwrap() {
            let Some(SessionIn::SessionData(data)) = SessionIn::decode(&frame).unwrap() else {
                continue;
            };
            send.send(&SessionData { stream: 1, bytes: data.bytes }).await.unwrap();
        }
        send.send(&SessionEnd { exit_code: Some(3), message: String::new() }).await.unwrap();
        send.finish();
        tunnel
    };
    let ask = async {
        let request = SessionRequest { command: vec!["cat".into()], ..SessionRequest::default() };
        let (_, duplex) = call::call(&node.connection, &request).await.unwrap();
        let (mut send, mut receive) = duplex.into_frames();
        send.send(&SessionData { stream: 0, bytes: b"abc".to_vec() }).await.unwrap();
        // Something that an older end does not know is skipped.
        send.send(&Reply::default()).await.unwrap();
        send.finish();
        let frame = receive.next().await.unwrap().unwrap();
        let data = SessionOut::decode(&frame).unwrap().unwrap();
        assert_eq!(
            data,
            SessionOut::SessionData(SessionData { stream: 1, bytes: b"abc".to_vec() })
        );
        let frame = receive.next().await.unwrap().unwrap();
        let end = SessionEnd { exit_code: Some(3), message: String::new() };
        assert_eq!(SessionOut::decode(&frame).unwrap(), Some(SessionOut::SessionEnd(end)));
        assert!(receive.next().await.unwrap().is_none());
    };
    let (_tunnel, ()) = tokio::join!(serve, ask);
}
