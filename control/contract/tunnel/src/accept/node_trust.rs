//! What makes the control plane believe a node, and the certificate that it shows itself.

use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::Holder;
use crate::quic::provider;
use crate::signer::{NODE_CERTIFICATE_LIFETIME, Signer, SignerError};

pub(super) fn server_config(signer: Arc<Signer>) -> Result<ServerConfig, SignerError> {
    let ca_error = |cause: String| SignerError::Ca { what: "certificate", cause };
    let mut roots = RootCertStore::empty();
    roots.add(signer.ca().clone()).map_err(|e| ca_error(e.to_string()))?;
    // A joining node has no certificate yet; the ALPN decides later who needs one.
    let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| ca_error(e.to_string()))?;
    let own = OwnCertificate::new(signer)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(NamedRefusals { webpki }))
        .with_cert_resolver(Arc::new(own));
    config.alpn_protocols =
        [crate::ALPN_CONTROL, crate::ALPN_NET, crate::ALPN_JOIN].map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// webpki's rules; a refusal says in the log whose certificate it was.
#[derive(Debug)]
struct NamedRefusals {
    webpki: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for NamedRefusals {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.webpki.verify_client_cert(end_entity, intermediates, now).inspect_err(|cause| {
            // Unverified, hence only good for a log line.
            match Holder::of(end_entity) {
                Some(holder) => tracing::warn!(
                    node = holder.node, not_after = %holder.not_after, %cause,
                    "refused a node's certificate"
                ),
                None => tracing::warn!(%cause, "refused a client certificate on the tunnel"),
            }
        })
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }
}

/// The control plane's tunnel certificate: made at start, made anew when two thirds of its lifetime
/// are over, so that a control plane that runs for years needs no restart.
struct OwnCertificate {
    signer: Arc<Signer>,
    current: Mutex<(Arc<CertifiedKey>, Timestamp)>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnCertificate")
    }
}

impl OwnCertificate {
    fn new(signer: Arc<Signer>) -> Result<Self, SignerError> {
        let current = Mutex::new(Self::make(&signer)?);
        Ok(Self { signer, current })
    }

    fn make(signer: &Signer) -> Result<(Arc<CertifiedKey>, Timestamp), SignerError> {
        let now = Timestamp::now();
        let (chain, key) = signer.server_certificate(now)?;
        let key = provider()
            .key_provider
            .load_private_key(key)
            .map_err(|e| SignerError::Signing(e.to_string()))?;
        let renew_at = now
            .checked_add(NODE_CERTIFICATE_LIFETIME.mul_f64(2.0 / 3.0))
            .expect("a year from now is a time");
        Ok((Arc::new(CertifiedKey::new(chain, key)), renew_at))
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock();
        if Timestamp::now() >= current.1 {
            match Self::make(&self.signer) {
                Ok(fresh) => *current = fresh,
                Err(cause) => tracing::error!(%cause, "cannot renew the tunnel's own certificate"),
            }
        }
        Some(current.0.clone())
    }
}
