//! The cluster's keys and certificates, in `DIR/control/pki`: one CA, and what it signs for the API
//! server, the hub and the admin. Private keys are files that only their owner reads.
//!
//! Certificates are issued anew at every start with the keys that are there, so that addresses and
//! lifetimes are always current; only the CA and the ServiceAccount key are for keeps.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Years of validity of the CA, and days of what it signs here.
const CA_YEARS: i16 = 10;
const LEAF_DAYS: i32 = 365;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{path}: {source}; the control plane's keys live there and must be readable and writable by it"
    )]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}: {what}; restore the file from a backup, or remove the whole pki directory to start a new CA (all nodes and kubeconfigs must then join again)"
    )]
    Damaged { path: PathBuf, what: String },
    #[error("cannot sign the {what} certificate: {source}")]
    Sign { what: &'static str, source: rcgen::Error },
}

/// Midnight of a day. A macro, since the type is of a crate that only rcgen needs.
macro_rules! date {
    ($day:expr) => {{
        let day = $day;
        rcgen::date_time_ymd(i32::from(day.year()), day.month() as u8, day.day() as u8)
    }};
}

/// The keys of a cluster.
pub struct Pki {
    pub ca_pem: String,
    pub ca_key_pem: String,
    /// PKCS#8 PEM, ES256: signs ServiceAccount tokens.
    pub token_key_pem: String,
    dir: PathBuf,
}

/// What extension API servers know this one by: a CA of its own, so that no other certificate of the
/// cluster can speak in users' names, and a client certificate of that CA.
pub struct FrontProxy {
    pub ca_pem: String,
    pub identity: Identity,
}

/// The common name of the front proxy's certificate.
pub const FRONT_PROXY: &str = "front-proxy-client";

/// A certificate and its key, both PEM.
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

impl Pki {
    /// Reads the directory, making what is missing.
    ///
    /// # Errors
    /// Names the file that cannot be read, written or understood.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
        let (ca_pem, ca_key) = authority(dir, "ca", "rimward-ca")?;
        let pki = Self {
            ca_pem,
            ca_key_pem: ca_key.serialize_pem(),
            token_key_pem: key(&dir.join("service-account.key"))?.serialize_pem(),
            dir: dir.to_owned(),
        };
        pki.issuer()?;
        Ok(pki)
    }

    /// The CA as one that signs.
    pub fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        let damaged = |file: &str, e: rcgen::Error| Error::Damaged {
            path: self.dir.join(file),
            what: e.to_string(),
        };
        let key = KeyPair::from_pem(&self.ca_key_pem).map_err(|e| damaged("ca.key", e))?;
        Issuer::from_ca_cert_pem(&self.ca_pem, key).map_err(|e| damaged("ca.crt", e))
    }

    /// The API server's and the hub's certificate, for every name under which they are reached.
    pub fn server(&self, names: &[String], addresses: &[IpAddr]) -> Result<Identity, Error> {
        let mut params = leaf("kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth);
        for name in names {
            let name = name.as_str().try_into();
            let name = name.map_err(|source| Error::Sign { what: "server", source })?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.sign("server", params)
    }

    /// `kubernetes-admin` of `system:masters`.
    pub fn admin(&self) -> Result<Identity, Error> {
        let use_ = ExtendedKeyUsagePurpose::ClientAuth;
        self.sign("admin", leaf("kubernetes-admin", &["system:masters"], use_))
    }

    /// The front proxy's CA and certificate.
    pub fn front_proxy(&self) -> Result<FrontProxy, Error> {
        let (ca_pem, ca_key) = authority(&self.dir, "front-proxy-ca", "rimward-front-proxy-ca")?;
        let damaged = |e: rcgen::Error| Error::Damaged {
            path: self.dir.join("front-proxy-ca.crt"),
            what: e.to_string(),
        };
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(damaged)?;
        let key = key(&self.dir.join("front-proxy-client.key"))?;
        let params = leaf(FRONT_PROXY, &[], ExtendedKeyUsagePurpose::ClientAuth);
        let cert = params.signed_by(&key, &issuer);
        let cert = cert.map_err(|source| Error::Sign { what: FRONT_PROXY, source })?;
        let identity = Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() };
        Ok(FrontProxy { ca_pem, identity })
    }

    fn sign(&self, what: &'static str, params: CertificateParams) -> Result<Identity, Error> {
        let key = key(&self.dir.join(format!("{what}.key")))?;
        let cert = params.signed_by(&key, &self.issuer()?);
        let cert = cert.map_err(|source| Error::Sign { what, source })?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// A CA in the directory, made if there is none: its certificate, and its key.
fn authority(dir: &Path, file: &str, name: &str) -> Result<(String, KeyPair), Error> {
    let ca_key = key(&dir.join(format!("{file}.key")))?;
    let cert_path = dir.join(format!("{file}.crt"));
    if let Some(pem) = read(&cert_path)? {
        return Ok((pem, ca_key));
    }
    let cert = ca_params(name).self_signed(&ca_key);
    let pem = cert.map_err(|source| Error::Sign { what: "CA", source })?.pem();
    write(&cert_path, &pem, 0o644)?;
    Ok((pem, ca_key))
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let today = today();
    params.not_before = date!(today.saturating_sub(jiff::Span::new().days(1)));
    params.not_after = date!(today.saturating_add(jiff::Span::new().years(CA_YEARS)));
    params
}

fn leaf(name: &str, groups: &[&str], use_: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![use_];
    let today = today();
    // A day back: clocks of small machines drift.
    params.not_before = date!(today.saturating_sub(jiff::Span::new().days(1)));
    params.not_after = date!(today.saturating_add(jiff::Span::new().days(LEAF_DAYS)));
    params
}

fn today() -> jiff::civil::Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}

/// The key in a file, made if there is none.
fn key(path: &Path) -> Result<KeyPair, Error> {
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem)
            .map_err(|e| Error::Damaged { path: path.to_owned(), what: e.to_string() });
    }
    let key = KeyPair::generate().map_err(|source| Error::Sign { what: "new", source })?;
    write(path, &key.serialize_pem(), 0o600)?;
    Ok(key)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// Writes a file whole: beside its place, synced, renamed.
pub(crate) fn write(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let staged = path.with_extension("new");
    let put = || {
        let _an_older_attempt = fs::remove_file(&staged);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)
    };
    put().map_err(|source| Error::Io { path: path.to_owned(), source })
}
