//! The control plane's hand: signs node certificates and its own tunnel certificate with the
//! cluster's CA.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use crate::token::ca_hash;

/// How long a node's certificate is valid.
pub const NODE_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);

/// Clocks of small devices are wrong; certificates start this much before they are made.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// The group of every node.
pub const NODES_GROUP: &str = "system:nodes";
/// What a node's user name starts with.
pub const NODE_USER_PREFIX: &str = "system:node:";

#[derive(Clone, Debug, thiserror::Error)]
pub enum SignerError {
    #[error("the CA {what} cannot be read: {cause}")]
    Ca { what: &'static str, cause: String },
    #[error("the certificate request is not acceptable: {0}")]
    Request(String),
    #[error("signing failed: {0}")]
    Signing(String),
}

/// A CA certificate and its key.
pub struct Signer {
    ca: CertificateDer<'static>,
    ca_hash: String,
    issuer: Issuer<'static, KeyPair>,
    reset_key: [u8; 32],
}

/// A request whose signature is right.
pub struct Request {
    params: CertificateSigningRequestParams,
    pub key_hash: String,
}

impl Signer {
    /// From the CA's certificate and private key (PKCS #8) in PEM.
    pub fn from_pem(ca_certificate: &str, ca_key: &str) -> Result<Self, SignerError> {
        let ca_error = |what| move |cause: String| SignerError::Ca { what, cause };
        let ca = CertificateDer::from_pem_slice(ca_certificate.as_bytes())
            .map_err(|e| ca_error("certificate")(e.to_string()))?;
        let ca_hash = ca_hash(&ca)
            .ok_or_else(|| ca_error("certificate")("it is not an X.509 certificate".into()))?;
        let key = KeyPair::from_pem(ca_key).map_err(|e| ca_error("key")(e.to_string()))?;
        let reset_key = Sha256::new()
            .chain_update(b"rimward stateless reset\0")
            .chain_update(key.serialized_der())
            .finalize()
            .into();
        let issuer = Issuer::from_ca_cert_der(&ca, key)
            .map_err(|e| ca_error("certificate")(e.to_string()))?;
        Ok(Self { ca, ca_hash, issuer, reset_key })
    }

    /// A new CA, as (certificate, key) in PEM. For clusters that start, and for tests.
    pub fn generate_ca(common_name: &str) -> Result<(String, String), SignerError> {
        let signing = |e: rcgen::Error| SignerError::Signing(e.to_string());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let now = SystemTime::now();
        params.not_before = (now - CLOCK_SLACK).into();
        params.not_after = (now + NODE_CERTIFICATE_LIFETIME * 10).into();
        let key = KeyPair::generate().map_err(signing)?;
        let certificate = params.self_signed(&key).map_err(signing)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// What bootstrap tokens pin.
    pub fn ca_hash(&self) -> &str {
        &self.ca_hash
    }

    /// Lets a restarted control plane tell nodes at once that their connections are gone.
    pub(crate) fn reset_key(&self) -> &[u8; 32] {
        &self.reset_key
    }

    /// Reads a PKCS #10 request and checks that its sender has the key.
    pub fn read_request(der: &[u8]) -> Result<Request, SignerError> {
        let params =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(|e| SignerError::Request(e.to_string()))?;
        use rcgen::PublicKeyData as _;
        let key_hash =
            crate::token::hex(&Sha256::digest(params.public_key.subject_public_key_info()));
        Ok(Request { params, key_hash })
    }

    /// A client certificate for the node `name`. Only the key is taken from the request: what it
    /// asks to be called is nothing to go by.
    pub fn sign_node(
        &self,
        name: &str,
        request: &Request,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, SignerError> {
        let mut params = leaf(now, NODE_CERTIFICATE_LIFETIME);
        params.distinguished_name.push(DnType::OrganizationName, NODES_GROUP);
        params.distinguished_name.push(DnType::CommonName, format!("{NODE_USER_PREFIX}{name}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(&request.params.public_key, &self.issuer)
            .map_err(|e| SignerError::Signing(e.to_string()))?;
        Ok(certificate.der().clone())
    }

    /// The control plane's own certificate for the tunnel, with a new key.
    pub(crate) fn server_certificate(
        &self,
        now: Timestamp,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SignerError> {
        let signing = |e: rcgen::Error| SignerError::Signing(e.to_string());
        let key = KeyPair::generate().map_err(signing)?;
        let mut params = leaf(now, NODE_CERTIFICATE_LIFETIME);
        params.distinguished_name.push(DnType::CommonName, crate::SERVER_NAME);
        let name = crate::SERVER_NAME.try_into().expect("the server name is ASCII");
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(signing)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        // The CA goes along: a joining node knows only its hash.
        Ok((vec![certificate.der().clone(), self.ca.clone()], key))
    }

    /// A node certificate with chosen dates, for tests of what happens when it expires.
    #[doc(hidden)]
    pub fn sign_node_until(
        &self,
        name: &str,
        request: &Request,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<CertificateDer<'static>, SignerError> {
        let mut params = leaf(from, Duration::ZERO);
        params.not_after = SystemTime::from(until).into();
        params.distinguished_name.push(DnType::OrganizationName, NODES_GROUP);
        params.distinguished_name.push(DnType::CommonName, format!("{NODE_USER_PREFIX}{name}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&request.params.public_key, &self.issuer);
        Ok(signed.map_err(|e| SignerError::Signing(e.to_string()))?.der().clone())
    }
}

fn leaf(now: Timestamp, lifetime: Duration) -> CertificateParams {
    let now = SystemTime::from(now);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = (now + lifetime).into();
    let mut serial: [u8; 16] = rand::random();
    // A positive number that fills its bytes.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}
