//! The words that both ends speak: object identity, Status, selectors, quantities, names; and the few rules
//! that both ends go by ([`nodes`]: which nodes a pod may be on, [`static_pods`], [`local_volumes`]).
//!
//! Pure data and pure functions. It refuses to do I/O, to know a clock (callers pass `now`), and to say
//! what a kind is: that stands in `rimward-control-kinds`.
//!
//! Typed kinds are those of [`k8s_openapi`]; the API server itself works on untyped JSON, because a
//! typed decode drops the fields that it does not know.

pub mod block;
pub mod local_volumes;
pub mod meta;
pub mod names;
pub mod nodes;
pub mod quantity;
pub mod resource;
pub mod selector;
pub mod static_pods;
pub mod status;
pub mod usage;
pub mod user;

pub use block::Block;
pub use k8s_openapi;
pub use meta::ObjectKey;
pub use quantity::Quantity;
pub use resource::{
    GroupKind, GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource,
};
pub use status::{Cause, CauseReason, FieldError, Reason, Status};
pub use user::UserInfo;
