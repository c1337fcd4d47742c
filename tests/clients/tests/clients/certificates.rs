//! Certificates for kubelets: approved by rule, signed by the cluster's CA.

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::cluster::{Cluster, in_time};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";

fn request(
    name: &str,
    signer: &str,
    node: &str,
    names: &[&str],
    usage: &str,
) -> CertificateSigningRequest {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind)
}

async fn bind(client: &Client, name: &str, group: &str, role: &str) {
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group }],
    });
    let binding = serde_json::from_value(binding).unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.create(&PostParams::default(), &binding).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelets_are_given_certificates() {
    let cluster = Cluster::start();
    let admin = cluster.admin().await;
    let requests: Api<CertificateSigningRequest> = Api::all(admin.clone());
    // As kubeadm binds them.
    let role = |of: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{of}");
    bind(&admin, "bootstrap", "system:bootstrappers", "system:node-bootstrapper").await;
    bind(&admin, "autoapprove", "system:bootstrappers", &role("nodeclient")).await;
    bind(&admin, "rotation", "system:nodes", &role("selfnodeclient")).await;
    bind(&admin, "nodes-ask", "system:nodes", "system:node-bootstrapper").await;
    let asking = async |user: &str, group: &str, request: CertificateSigningRequest| {
        let requests: Api<CertificateSigningRequest> =
            Api::all(cluster.acting_as(user, group).await);
        requests.create(&PostParams::default(), &request).await.unwrap();
    };
    let bootstrapper = async |request| {
        asking("system:bootstrap:abcdef", "system:bootstrappers", request).await;
    };
    let node = async |request| asking("system:node:n1", "system:nodes", request).await;
    let decided = async |name: &str, kind: &'static str| {
        let is = move |r: Option<&CertificateSigningRequest>| {
            r.is_some_and(|r| condition(r, kind).is_some())
        };
        in_time(&format!("{name} is {kind}"), await_condition(requests.clone(), name, is))
            .await
            .unwrap()
            .unwrap()
    };
    let issued = async |name: &str| {
        let is = |r: Option<&CertificateSigningRequest>| {
            r.is_some_and(|r| r.status.as_ref().is_some_and(|s| s.certificate.is_some()))
        };
        let wait = await_condition(requests.clone(), name, is);
        let signed = in_time(&format!("{name} is signed"), wait).await.unwrap().unwrap();
        let pem = signed.status.unwrap().certificate.unwrap().0;
        x509_parser::pem::parse_x509_pem(&pem).unwrap().1.contents
    };

    // A machine that says hello with a bootstrap token, then the node itself.
    bootstrapper(request("first", CLIENT, "n1", &[], "client auth")).await;
    let first = decided("first", "Approved").await;
    let why = condition(&first, "Approved").unwrap().message.clone().unwrap();
    assert_eq!(why, "Auto approving kubelet client certificate after SubjectAccessReview.");
    let der = issued("first").await;
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let name = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap();
    assert_eq!(name, "system:node:n1");
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    assert!(!certificate.is_ca());
    node(request("renewed", CLIENT, "n1", &[], "client auth")).await;
    let renewed = decided("renewed", "Approved").await;
    let why = condition(&renewed, "Approved").unwrap().message.clone().unwrap();
    assert_eq!(why, "Auto approving self kubelet client certificate after SubjectAccessReview.");
    issued("renewed").await;

    // For another node it may not ask; a serving certificate nobody approves by rule.
    node(request("other", CLIENT, "n2", &[], "client auth")).await;
    let serving = request("serving", SERVING, "n1", &["n1", "10.0.0.1"], "server auth");
    node(serving).await;
    bootstrapper(request("last", CLIENT, "n3", &[], "client auth")).await;
    issued("last").await;
    for name in ["other", "serving"] {
        let waiting = requests.get(name).await.unwrap();
        assert!(condition(&waiting, "Approved").is_none(), "{name}: {:?}", waiting.status);
    }
    let approve = async |name: &str| {
        let condition = json!({ "type": "Approved", "status": "True", "reason": "Test" });
        let patch = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
        let params = PatchParams::default();
        requests.patch_subresource("approval", name, &params, &patch).await.unwrap();
    };
    approve("serving").await;
    let der = issued("serving").await;
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    let names = certificate.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names.len(), 2);

    // What does not follow its signer's rules fails, whoever approved it.
    node(request("nameless", SERVING, "n1", &[], "server auth")).await;
    approve("nameless").await;
    let failed = decided("nameless", "Failed").await;
    let why = condition(&failed, "Failed").unwrap();
    assert_eq!(why.reason.as_deref(), Some("SignerValidationFailure"));
    assert!(why.message.as_deref().unwrap().contains("at least one DNS or IP"), "{why:?}");
    assert!(failed.status.unwrap().certificate.is_none());
    drop(cluster);
}
