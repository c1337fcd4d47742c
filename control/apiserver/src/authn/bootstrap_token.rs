//! Bootstrap tokens: short secrets by which a machine that the cluster does not know yet says hello.
//! <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rimward_api::UserInfo;
use serde_json::Value;

use crate::server::Inner;
use crate::views::Stored;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;

/// The two parts of a token, if it has the form of one.
pub fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == ID_LEN && secret.len() == SECRET_LEN && plain(id) && plain(secret))
        .then_some((id, secret))
}

/// The user of a bootstrap token; None if there is no such token, or it is no longer good.
pub async fn authenticate(
    server: &Inner,
    (id, secret): (&str, &str),
) -> Result<Option<UserInfo>, rimward_control_store::Error> {
    let key = format!("{}kube-system/bootstrap-token-{id}", server.secrets_prefix);
    let Some(entry) = server.store.get(&key, None).await? else { return Ok(None) };
    let Ok(stored) = Stored::open(&entry) else { return Ok(None) };
    let object: Option<Value> = serde_json::from_slice(stored.record.body()).ok();
    Ok(object.and_then(|object| user(&object, id, secret, Timestamp::now())))
}

/// Decides, from the Secret alone.
fn user(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    if object["type"] != TYPE || object["metadata"].get("deletionTimestamp").is_some() {
        return None;
    }
    let data = |field: &str| {
        let text = object["data"].get(field)?.as_str()?;
        String::from_utf8(STANDARD.decode(text).ok()?).ok()
    };
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(
        data("token-secret")?.as_bytes(),
        secret.as_bytes(),
    );
    if same.is_err() || data("token-id")? != id {
        return None;
    }
    if data("usage-bootstrap-authentication")? != "true" {
        return None;
    }
    // A time that cannot be read is one that is over.
    if let Some(ends) = data("expiration")
        && ends.parse::<Timestamp>().map_or(true, |ends| ends <= now)
    {
        return None;
    }
    let more = data("auth-extra-groups").unwrap_or_default();
    let mut groups = vec![GROUP];
    for group in more.split(',').filter(|_| !more.is_empty()) {
        if !is_extra_group(group) {
            return None;
        }
        groups.push(group);
    }
    Some(UserInfo::authenticated(format!("system:bootstrap:{id}"), &groups))
}

/// `system:bootstrappers:` and up to 256 of `a-z`, `0-9`, `:`, `-`, the last not a mark.
fn is_extra_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|b| word(b) || b == b':' || b == b'-')
        && rest.bytes().next_back().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forms() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for wrong in ["abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "a.b", "", "abcdef"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn who_a_token_is() {
        let secret = |change: &dyn Fn(&mut Value)| {
            let b64 = |t: &str| STANDARD.encode(t);
            let mut object = json!({ "type": TYPE, "metadata": {}, "data": {
                "token-id": b64("abcdef"), "token-secret": b64("0123456789abcdef"),
                "usage-bootstrap-authentication": b64("true"),
                "expiration": b64("2030-01-01T00:00:00Z"),
                "auth-extra-groups": b64("system:bootstrappers:nodes"),
            } });
            change(&mut object);
            let now = "2026-01-01T00:00:00Z".parse().expect("a time");
            user(&object, "abcdef", "0123456789abcdef", now)
        };
        let good = secret(&|_| {}).expect("is good");
        assert_eq!(good.name, "system:bootstrap:abcdef");
        let groups = ["system:bootstrappers", "system:bootstrappers:nodes", "system:authenticated"];
        assert_eq!(good.groups, groups);
        let set = |field: &'static str, text: &'static str| {
            move |o: &mut Value| o["data"][field] = STANDARD.encode(text).into()
        };
        assert!(secret(&set("expiration", "2020-01-01T00:00:00Z")).is_none());
        assert!(secret(&set("expiration", "soon")).is_none());
        assert!(secret(&set("token-secret", "0123456789abcdeg")).is_none());
        assert!(secret(&set("usage-bootstrap-authentication", "yes")).is_none());
        assert!(secret(&set("auth-extra-groups", "system:masters")).is_none());
        assert!(secret(&|o| o["type"] = "Opaque".into()).is_none());
        assert!(secret(&|o| o["metadata"]["deletionTimestamp"] = "x".into()).is_none());
    }
}
