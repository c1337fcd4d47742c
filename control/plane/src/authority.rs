//! The hands that sign for controllers: what CertificateSigningRequests ask for, with the cluster's CA, and
//! tokens for Secrets to hold, with the API server's key.

use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rimward_api::ObjectKey;
use rimward_control_apiserver::ApiServer;
use rimward_control_controllers::{csr_signing, service_account_token};
use rustls_pki_types::CertificateSigningRequestDer;

/// Clocks of clients lag; certificates start this much before they are made.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(issuer: Issuer<'static, KeyPair>) -> Self {
        Self { issuer }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl csr_signing::Authority for Authority {
    fn sign(
        &self,
        request: &[u8],
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, String> {
        let der = CertificateSigningRequestDer::from(request);
        let mut request =
            CertificateSigningRequestParams::from_der(&der).map_err(|e| e.to_string())?;
        let now = SystemTime::from(now);
        let params = &mut request.params;
        params.not_before = (now - CLOCK_SLACK).into();
        params.not_after = (now + lifetime).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = usages.iter().filter_map(|u| key_usage(u)).collect();
        params.extended_key_usages = usages.iter().filter_map(|u| purpose(u)).collect();
        params.use_authority_key_identifier_extension = true;
        let mut serial = *uuid::Uuid::new_v4().as_bytes();
        // A positive number that fills its bytes.
        serial[0] = (serial[0] & 0x7f) | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        request.signed_by(&self.issuer).map(|c| c.pem()).map_err(|e| e.to_string())
    }
}

fn key_usage(usage: &str) -> Option<KeyUsagePurpose> {
    Some(match usage {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        _ => return None,
    })
}

fn purpose(usage: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match usage {
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        _ => return None,
    })
}

pub struct TokenSigner {
    api: ApiServer,
}

impl TokenSigner {
    pub fn new(api: ApiServer) -> Self {
        Self { api }
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSigner").finish_non_exhaustive()
    }
}

impl service_account_token::Signer for TokenSigner {
    fn sign(&self, account: &ObjectKey, uid: &str, secret: &str) -> Result<String, String> {
        self.api.legacy_token(account, uid, secret)
    }
}
