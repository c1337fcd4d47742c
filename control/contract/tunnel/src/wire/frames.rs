//! Every frame there is. Numbers are never reused; fields are only ever appended, at the end.

use super::codec::{frame_set, frames};

/// Namespace and name of an object.
pub type Key = (String, String);

frames! {
    // The control stream, node to control plane.

    /// The first frame of a connection: who speaks, and what it already holds.
    Hello = 1 {
        protocol_min: u16,
        protocol_max: u16,
        /// Of the node's software.
        version: String,
        /// The node's own view of its Node object, JSON: labels, capacity, addresses, conditions.
        node: Vec<u8>,
        /// For each kind that the node's ledger holds: (kind, number of objects, digest). What
        /// matches is not sent again. See `digest`.
        held: Vec<(String, u64, u64)>,
    }
    /// Answers an Offer: objects that the node lacks.
    Want = 2 { kind: String, keys: Vec<Key>, }
    /// Everything up to this revision is in the node's ledger.
    Applied = 3 { revision: u64, }
    /// A pod's status. Acknowledged by `seq` once the API has it.
    PodReport = 4 {
        seq: u64,
        namespace: String,
        name: String,
        uid: String,
        /// The pod has ended and its resources are released.
        terminated: bool,
        /// `v1.PodStatus`, JSON.
        status: Vec<u8>,
    }
    /// An Event about one of the node's pods or the node itself: `v1.Event`, JSON.
    EventReport = 5 { event: Vec<u8>, }
    /// The node's status changed: a Node, JSON, as in Hello.
    NodeReport = 6 { node: Vec<u8>, }
    /// Exactly these pods does the node have from files of its own: the mirror Pods to be shown of them, JSON.
    StaticPods = 7 { pods: Vec<Vec<u8>>, }

    // The control stream, control plane to node.

    /// The node is accepted.
    Welcome = 32 {
        protocol: u16,
        version: String,
        /// The node's own block of pod addresses.
        pod_cidr: String,
        pod_network: String,
        service_network: String,
        cluster_dns: String,
        cluster_domain: String,
        /// `IP:port` of `kubernetes.default`.
        api_service: String,
    }
    /// Objects (JSON) that appeared or changed, and keys that went.
    Delta = 33 { revision: u64, kind: String, upserts: Vec<Vec<u8>>, removes: Vec<Key>, }
    /// Exactly these objects of a kind are the node's: (namespace, name, uid, resourceVersion). It
    /// drops what it holds beyond them and asks for what it lacks.
    Offer = 34 { revision: u64, kind: String, entries: Vec<(String, String, String, String)>, }
    /// The node has been told everything; deltas follow.
    Synced = 35 { revision: u64, }
    /// These pod reports are in the API (or about pods that are gone from it).
    Ack = 36 { seqs: Vec<u64>, }

    // The first frame of a request stream, node to control plane.

    /// A ServiceAccount token bound to one of the node's pods.
    TokenRequest = 64 {
        namespace: String,
        pod: String,
        pod_uid: String,
        audiences: Vec<String>,
        expiration_seconds: i64,
    }
    /// An object that one of the node's pods references.
    FetchRequest = 65 { kind: String, namespace: String, name: String, }
    /// A read from the built-in registry; `method` is GET or HEAD, `path` starts with `/v2/`.
    RegistryRequest = 66 { method: String, path: String, headers: Vec<(String, String)>, }
    /// A byte stream; see [`DialTarget`].
    DialRequest = 67 { target: u8, ip: String, port: u16, }
    /// A new certificate for the node's key: a PKCS #10 request, DER.
    RenewRequest = 68 { csr: Vec<u8>, }

    // The first frame of a request stream, control plane to node (DialRequest too).

    /// `v1.PodLogOptions` of one container.
    LogsRequest = 69 {
        namespace: String,
        pod: String,
        pod_uid: String,
        container: String,
        follow: bool,
        previous: bool,
        timestamps: bool,
        since_seconds: Option<i64>,
        /// RFC 3339; empty is none.
        since_time: String,
        tail_lines: Option<i64>,
        limit_bytes: Option<i64>,
    }

    /// A session in a running container; pieces follow (see [`SessionIn`], [`SessionOut`]).
    SessionRequest = 70 {
        namespace: String,
        pod: String,
        pod_uid: String,
        container: String,
        /// To be run in the container; empty attaches to its own main process.
        command: Vec<String>,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        tty: bool,
    }
    /// A byte stream to a port of a pod, as the pod itself reaches it: port-forward.
    PortForwardRequest = 71 { namespace: String, pod: String, pod_uid: String, port: u16, }

    /// Answers a request stream. With a code below 400 the raw bytes of the stream follow.
    Reply = 96 {
        /// An HTTP status code.
        code: u16,
        /// Why not, when the code is 400 or more.
        message: String,
        headers: Vec<(String, String)>,
        /// A small answer that is not worth a stream: JSON, or DER certificates' JSON-free bytes.
        body: Vec<u8>,
    }

    // What follows the good answer to a SessionRequest, in either direction.

    /// Bytes of a stream of the session: 0 is stdin, 1 stdout, 2 stderr. None at all is its end.
    SessionData = 112 { stream: u8, bytes: Vec<u8>, }
    /// The client's terminal has this size, in characters.
    SessionResize = 113 { width: u16, height: u16, }
    /// The last piece from the node: the command ended, or never began.
    SessionEnd = 114 {
        /// None when nothing ran (then `message` says why), or when there is no code: an attached
        /// session that is over.
        exit_code: Option<i32>,
        message: String,
    }

    // Joining.

    /// A bootstrap token and a certificate request (PKCS #10, DER).
    Join = 128 {
        protocol_min: u16,
        protocol_max: u16,
        version: String,
        name: String,
        token_id: String,
        token_secret: String,
        csr: Vec<u8>,
    }
    /// Certificates in DER: the node's own, and the CA that nodes trust from now on.
    Joined = 129 { certificate: Vec<u8>, ca: Vec<u8>, }
}

