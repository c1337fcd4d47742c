//! The OCI distribution endpoint
