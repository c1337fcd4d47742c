//! Bootstrap tokens: Kubernetes' own, printed with a pin of the cluster's CA.
//! <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>

use std::fmt;
use std::str::FromStr;

use rand::RngExt as _;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

const ID_CHARS: usize = 6;
const SECRET_CHARS: usize = 16;
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// What a new node is given: `<id>.<secret>.<SHA-256 of the CA's public key, hex>`.
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    pub id: String,
    pub secret: String,
    /// Of the CA's SubjectPublicKeyInfo in DER, lower-case hex.
    pub ca_hash: String,
}

/// Why a text is no token. Never contains the text: it may be a secret with a typing error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token is not of the form <id>.<secret>.<CA hash> ({0}); `rimward token create` prints one"
)]
pub struct ParseTokenError(&'static str);

impl BootstrapToken {
    /// A fresh token for the cluster whose CA has this hash.
    pub fn generate(ca_hash: &str) -> Self {
        let mut rng = rand::rng();
        let mut random = |chars: usize| -> String {
            (0..chars).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
        };
        Self { id: random(ID_CHARS), secret: random(SECRET_CHARS), ca_hash: ca_hash.to_owned() }
    }

    /// The name of the Secret in `kube-system` that makes the token valid.
    pub fn secret_name(id: &str) -> String {
        format!("bootstrap-token-{id}")
    }
}

/// Whether a text can be a token's id: safe to look up by name.
pub fn is_token_id(text: &str) -> bool {
    text.len() == ID_CHARS && text.bytes().all(|c| ALPHABET.contains(&c))
}

/// Compares without telling by the time it takes where two texts differ.
pub fn same_secret(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// The pin of a CA certificate (DER): SHA-256 of its public key, hex. None when it is no certificate.
pub fn ca_hash(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(hex(&Sha256::digest(certificate.tbs_certificate.subject_pki.raw)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl FromStr for BootstrapToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let good =
            |part: &str, chars| part.len() == chars && part.bytes().all(|c| ALPHABET.contains(&c));
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, ca_hash] = parts[..] else {
            return Err(ParseTokenError("it must have three parts"));
        };
        if !good(id, ID_CHARS) {
            return Err(ParseTokenError("the id has 6 lower-case letters and digits"));
        }
        if !good(secret, SECRET_CHARS) {
            return Err(ParseTokenError("the secret has 16 lower-case letters and digits"));
        }
        if ca_hash.len() != 64 || !ca_hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseTokenError("the CA hash has 64 hexadecimal digits"));
        }
        Ok(Self { id: id.into(), secret: secret.into(), ca_hash: ca_hash.into() })
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, self.ca_hash)
    }
}

impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootstrapToken({}.…)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_parse_as_they_print() {
        let token = BootstrapToken::generate(&"ab".repeat(32));
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));

        #[track_caller]
        fn check(text: &str) {
            assert!(text.parse::<BootstrapToken>().is_err(), "{text}");
        }
        check("");
        check("abcdef.0123456789abcdef");
        check(&format!("abcde.0123456789abcdef.{}", "ab".repeat(32)));
        check(&format!("abcdef.0123456789abcdeF.{}", "ab".repeat(32)));
        check(&format!("abcdef.0123456789abcdef.{}", "zz".repeat(32)));
    }

    #[test]
    fn secrets_compare() {
        assert!(same_secret("a", "a"));
        assert!(!same_secret("a", "b"));
        assert!(!same_secret("a", "ab"));
    }
}