frame_set! {
    /// What a node says on its control stream.
    Up: Hello, Want, Applied, PodReport, EventReport, NodeReport, StaticPods
}

frame_set! {
    /// What the control plane says on a control stream.
    Down: Welcome, Delta, Offer, Synced, Ack
}

frame_set! {
    /// The first frame of a request stream, in either direction.
    Request: TokenRequest, FetchRequest, RegistryRequest, DialRequest, RenewRequest, LogsRequest,
        SessionRequest, PortForwardRequest
}

frame_set! {
    /// What the control plane sends into a session.
    SessionIn: SessionData, SessionResize
}

frame_set! {
    /// What a node sends out of a session.
    SessionOut: SessionData, SessionEnd
}

/// Where a DialRequest leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialTarget {
    /// An address of the pod network: on this node, or from a node on another node.
    Pod = 0,
    /// The API server (`kubernetes.default`); address and port are ignored.
    Api = 1,
    /// The node's own API, HTTP/1.1, for the control plane; address and port are ignored.
    Node = 2,
}

impl DialTarget {
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Pod, Self::Api, Self::Node].into_iter().find(|target| *target as u8 == number)
    }
}

/// Sums up a set of objects of one kind in any order, so that two ends can tell whether they hold
/// the same. Wrapping sums of per-object hashes; not a security measure, both ends are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub count: u64,
    pub sum: u64,
}

impl Digest {
    pub fn add(&mut self, namespace: &str, name: &str, uid: &str, resource_version: &str) {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        for part in [namespace, name, uid, resource_version] {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let hash = hash.finalize();
        let first = hash[..8].try_into().expect("a SHA-256 hash has 32 bytes");
        self.count += 1;
        self.sum = self.sum.wrapping_add(u64::from_be_bytes(first));
    }
}
