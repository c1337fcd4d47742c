//! Bytes of frames, checked in: what was once sent must be understood for ever.

use crate::wire::codec::{Frame, FrameReader, encode};
use crate::wire::*;

const GOLDEN: &str = include_str!("../wire/golden.txt");

/// Encodes to the golden bytes, and decodes from them.
#[track_caller]
fn check<F: Frame + PartialEq + std::fmt::Debug>(written: &mut String, frame: &F) {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes);
    let hex = crate::token::hex(&bytes);
    written.push_str(&format!("{} {hex}\n", F::NAME));
    let golden = GOLDEN.lines().find_map(|line| line.strip_prefix(&format!("{} ", F::NAME)));
    if std::env::var_os("RIMWARD_BLESS").is_none() {
        assert_eq!(golden, Some(hex.as_str()), "{}: the wire format changed", F::NAME);
    }
    let raw = FrameReader::new(&bytes[..]);
    let raw = futures_block(raw);
    assert_eq!(raw.decode::<F>().unwrap().as_ref(), Some(frame));
    // A sender that is older than all fields, and one that is newer.
    let empty = codec::RawFrame { kind: F::KIND, fields: Vec::new().into() };
    assert!(empty.decode::<F>().unwrap().is_some());
    let mut longer = raw.fields.to_vec();
    longer.extend_from_slice(b"appended later");
    let longer = codec::RawFrame { kind: F::KIND, fields: longer.into() };
    assert_eq!(longer.decode::<F>().unwrap().as_ref(), Some(frame));
}

fn futures_block(mut reader: FrameReader<&[u8]>) -> codec::RawFrame {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(reader.next()).unwrap().unwrap()
}

#[test]
fn frames_are_what_they_were() {
    let text = |s: &str| s.to_owned();
    let mut written = String::new();
    let w = &mut written;
    check(
        w,
        &Hello {
            protocol_min: 1,
            protocol_max: 300,
            version: text("v"),
            node: b"{}".to_vec(),
            held: vec![(text("Pod"), 2, u64::MAX)],
        },
    );
    check(w, &Want { kind: text("Pod"), keys: vec![(text("ns"), text("a"))] });
    check(w, &Applied { revision: 70_000 });
    check(
        w,
        &PodReport {
            seq: 1,
            namespace: text("ns"),
            name: text("a"),
            uid: text("u"),
            terminated: true,
            status: b"{}".to_vec(),
        },
    );
    check(w, &EventReport { event: b"{}".to_vec() });
    check(w, &NodeReport { node: b"{}".to_vec() });
    check(w, &StaticPods { pods: vec![b"{}".to_vec()] });
    check(
        w,
        &Welcome {
            protocol: 1,
            version: text("v"),
            pod_cidr: text("10.42.0.0/24"),
            pod_network: text("10.42.0.0/16"),
            service_network: text("10.43.0.0/16"),
            cluster_dns: text("10.43.0.10"),
            cluster_domain: text("cluster.local"),
            api_service: text("10.43.0.1:443"),
        },
    );
    check(
        w,
        &Delta {
            revision: 9,
            kind: text("Pod"),
            upserts: vec![b"{}".to_vec()],
            removes: vec![(text("ns"), text("b"))],
        },
    );
    check(
        w,
        &Offer {
            revision: 9,
            kind: text("Pod"),
            entries: vec![(text("ns"), text("a"), text("u"), text("5"))],
        },
    );
    check(w, &Synced { revision: 10 });
    check(w, &Ack { seqs: vec![1, 251, 65_536] });
    check(
        w,
        &TokenRequest {
            namespace: text("ns"),
            pod: text("a"),
            pod_uid: text("u"),
            audiences: vec![text("x")],
            expiration_seconds: -1,
        },
    );
    check(w, &FetchRequest { kind: text("Secret"), namespace: text("ns"), name: text("a") });
    check(
        w,
        &RegistryRequest {
            method: text("GET"),
            path: text("/v2/"),
            headers: vec![(text("a"), text("b"))],
        },
    );
    check(w, &DialRequest { target: 1, ip: text("10.42.0.1"), port: 65_535 });
    check(w, &RenewRequest { csr: vec![1, 2] });
    check(
        w,
        &LogsRequest {
            namespace: text("ns"),
            pod: text("a"),
            pod_uid: text("u"),
            container: text("c"),
            follow: true,
            previous: false,
            timestamps: true,
            since_seconds: Some(5),
            since_time: text(""),
            tail_lines: None,
            limit_bytes: Some(1 << 40),
        },
    );
    check(
        w,
        &Reply {
            code: 404,
            message: text("no"),
            headers: vec![(text("a"), text("b"))],
            body: vec![0, 255],
        },
    );
    check(
        w,
        &SessionRequest {
            namespace: text("ns"),
            pod: text("a"),
            pod_uid: text("u"),
            container: text("c"),
            command: vec![text("sh"), text("-c")],
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        },
    );
    check(
        w,
        &PortForwardRequest {
            namespace: text("ns"),
            pod: text("a"),
            pod_uid: text("u"),
            port: 8080,
        },
    );
    check(w, &SessionData { stream: 1, bytes: vec![6, 0] });
    check(w, &SessionResize { width: 300, height: 24 });
    check(w, &SessionEnd { exit_code: Some(-1), message: text("no") });
    check(
        w,
        &Join {
            protocol_min: 1,
            protocol_max: 1,
            version: text("v"),
            name: text("n"),
            token_id: text("i"),
            token_secret: text("s"),
            csr: vec![3],
        },
    );
    check(w, &Joined { certificate: vec![4], ca: vec![5] });
    if std::env::var_os("RIMWARD_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire/golden.txt"), written)
            .unwrap();
    }
}

#[test]
fn kinds_are_distinct() {
    let names: Vec<&str> = GOLDEN.lines().map(|l| &l[l.find(' ').unwrap() + 3..][..4]).collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
}

#[test]
fn digests_ignore_order() {
    let (mut a, mut b) = (Digest::default(), Digest::default());
    a.add("ns", "x", "u1", "5");
    a.add("ns", "y", "u2", "6");
    b.add("ns", "y", "u2", "6");
    b.add("ns", "x", "u1", "5");
    assert_eq!(a, b);
    b.add("ns", "z", "", "");
    assert_ne!(a, b);
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20_000 {
        let mut bytes = vec![codec::FORMAT];
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let length = (state >> 59) as usize;
        bytes.extend_from_slice(&[0, (state >> 32) as u8, 0, 0, 0, length as u8]);
        for _ in 0..length {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.push((state >> 33) as u8);
        }
        let raw = codec::RawFrame { kind: u16::from(bytes[2]), fields: bytes[7..].to_vec().into() };
        let _either = (Up::decode(&raw), Down::decode(&raw), Request::decode(&raw));
    }
}
