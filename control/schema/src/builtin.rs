//! The model of the built-in kinds.

use std::sync::LazyLock;

use crate::model::Model;

/// The built-in kinds of Kubernetes v1.36, with the parts that they are made of. Decoded once, on
/// first use; descriptions are not part of it (see `openapi`).
pub fn builtin() -> &'static Model {
    static MODEL: LazyLock<Model> = LazyLock::new(Model::new);
    &MODEL
}
