//! The headers that ask to act as somebody else.

use http::HeaderMap;
use rimward_api::Status;

use super::Wanted;

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

impl Wanted {
    /// None when nothing is asked for; only with a name may there be more.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values.filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
        };
        let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
        let mut wanted =
            Self { name: first(USER), uid: first(UID), groups: all(GROUP), ..Self::default() };
        for key in headers.keys() {
            if let Some(extra) = key.as_str().strip_prefix(EXTRA) {
                wanted.extra.entry(unescaped(extra)).or_default().extend(all(key.as_str()));
            }
        }
        match (wanted.name.is_empty(), wanted.is_only_a_name()) {
            (false, _) => Ok(Some(wanted)),
            (true, true) => Ok(None),
            (true, false) => Err(Status::bad_request(format!(
                "requested {} without impersonating a user name",
                wanted.shown()
            ))),
        }
    }

    /// As Kubernetes prints what was asked for.
    fn shown(&self) -> String {
        let list = |items: &[String]| -> String {
            let quoted: Vec<String> = items.iter().map(|i| format!("{i:?}")).collect();
            quoted.join(", ")
        };
        let groups = match self.groups.is_empty() {
            true => "[]string(nil)".to_owned(),
            false => format!("[]string{{{}}}", list(&self.groups)),
        };
        let extra = match self.extra.is_empty() {
            true => "map[string][]string(nil)".to_owned(),
            false => {
                let pairs = self.extra.iter();
                let pairs: Vec<String> =
                    pairs.map(|(k, v)| format!("{k:?}:[]string{{{}}}", list(v))).collect();
                format!("map[string][]string{{{}}}", pairs.join(", "))
            }
        };
        format!(
            "&user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{groups}, Extra:{extra}}}",
            self.uid
        )
    }
}

/// Header names cannot carry every key: clients percent-encode it.
fn unescaped(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match code.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_keys() {
        assert_eq!(unescaped("example.com%2fscopes"), "example.com/scopes");
        assert_eq!(unescaped("100%"), "100%");
        assert_eq!(unescaped("%ff"), "%ff");
    }

    #[test]
    fn a_name_comes_first() {
        let mut headers = HeaderMap::new();
        assert_eq!(Wanted::of(&headers).expect("nothing is asked for"), None);
        headers.insert(GROUP, http::HeaderValue::from_static("dev"));
        let refused = Wanted::of(&headers).expect_err("no name");
        assert_eq!(
            refused.message,
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"dev\"}, Extra:map[string][]string(nil)} without impersonating a user name"
        );
    }
}
