//! The QUIC protocol between nodes and the control plane
