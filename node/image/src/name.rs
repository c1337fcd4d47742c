//! Image names: `[host[:port]/]repository[:tag][@digest]`.

use oci_client::Reference;
use rimward_node_pod::outside::ImageError;

/// The name in full, as every container tool reads it: `busybox` is `docker.io/library/busybox:latest`. None
/// for what is no name.
pub(crate) fn canonical(text: &str) -> Option<String> {
    text.parse::<Reference>().ok().map(|reference| reference.whole())
}

/// `host/repository` of a name, as every container tool reads it. Empty for what is no name.
pub(crate) fn repository(text: &str) -> String {
    text.parse::<Reference>().map(|reference| repository_of(&reference)).unwrap_or_default()
}

fn repository_of(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// A parsed name, and where it points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub reference: Reference,
    /// Set when the cluster's registry should be asked: the repository there.
    pub in_cluster: Option<String>,
    /// Whether the name itself has a host; without one the cluster's registry comes first.
    pub has_host: bool,
}

impl Name {
    /// Parses a name; `cluster_hosts` are the hosts (`name:port`) under which the cluster's own
    /// registry is known.
    pub fn parse(text: &str, cluster_hosts: &[String]) -> Result<Self, ImageError> {
        let invalid = |why: String| ImageError {
            reason: "InvalidImageName".into(),
            message: format!(
                "Failed to apply default image tag {text:?}: couldn't parse image name {text:?}: {why}"
            ),
        };
        let reference: Reference = text.parse().map_err(|e| invalid(format!("{e}")))?;
        let first = text.split('/').next().unwrap_or_default();
        // The rule that every container tool applies: a host has a dot, a port, or is localhost.
        let has_host = text.contains('/')
            && (first.contains('.') || first.contains(':') || first == "localhost");
        let in_cluster = if !has_host {
            let end = text.find('@').unwrap_or(text.len());
            let bare = &text[..end];
            let tag_at = bare.rfind(':').unwrap_or(bare.len());
            Some(bare[..tag_at].to_owned())
        } else if cluster_hosts.iter().any(|host| host == first) {
            Some(reference.repository().to_owned())
        } else {
            None
        };
        Ok(Self { reference, in_cluster, has_host })
    }

    /// The digest if the name pins one, else the tag, else `latest`.
    pub fn version(&self) -> &str {
        self.reference.digest().or(self.reference.tag()).unwrap_or("latest")
    }

    /// `host/repository`.
    pub fn repository(&self) -> String {
        repository_of(&self.reference)
    }

    /// What `imageID` shows: the repository and the digest that was found.
    pub fn id(&self, digest: &str) -> String {
        match (&self.in_cluster, self.has_host) {
            (Some(repository), false) => format!("{repository}@{digest}"),
            _ => format!("{}@{digest}", self.repository()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("team/app:v1", "docker.io/team/app:v1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(full), "{text}");
        }
        assert_eq!(canonical("a b"), None);
    }

    #[test]
    fn names() {
        #[track_caller]
        fn check(text: &str, in_cluster: Option<&str>, version: &str) {
            let name = Name::parse(text, &["localhost:6443".into()]).expect("parses");
            assert_eq!(name.in_cluster.as_deref(), in_cluster, "{text}");
            assert_eq!(name.version(), version, "{text}");
        }
        check("hello", Some("hello"), "latest");
        check("hello:v1", Some("hello"), "v1");
        check("team/hello:v1", Some("team/hello"), "v1");
        check("localhost:6443/hello:v1", Some("hello"), "v1");
        check("example.com/hello:v1", None, "v1");
        let digest = format!("sha256:{}", "0".repeat(64));
        check(&format!("hello@{digest}"), Some("hello"), &digest);
        for wrong in ["", "Hello", "a b", "hello:", "hello@sha256:1", "/x", "http://x/y"] {
            let error = Name::parse(wrong, &[]).expect_err(wrong);
            assert_eq!(error.reason, "InvalidImageName");
        }
    }
}
