//! What makes the other end believed.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::destination::bundle_bytes;
use super::error::CallError;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Whoever one of these certificates (PEM) vouches for.
    Bundle(Arc<[u8]>),
    /// Whoever the machine's certificates vouch for.
    System,
    /// Anybody: `insecureSkipTLSVerify`.
    Anybody,
}

impl Trust {
    /// Of a `caBundle` in base64; empty means the machine's.
    ///
    /// # Errors
    /// When it is not base64.
    pub fn of_bundle(base64: &str) -> Result<Self, CallError> {
        match base64 {
            "" => Ok(Self::System),
            text => Ok(Self::Bundle(bundle_bytes(text)?.into())),
        }
    }
}

/// A client certificate and its key, PEM.
#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

/// The TLS configuration for a destination; protocols are the connector's.
pub(super) fn config(trust: &Trust, identity: Option<&Identity>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier(trust)?);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect();
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
                .map_err(|e| format!("the client key: {e}"))?;
            let chain = chain.map_err(|e| format!("the client certificate: {e}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())
        }
    }
}

fn verifier(trust: &Trust) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    let mut listed = Vec::new();
    match trust {
        Trust::Anybody => return Ok(Arc::new(Verifier::Anybody)),
        Trust::System => {
            static SYSTEM: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
            let system = SYSTEM.get_or_init(|| rustls_native_certs::load_native_certs().certs);
            roots.add_parsable_certificates(system.iter().cloned());
        }
        Trust::Bundle(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
                let _one_that_cannot_be_an_anchor = roots.add(certificate.clone());
                listed.push(certificate);
            }
        }
    }
    if roots.is_empty() {
        return match trust {
            Trust::Bundle(_) => {
                Err("unable to load root certificates: no valid certificate in caBundle".into())
            }
            _ => Ok(Arc::new(Verifier::Listed(Listed { inner: None, listed }))),
        };
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| e.to_string())?;
    Ok(Arc::new(Verifier::Listed(Listed { inner: Some(inner), listed })))
}

/// Verifies as usual; a certificate that the bundle itself lists vouches for itself, also when it
/// calls itself a CA, as self-signed ones made by hand do.
#[derive(Debug)]
struct Listed {
    inner: Option<Arc<WebPkiServerVerifier>>,
    listed: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
enum Verifier {
    Listed(Listed),
    /// Believes anybody, but still that they hold the key they show.
    Anybody,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self {
            Self::Anybody => Ok(ServerCertVerified::assertion()),
            Self::Listed(trust) => trust.verify(end_entity, intermediates, name, ocsp, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Listed {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let Some(inner) = &self.inner else { return Err(unknown) };
        let usual = inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        if usual.is_err()
            && self.listed.iter().any(|c| c.as_ref() == end_entity.as_ref())
            && in_its_time(end_entity, now)
        {
            let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
            rustls::client::verify_server_name(&parsed, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        usual
    }
}

fn in_its_time(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    X509Certificate::from_der(certificate.as_ref()).is_ok_and(|(_, c)| {
        let (now, validity) = (now.as_secs() as i64, c.validity());
        validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp()
    })
}

fn verify12(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider().signature_verification_algorithms;
    rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
}

fn verify13(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
}

/// What Go's TLS would have said.
pub(super) fn handshake_text(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(inner) = inner else {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "EOF".into(),
            _ => error.to_string(),
        };
    };
    match inner {
        rustls::Error::InvalidCertificate(why) => {
            let why = match why {
                // An authority's own certificate, which nobody trusts, is among the others.
                CertificateError::UnknownIssuer
                | CertificateError::BadSignature
                | CertificateError::Other(_) => "certificate signed by unknown authority".into(),
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "certificate has expired or is not yet valid".into()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "certificate has expired or is not yet valid".into()
                }
                CertificateError::NotValidForNameContext { expected, presented } => {
                    // `DnsName("a.example.com")`
                    let bare = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
                    let shown: Vec<String> = presented.iter().map(bare).collect();
                    let expected = expected.to_str();
                    format!("certificate is valid for {}, not {expected}", shown.join(", "))
                }
                other => other.to_string(),
            };
            format!("tls: failed to verify certificate: x509: {why}")
        }
        rustls::Error::InvalidMessage(_) => {
            "tls: first record does not look like a TLS handshake".into()
        }
        other => format!("tls: {other}"),
    }
}
