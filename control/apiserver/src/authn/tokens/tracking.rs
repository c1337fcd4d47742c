//! Since when the uses of legacy tokens are written down: a ConfigMap that whoever removes unused ones reads.
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#legacy-serviceaccount-token-tracking-controller>

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use rimward_api::{ObjectKey, Status, UserInfo};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::bootstrap;
use crate::decode::PatchKind;
use crate::options::WriteOptions;
use crate::request::Query;
use crate::rest::find;
use crate::rest::write::{Author, Change};
use crate::server::Inner;

pub const NAMESPACE: &str = "kube-system";
pub const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";
const SINCE: &str = "since";

/// Whoever deletes it is not fought with: it comes back after this.
const AGAIN_AFTER: Duration = Duration::from_secs(30 * 60);
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Keeps the ConfigMap, until the server stops.
pub async fn keep(server: Arc<Inner>) {
    let served = server.registry().resource("", "configmaps").expect("a built-in kind");
    let key = served.key(&ObjectKey::new(NAMESPACE, NAME));
    let mut made: Option<Instant> = None;
    loop {
        // Before the look, so that no change between the two is missed.
        let feed = server.store.watch(&key, server.store.revision());
        let wait = once(&server, &mut made).await.unwrap_or_else(|status| {
            tracing::warn!(%status, "the ConfigMap {NAME} is tried again");
            RETRY_AFTER
        });
        let changed = async {
            match feed {
                Ok(mut feed) => feed.next().await.map(drop),
                Err(e) => Err(e),
            }
        };
        if let Ok(Err(e)) = tokio::time::timeout(wait, changed).await {
            tracing::debug!(error = %e, "the ConfigMap {NAME} is looked at anew");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Makes it what it should be, and answers how long that is good for if nobody changes it.
async fn once(server: &Arc<Inner>, made: &mut Option<Instant>) -> Result<Duration, Status> {
    const LONG: Duration = Duration::from_secs(12 * 3600);
    let served = server.registry().resource("", "configmaps").expect("a built-in kind");
    let key = ObjectKey::new(NAMESPACE, NAME);
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions::parse(&Query::default(), "", "kube-apiserver", false)?;
    let author = Author { user: &user, options: &options };
    let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
    match find(server, &served, &key).await {
        Ok(stored) if is_told(&server.value(&served, &stored)?) => Ok(LONG),
        Ok(_) => {
            let patch = json!({ "data": { SINCE: today } }).to_string().into();
            let change = Change::Patch(PatchKind::Merge, &patch);
            server.update(&served, &key, "", change, &author, &mut Vec::new()).await?;
            Ok(LONG)
        }
        Err(e) if e.is_not_found() => {
            let left = made.map_or(Duration::ZERO, |at| AGAIN_AFTER.saturating_sub(at.elapsed()));
            if !left.is_zero() {
                return Ok(left);
            }
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": NAME, "namespace": NAMESPACE }, "data": { SINCE: today } });
            bootstrap::make(server, &served, &key, &object, &author).await?;
            *made = Some(Instant::now());
            Ok(LONG)
        }
        Err(e) => Err(e),
    }
}

fn is_told(config: &Value) -> bool {
    config["data"][SINCE].as_str().is_some_and(|day| day.parse::<Date>().is_ok())
}
