//! Approves the requests of nodes for their own client certificates, if they may have them: whoever may
//! `create` `certificatesigningrequests/nodeclient` (a bootstrap token's bearer) or
//! `…/selfnodeclient` (the node itself, renewing).

use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use rimward_api::ObjectKey;
use rimward_client::{Cache, Client, Error};
use serde_json::{Value, json};

use crate::csr_signing::{NODE_CLIENT, has_condition, node_client_errors, readable};
use crate::driver::{Context, Controller, Keys, Next, enqueue_changes, synced};

pub const NAME: &str = "certificatesigningrequest-approving-controller";

struct Approver {
    client: Client,
    requests: Cache<CertificateSigningRequest>,
}

pub fn start(context: &Context) {
    let keys = Keys::default();
    let requests = context.informers.of::<CertificateSigningRequest>();
    enqueue_changes(&requests, &keys);
    let caches = vec![synced(&requests)];
    let approver = Approver { client: context.client.clone(), requests };
    context.run(Arc::new(approver), keys, 1, caches);
}

/// The permissions of which one suffices, with the message of the approval. Empty for requests that
/// are nobody's to approve by rule. Pure.
pub fn plan(request: &CertificateSigningRequest) -> Vec<(&'static str, &'static str)> {
    let decided = ["Approved", "Denied"].iter().any(|c| has_condition(request, c));
    let issued = request.status.as_ref().is_some_and(|s| s.certificate.is_some());
    if decided || issued || request.spec.signer_name != NODE_CLIENT {
        return Vec::new();
    }
    let Ok(asked) = readable(request) else { return Vec::new() };
    if !node_client_errors(&asked, request).is_empty() {
        return Vec::new();
    }
    let mut ways = vec![(
        "nodeclient",
        "Auto approving kubelet client certificate after SubjectAccessReview.",
    )];
    if request.spec.username.as_deref() == Some(asked.common_name.as_str()) {
        ways.insert(
            0,
            (
                "selfnodeclient",
                "Auto approving self kubelet client certificate after SubjectAccessReview.",
            ),
        );
    }
    ways
}

impl Approver {
    async fn may(
        &self,
        request: &CertificateSigningRequest,
        subresource: &str,
    ) -> Result<bool, Error> {
        let spec = &request.spec;
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "resource": "certificatesigningrequests",
                    "verb": "create", "subresource": subresource, "version": "*",
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer: Value = self.client.call(Method::POST, path, Some(&review)).await?;
        Ok(answer["status"]["allowed"] == true)
    }
}

#[async_trait]
impl Controller for Approver {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(request) = self.requests.get_key(key) else { return Ok(Next::Change) };
        for (subresource, message) in plan(&request) {
            if !self.may(&request, subresource).await? {
                continue;
            }
            let mut approved = (*request).clone();
            let status = approved.status.get_or_insert_default();
            status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Approved".into(),
                status: "True".into(),
                reason: Some("AutoApproved".into()),
                message: Some(message.into()),
                ..CertificateSigningRequestCondition::default()
            });
            self.client.update_subresource(&approved, "approval").await?;
            break;
        }
        Ok(Next::Change)
    }
}
