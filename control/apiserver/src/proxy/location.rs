//! What a proxied request's path says: whom it is for, and what is behind the proxy's own path.

use rimward_api::Status;

use crate::request::Call;

/// `[scheme:]name[:port]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id<'a> {
    pub https: bool,
    pub name: &'a str,
    /// Empty: not said.
    pub port: &'a str,
}

impl<'a> Id<'a> {
    /// # Errors
    /// When it is something else.
    pub fn parse(kind: &str, id: &'a str) -> Result<Self, Status> {
        let words: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match words.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => ("?", "", ""),
        };
        if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
            return Err(Status::bad_request(format!("invalid {kind} request {id:?}")));
        }
        Ok(Self { https: scheme == "https", name, port })
    }
}

/// A path, cut behind `proxy`. Both parts are as they came, percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `/api/v1/namespaces/n/pods/p/proxy`
    pub prefix: String,
    /// Empty, or begins with a slash.
    pub rest: String,
}

impl Place {
    pub fn of(call: &Call, namespaced: bool) -> Self {
        Self::cut(&call.attributes.path, if namespaced { 7 } else { 5 })
    }

    fn cut(path: &str, segments: usize) -> Self {
        let mut left = segments;
        let mut inside = false;
        for (at, byte) in path.bytes().enumerate() {
            match (byte, inside) {
                (b'/', true) => {
                    inside = false;
                    left -= 1;
                    if left == 0 {
                        return Self { prefix: path[..at].into(), rest: path[at..].into() };
                    }
                }
                (b'/', false) => {}
                _ => inside = true,
            }
        }
        Self { prefix: path.into(), rest: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = |text| Id::parse("pod", text).map_err(|s| s.message);
        assert_eq!(id("web"), Ok(Id { https: false, name: "web", port: "" }));
        assert_eq!(id("web:80"), Ok(Id { https: false, name: "web", port: "80" }));
        assert_eq!(id("https:web:443"), Ok(Id { https: true, name: "web", port: "443" }));
        assert_eq!(id("http:web:"), Ok(Id { https: false, name: "web", port: "" }));
        for bad in ["", ":80", "ftp:web:21", "a:b:c:d"] {
            assert_eq!(id(bad), Err(format!("invalid pod request {bad:?}")));
        }
    }

    #[test]
    fn paths() {
        let cut = |path: &str| {
            let place = Place::cut(path, 7);
            (place.prefix, place.rest)
        };
        let prefix = "/api/v1/namespaces/n/pods/p/proxy";
        for rest in ["", "/", "/a%20b/c/", "//x"] {
            assert_eq!(cut(&format!("{prefix}{rest}")), (prefix.to_owned(), rest.to_owned()));
        }
        assert_eq!(cut("/api//v1/namespaces/n/pods/p/proxy/x").1, "/x");
    }
}
