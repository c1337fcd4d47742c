//! Who may ask for, approve and sign which certificates.
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#authorization>

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rimward_api::Status;
use rimward_control_kinds::read::Read;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::admission::{Operation, Review};
use crate::request::{Attributes, Resource};
use crate::server::Inner;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
const MASTERS: &str = "system:masters";

/// What Kubernetes calls the plugin that looks at such a request, if one does.
pub fn plugin(review: &Review<'_>) -> Option<&'static str> {
    if !review.served.is("certificates.k8s.io", "certificatesigningrequests") {
        return None;
    }
    match (review.operation, review.subresource) {
        (Operation::Create, "") => Some("CertificateSubjectRestriction"),
        (Operation::Update, "approval") => Some("CertificateApproval"),
        (Operation::Update, "status") => Some("CertificateSigning"),
        _ => None,
    }
}

/// Looks at a request that [`plugin`] names one for.
pub fn check(server: &Inner, review: &Review<'_>) -> Result<(), Status> {
    match (review.operation, review.subresource) {
        (Operation::Create, "") => subject(review),
        (Operation::Update, "approval") => permitted(server, review, "approve"),
        (Operation::Update, "status") if signs(review) => permitted(server, review, "sign"),
        _ => Ok(()),
    }
}

/// Nobody becomes a master by a certificate that an approver waved through.
fn subject(review: &Review<'_>) -> Result<(), Status> {
    let spec = review.object.at("spec");
    if spec.text("signerName") != CLIENT_SIGNER {
        return Ok(());
    }
    let organizations = organizations(spec.text("request"));
    let Some(organizations) = organizations else {
        return Err(review.forbidden("unable to parse CSR: it is no certificate request in PEM"));
    };
    if organizations.iter().any(|o| o == MASTERS) {
        return Err(review.forbidden(&format!(
            "use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"
        )));
    }
    Ok(())
}

/// The organizations that a request (base64 of PEM) asks for; None when it cannot be read.
fn organizations(request: &str) -> Option<Vec<String>> {
    let pem = BASE64_STANDARD.decode(request).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &csr.certification_request_info.subject;
    let named = subject.iter_organization().filter_map(|o| o.as_str().ok());
    Some(named.map(str::to_owned).collect())
}

/// Whether a write of the status adds or changes what only a signer may: the certificate, or that
/// there will be none.
fn signs(review: &Review<'_>) -> bool {
    let Some(old) = review.old else { return false };
    let certificate = |csr: &Value| csr.deep(&["status", "certificate"]).clone();
    let failed = |csr: &Value| {
        csr.at("status").list("conditions").iter().any(|c| c.text("type") == "Failed")
    };
    certificate(review.object) != certificate(old) || failed(review.object) != failed(old)
}

/// Asks for the verb on the signer itself, and on all of its domain.
fn permitted(server: &Inner, review: &Review<'_>, verb: &str) -> Result<(), Status> {
    let signer = review.old.unwrap_or(review.object).at("spec").text("signerName");
    let domain = signer.split('/').next().unwrap_or_default();
    let asked = |name: String| Attributes {
        verb: verb.into(),
        path: String::new(),
        resource: Some(Resource {
            group: "certificates.k8s.io".into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..Resource::default()
        }),
    };
    let names = [signer.to_owned(), format!("{domain}/*")];
    if names.into_iter().any(|name| server.rbac.allows(review.user, &asked(name))) {
        return Ok(());
    }
    Err(review
        .forbidden(&format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn organizations_of_a_request() {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "me");
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, MASTERS);
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = parameters.serialize_request(&key).expect("a request").pem().expect("PEM");
        assert_eq!(organizations(&BASE64_STANDARD.encode(pem)), Some(vec![MASTERS.to_owned()]));
        assert_eq!(organizations("bm9uc2Vuc2U="), None);
        assert_eq!(organizations("%"), None);
    }
}
