//! The user of a client certificate: its common name, in the groups of its organizations.
//!
//! The TLS layer has verified the certificate against the cluster's CA; here it is only read.

use rimward_api::UserInfo;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// None when the certificate names nobody.
pub fn user(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    (!name.is_empty()).then(|| UserInfo::authenticated(name, &groups))
}
