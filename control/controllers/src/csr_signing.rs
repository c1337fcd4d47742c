//! Signs approved CertificateSigningRequests, for the signers whose rules Kubernetes documents:
//! clients of the API server, nodes as clients, nodes as servers.
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers>
//!
//! A request that does not follow its signer's rules is marked Failed; `legacy-unknown` promises nothing
//! and is not signed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};

pub const NAME: &str = "certificatesigningrequest-signing-controller";
pub const IDENTITY: &str = "certificate-controller";

pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";

const LIFETIME_MAX: Duration = Duration::from_secs(365 * 86_400);
const LIFETIME_MIN: Duration = Duration::from_secs(600);

/// Who holds the CA's key.
pub trait Authority: std::fmt::Debug + Send + Sync + 'static {
    /// Signs a PKCS #10 request (DER) as it is, for the usages as the API names them; answers PEM.
    ///
    /// # Errors
    /// Says what is wrong with the request.
    fn sign(
        &self,
        request: &[u8],
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<String, String>;
}

struct Signer {
    client: Client,
    requests: Cache<CertificateSigningRequest>,
    authority: Arc<dyn Authority>,
}

pub fn start(context: &Context) {
    let Some(authority) = context.config.authority.clone() else {
        tracing::warn!("no certificate authority is configured: requests are not signed");
        return;
    };
    let keys = Keys::default();
    let requests = context.informers.of::<CertificateSigningRequest>();
    enqueue_changes(&requests, &keys);
    let caches = vec![synced(&requests)];
    let signer = Signer { client: context.client.clone(), requests, authority };
    context.run(Arc::new(signer), keys, 2, caches);
}

/// What of a PKCS #10 request the signers' rules are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub der: Vec<u8>,
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: usize,
    pub addresses: usize,
    /// E-mail addresses and URIs.
    pub other_names: usize,
}

/// Reads the request.
///
/// # Errors
/// Says what it is not.
pub fn readable(request: &CertificateSigningRequest) -> Result<Asked, String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(&request.spec.request.0)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    let (_, parsed) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    let first = subject.iter_common_name().next().and_then(|n| n.as_str().ok());
    let mut asked = Asked {
        common_name: first.unwrap_or_default().to_owned(),
        organizations: subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect(),
        ..Asked::default()
    };
    for extension in parsed.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(_) => asked.dns_names += 1,
                GeneralName::IPAddress(_) => asked.addresses += 1,
                _ => asked.other_names += 1,
            }
        }
    }
    asked.der = block.contents;
    Ok(asked)
}

pub fn has_condition(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.as_ref().and_then(|s| s.conditions.as_deref());
    conditions.unwrap_or_default().iter().any(|c| c.type_ == kind)
}

fn usages(request: &CertificateSigningRequest) -> Vec<&str> {
    request.spec.usages.iter().flatten().map(String::as_str).collect()
}

/// Exactly `needed`, and `key encipherment` if it likes.
fn uses_exactly(request: &CertificateSigningRequest, needed: [&str; 2]) -> bool {
    let mut usages: Vec<&str> = usages(request);
    usages.retain(|u| *u != "key encipherment");
    usages.sort_unstable();
    usages == needed
}

fn node_errors(asked: &Asked, wrong: &mut Vec<&'static str>) {
    if asked.organizations != ["system:nodes"] {
        wrong.push("subject organization is not system:nodes");
    }
    if asked.common_name.strip_prefix("system:node:").is_none_or(str::is_empty) {
        wrong.push("subject common name does not begin with system:node:");
    }
}

/// What is wrong with a node's request for a client certificate.
pub fn node_client_errors(asked: &Asked, request: &CertificateSigningRequest) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    node_errors(asked, &mut wrong);
    if asked.dns_names + asked.addresses + asked.other_names > 0 {
        wrong.push("DNS, IP, e-mail and URI subjectAltNames are not allowed");
    }
    if !uses_exactly(request, ["client auth", "digital signature"]) {
        wrong.push("usages did not match key encipherment, digital signature, client auth");
    }
    wrong
}

fn node_serving_errors(asked: &Asked, request: &CertificateSigningRequest) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    node_errors(asked, &mut wrong);
    if asked.dns_names + asked.addresses == 0 {
        wrong.push("at least one DNS or IP subjectAltName is required");
    }
    if asked.other_names > 0 {
        wrong.push("e-mail and URI subjectAltNames are not allowed");
    }
    if !uses_exactly(request, ["digital signature", "server auth"]) {
        wrong.push("usages did not match key encipherment, digital signature, server auth");
    }
    wrong
}

fn api_client_errors(request: &CertificateSigningRequest) -> Vec<&'static str> {
    let usages = usages(request);
    let allowed = ["client auth", "digital signature", "key encipherment"];
    match usages.contains(&"client auth") && usages.iter().all(|u| allowed.contains(u)) {
        true => Vec::new(),
        false => vec![
            "usages must include client auth, and no other than digital signature and key encipherment",
        ],
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    Sign { der: Vec<u8>, lifetime: Duration },
    Fail(String),
}

/// Decides; touches nothing.
pub fn plan(request: &CertificateSigningRequest) -> Plan {
    let over = ["Denied", "Failed"].iter().any(|c| has_condition(request, c));
    let issued = request.status.as_ref().is_some_and(|s| s.certificate.is_some());
    if over || issued || !has_condition(request, "Approved") {
        return Plan::Nothing;
    }
    let signer = request.spec.signer_name.as_str();
    if ![API_CLIENT, NODE_CLIENT, NODE_SERVING].contains(&signer) {
        return Plan::Nothing;
    }
    let asked = match readable(request) {
        Ok(asked) => asked,
        Err(why) => return Plan::Fail(why),
    };
    let wrong = match signer {
        API_CLIENT => api_client_errors(request),
        NODE_CLIENT => node_client_errors(&asked, request),
        _ => node_serving_errors(&asked, request),
    };
    if !wrong.is_empty() {
        return Plan::Fail(wrong.join("; "));
    }
    let asked_for = request.spec.expiration_seconds.map(|s| Duration::from_secs(s.max(0) as u64));
    let lifetime = asked_for.unwrap_or(LIFETIME_MAX).clamp(LIFETIME_MIN, LIFETIME_MAX);
    Plan::Sign { der: asked.der, lifetime }
}

impl Signer {
    async fn fail(&self, request: &CertificateSigningRequest, why: String) -> Result<(), Error> {
        let mut failed = request.clone();
        let conditions = failed.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.push(CertificateSigningRequestCondition {
            type_: "Failed".into(),
            status: "True".into(),
            reason: Some("SignerValidationFailure".into()),
            message: Some(why),
            ..CertificateSigningRequestCondition::default()
        });
        self.client.update_status(&failed).await.map(|_| ())
    }
}

#[async_trait]
impl Controller for Signer {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(request) = self.requests.get_key(key) else { return Ok(Next::Change) };
        match plan(&request) {
            Plan::Nothing => {}
            Plan::Fail(why) => self.fail(&request, why).await?,
            Plan::Sign { der, lifetime } => {
                let usages = request.spec.usages.clone().unwrap_or_default();
                match self.authority.sign(&der, &usages, lifetime, Timestamp::now()) {
                    Err(why) => self.fail(&request, why).await?,
                    Ok(pem) => {
                        let mut signed = (*request).clone();
                        let status = signed.status.get_or_insert_default();
                        status.certificate = Some(ByteString(pem.into_bytes()));
                        self.client.update_status(&signed).await?;
                    }
                }
            }
        }
        Ok(Next::Change)
    }
}
