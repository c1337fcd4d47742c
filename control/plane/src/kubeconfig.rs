//! The admin's kubeconfig: self-contained, owner-readable.
//! <https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::pki::Identity;

/// The file's text, for a server at `https://<address>`.
pub fn kubeconfig(address: &str, ca_pem: &str, admin: &Identity) -> String {
    let (ca, cert, key) = (
        STANDARD.encode(ca_pem),
        STANDARD.encode(&admin.cert_pem),
        STANDARD.encode(&admin.key_pem),
    );
    format!(
        "apiVersion: v1
kind: Config
current-context: rimward
clusters:
- name: rimward
  cluster:
    server: https://{address}
    certificate-authority-data: {ca}
contexts:
- name: rimward
  context:
    cluster: rimward
    user: rimward-admin
users:
- name: rimward-admin
  user:
    client-certificate-data: {cert}
    client-key-data: {key}
"
    )
}
