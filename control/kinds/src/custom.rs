//! Custom resources: what a CustomResourceDefinition says, and what it makes of the objects of its
//! kinds. The facts are those of Kubernetes' apiextensions-apiserver and of its kube-openapi.
//!
//! A definition is checked when it is written ([`definition`], [`structural`], [`openapi_rules`],
//! [`default_rules`]), so that afterwards its [`schema::Schema`] can be trusted. An object then goes
//! through the same steps as one of a built-in kind, only that each is driven by the schema:
//! [`pruning`], [`defaulting`], and the [`kind::CustomRules`] with [`value`] validation, [`lists`] and
//! [`embedded`] metadata. What is known of a definition and needed for serving is a
//! [`version::Definition`].
//!
//! Pure as the rest of this crate: which definitions there are, and when a name is free, is given to
//! [`names`].

pub mod default_rules;
pub mod defaulting;
pub mod definition;
pub mod embedded;
pub mod formats;
pub mod jsonpath;
pub mod kind;
pub mod lists;
pub mod names;
pub mod openapi_rules;
pub mod pattern;
pub mod pruning;
pub mod schema;
pub mod structural;
pub mod value;
pub mod version;
