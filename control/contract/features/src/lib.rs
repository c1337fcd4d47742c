//! No code: one set of features for the dependencies that several dependencies configure each their way.
//!
//! Cargo unites features over what is built together, so `cargo test -p X`, a slim binary and the whole
//! workspace would each compile tokio, serde and all that stands on them anew. Every crate depends on this
//! one; its Cargo.toml names the union, and the dependencies are compiled once. It links nothing that is
//! not used anyway. (`cargo hakari` automates the same; two dozen lines did not need a tool.)
