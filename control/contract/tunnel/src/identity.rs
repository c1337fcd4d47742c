//! Who a node is: its key, which never leaves it, and the certificate that it was given.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::signer::{NODE_USER_PREFIX, NODES_GROUP};

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: std::io::Error },
    #[error("{path} is damaged: {cause}; remove it and join the node anew with a token")]
    Damaged { path: PathBuf, cause: String },
    #[error("cannot make a key: {0}")]
    Key(String),
}

/// What a certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub node: String,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER), hex.
    pub key_hash: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Holder {
    /// Reads a node's certificate; None when it is not one (another common name or group).
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let node =
            subject.iter_common_name().next()?.as_str().ok()?.strip_prefix(NODE_USER_PREFIX)?;
        let in_group =
            subject.iter_organization().any(|group| group.as_str().is_ok_and(|g| g == NODES_GROUP));
        let time = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
        let validity = certificate.validity();
        in_group.then_some(())?;
        Some(Self {
            node: node.to_owned(),
            key_hash: crate::token::hex(&Sha256::digest(
                certificate.tbs_certificate.subject_pki.raw,
            )),
            not_before: time(validity.not_before)?,
            not_after: time(validity.not_after)?,
        })
    }

    /// Whether two thirds of the lifetime are over: time to ask for the next certificate.
    pub fn renewal_due(&self, now: Timestamp) -> bool {
        now >= self.renew_at()
    }

    /// When two thirds of the lifetime are over.
    pub fn renew_at(&self) -> Timestamp {
        let lifetime = self.not_after.as_second() - self.not_before.as_second();
        Timestamp::from_second(self.not_before.as_second() + lifetime / 3 * 2)
            .unwrap_or(self.not_after)
    }
}

/// The directory that keeps a node's key and certificates: `node.key` (0600), `node.crt`, `ca.crt`.
#[derive(Clone, Debug)]
pub struct IdentityDir {
    dir: PathBuf,
}

/// A key with a certificate for it.
#[derive(Clone, Debug)]
pub struct Identity {
    pub holder: Holder,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) key: std::sync::Arc<PrivateKeyDer<'static>>,
}

impl Identity {
    /// The CA that the node trusts, DER.
    pub fn ca(&self) -> &[u8] {
        &self.ca
    }
}

impl IdentityDir {
    /// Opens, and makes where missing, the directory.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, IdentityError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|cause| IdentityError::Io { path: dir.clone(), cause })?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The node's key, made on first use. An interrupted join finds the same key again.
    fn key(&self) -> Result<KeyPair, IdentityError> {
        let path = self.path("node.key");
        match fs::read_to_string(&path) {
            Ok(pem) => KeyPair::from_pem(&pem)
                .map_err(|e| IdentityError::Damaged { path, cause: e.to_string() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|e| IdentityError::Key(e.to_string()))?;
                write(&path, key.serialize_pem().as_bytes(), 0o600)?;
                Ok(key)
            }
            Err(cause) => Err(IdentityError::Io { path, cause }),
        }
    }

    /// A certificate request for this node's key, DER.
    pub fn request(&self, name: &str) -> Result<Vec<u8>, IdentityError> {
        let key = self.key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{NODE_USER_PREFIX}{name}"));
        let request =
            params.serialize_request(&key).map_err(|e| IdentityError::Key(e.to_string()))?;
        Ok(request.der().to_vec())
    }

    /// What was joined before; None when this node has no certificate yet.
    pub fn load(&self) -> Result<Option<Identity>, IdentityError> {
        let (path, ca_path) = (self.path("node.crt"), self.path("ca.crt"));
        if !path.exists() || !ca_path.exists() {
            return Ok(None);
        }
        let certificate = read_certificate(&path)?;
        let ca = read_certificate(&ca_path)?;
        let holder = Holder::of(&certificate).ok_or_else(|| IdentityError::Damaged {
            path: path.clone(),
            cause: "it is not a node's certificate".into(),
        })?;
        let key = self.key()?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Some(Identity { holder, certificate, ca, key: std::sync::Arc::new(key) }))
    }

    /// Keeps a certificate that was given for [`IdentityDir::request`].
    pub fn store(&self, certificate: &[u8], ca: &[u8]) -> Result<Identity, IdentityError> {
        let pem = |der: &[u8]| {
            let body = base64_lines(der);
            format!("-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
        };
        // The CA first: `load` wants both.
        write(&self.path("ca.crt"), pem(ca).as_bytes(), 0o644)?;
        write(&self.path("node.crt"), pem(certificate).as_bytes(), 0o644)?;
        let path = self.path("node.crt");
        self.load()?.ok_or(IdentityError::Damaged { path, cause: "it vanished".into() })
    }
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let bytes = fs::read(path).map_err(|cause| IdentityError::Io { path: path.into(), cause })?;
    CertificateDer::from_pem_slice(&bytes)
        .map_err(|e| IdentityError::Damaged { path: path.into(), cause: e.to_string() })
}

/// Writes whole or not at all, and durably.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let scratch = path.with_extension("new");
    let attempt = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&scratch)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&scratch, path)?;
        match path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    attempt().map_err(|cause| IdentityError::Io { path: path.into(), cause })
}

/// PEM's body: base64 in lines of 64.
fn base64_lines(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b))
                << (8 * (3 - group.len()));
            for i in 0..4 {
                let digit = (bits >> (18 - 6 * i)) & 63;
                text.push(if i <= group.len() {
                    char::from(ALPHABET[digit as usize])
                } else {
                    '='
                });
            }
        }
        text.push('\n');
    }
    text
}
