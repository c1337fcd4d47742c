//! The QUIC settings that both ends share.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::crypto::CryptoProvider;

/// How often an idle node sends a packet: often enough for the NATs on the way.
pub const KEEP_ALIVE: Duration = Duration::from_secs(12);

/// Silence after which either end gives the connection up: three keep-alives were lost. Shorter
/// than the 50 s after which Kubernetes calls a node NotReady.
pub const IDLE_MAX: Duration = Duration::from_secs(40);

/// How many requests an end lets the other have open.
const STREAMS_MAX: u32 = 1024;

/// What waits unread on one stream, in bytes: what a path of 100 ms carries of one request, 5 MB a second.
const STREAM_BYTES: u32 = 512 << 10;
/// The same of all streams together. Streams that nobody reads (a client of exec that went to sleep) hold their share
/// of it, and once nothing is left no stream moves, the control stream neither: so there is room for many of them.
const CONNECTION_BYTES: u32 = 128 * STREAM_BYTES;

/// Packets of the pod network wait here when the path is slower than the pods; the oldest go first.
const DATAGRAM_BYTES: usize = 1 << 20;

pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

fn common(node_end: bool) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_MAX).expect("40 s fit a QUIC varint")))
        .keep_alive_interval(node_end.then_some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_BYTES))
        .send_window(8 << 20);
    transport
}

/// For control and requests: no datagrams.
pub(crate) fn control(node_end: bool) -> Arc<TransportConfig> {
    let mut transport = common(node_end);
    transport.datagram_receive_buffer_size(None);
    Arc::new(transport)
}

/// For pod packets, and for whoever arrives at the control plane. Starts with the 1200 bytes that any
/// path carries; discovery finds room for an inner packet of 1280 within a few round trips where the
/// path has it. Starting larger would lose the handshake on narrow paths.
pub(crate) fn packets(node_end: bool) -> Arc<TransportConfig> {
    let mut transport = common(node_end);
    transport
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES);
    Arc::new(transport)
}
