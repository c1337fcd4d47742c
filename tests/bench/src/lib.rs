//! The numbers of docs/architecture.md, measured
