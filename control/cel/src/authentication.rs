//! What the expressions of an AuthenticationConfiguration see: the claims of a token, and the user that was
//! made of them.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>

use std::sync::LazyLock;

use serde_json::Value as Json;

use crate::environment::Environment;
use crate::eval::Bindings;
use crate::policy::USER_INFO;
use crate::types::Type;
use crate::value::Value;

/// Of expressions about `claims`.
pub static CLAIMS: LazyLock<Environment> =
    LazyLock::new(|| Environment::new().with("claims", Type::map(Type::String, Type::Dyn)));

/// Of expressions about the `user`.
pub static USER: LazyLock<Environment> =
    LazyLock::new(|| Environment::new().with("user", Type::Object(USER_INFO.clone())));

/// Binds `claims`: the JSON of a verified token's second part.
pub fn claims(claims: &Json) -> Bindings<'_> {
    Bindings::new().with("claims", Value::of(claims, None))
}

/// Binds `user`: a UserInfo as reviews show it.
pub fn user(user: &Json) -> Bindings<'_> {
    Bindings::new().with("user", Value::of(user, Some(&USER_INFO)))
}
