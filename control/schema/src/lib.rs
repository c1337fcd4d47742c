//! The one schema model and what it drives: decoding with strict field validation, declared
//! defaults, patches, field ownership and OpenAPI.
//!
//! Pure functions on [`serde_json::Value`] and bytes. It refuses to do I/O, to know a clock (callers
//! pass `now`), and to know any single kind: procedural defaults and validation are
//! `rimward-control-kinds`'.
//!
//! The model is not tied to built-in kinds: [`model::Model`] is a graph of definitions that
//! [`builtin`] fills from tables made at build time (`build.rs`: the Go types of `facts/` joined with
//! the descriptions of k8s-openapi) and that a CustomResourceDefinition fills from its own schema.
//! One Go type table drives everything, because what clients observe (which zero values are
//! dropped, what a type error says, how lists merge) is a property of the Go types and not of the
//! published OpenAPI documents.

pub mod model;

mod builtin;
pub mod decode;
pub mod defaults;
pub mod managed;
pub mod openapi;
pub mod patch;

pub use builtin::{builtin, metadata_description};
pub use decode::{Decoded, Expected, FieldValidation, Format, Unstructured};
pub use model::{DefId, Definition, Field, Model, Part, Type};
