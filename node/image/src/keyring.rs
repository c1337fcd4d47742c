//! Which of a pod's credentials fit an image, and in which order they are tried: the kubelet's keyring.
//! <https://kubernetes.io/docs/concepts/containers/images/#config-json>

use rimward_node_pod::outside::RegistryAuth;

/// Where credentials of the container world's default registry are kept.
const DEFAULT_KEY: &str = "index.docker.io";

/// Those that fit an image, given as `host[:port]/repository`: the longer path first, of equal ones in the order
/// of the secrets.
pub(crate) fn lookup<'a>(image: &str, auths: &'a [RegistryAuth]) -> Vec<&'a RegistryAuth> {
    let mut keyed: Vec<(String, &RegistryAuth)> =
        auths.iter().filter_map(|auth| Some((key(&auth.registry)?, auth))).collect();
    keyed.sort_by(|(a, _), (b, _)| b.cmp(a));
    let fitting: Vec<_> =
        keyed.iter().filter(|(key, _)| fits(key, image)).map(|(_, auth)| *auth).collect();
    if !fitting.is_empty() || !image.starts_with("docker.io/") {
        return fitting;
    }
    keyed.iter().filter(|(key, _)| key == DEFAULT_KEY).map(|(_, auth)| *auth).collect()
}

/// `host[:port][/path]` of what a secret says, which may be a URL. `/v1/` and `/v2/` are no paths of images.
fn key(registry: &str) -> Option<String> {
    let bare = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://"));
    let bare = bare.unwrap_or(registry).split(['?', '#']).next()?;
    let (host, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    let path = match path.starts_with("/v1/") || path.starts_with("/v2/") {
        true => &path[3..],
        false => path,
    };
    let path = if path == "/" { "" } else { path };
    Some(format!("{host}{path}"))
}

fn fits(key: &str, image: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        (host.to_owned(), path.to_owned())
    };
    let ((pattern, prefix), (host, path)) = (split(key), split(image));
    let ((pattern, port), (host, host_port)) = (split_port(&pattern), split_port(&host));
    let (patterns, labels) = (pattern.split('.'), host.split('.'));
    port == host_port
        && path.starts_with(&prefix)
        && patterns.clone().count() == labels.clone().count()
        && patterns.zip(labels).all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

/// An address of IPv6 has colons of its own, within brackets.
fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => {
            let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
            (bare.unwrap_or(name), port)
        }
        _ => (host, ""),
    }
}

/// `*` is any number of characters, `[a-z]` one of these, `[^a-z]` one of all others. Goes back to the last star
/// only, so it takes at most the product of both lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if t == text.len() {
            return pattern[p..].iter().all(|byte| *byte == b'*');
        }
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'[') => class(&pattern[p..], text[t]),
            Some(byte) => (*byte == text[t]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(step), _) => (p, t) = (p + step, t + 1),
            (None, Some((after, at))) => {
                star = Some((after, at + 1));
                (p, t) = (after, at + 1);
            }
            (None, None) => return false,
        }
    }
}

/// How long the class at the beginning of a pattern is, if the byte is in it.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().skip(2).position(|b| *b == b']')? + 2;
    let (negated, mut rest) = match &pattern[1..end] {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    loop {
        match rest {
            [] => return (found != negated).then_some(end + 1),
            [from, b'-', to, more @ ..] => {
                found |= (*from..=*to).contains(&byte);
                rest = more;
            }
            [one, more @ ..] => {
                found |= *one == byte;
                rest = more;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_fit_images() {
        #[track_caller]
        fn check(registry: &str, image: &str, expected: bool) {
            let auth = RegistryAuth { registry: registry.into(), ..RegistryAuth::default() };
            let auths = [auth];
            assert_eq!(!lookup(image, &auths).is_empty(), expected, "{registry} for {image}");
        }
        check("r.example", "r.example/a", true);
        check("https://r.example/v1/", "r.example/a", true);
        check("http://r.example/v2/team", "r.example/team/a", true);
        check("r.example", "s.example/a", false);
        check("*.example", "r.example/a", true);
        check("*.example", "a.r.example/a", false);
        check("*.*.example", "a.r.example/a", true);
        check("r-*.example", "r-eu.example/a", true);
        check("*-eu*.example", "r-us-eu-1.example/a", true);
        check("*-us.example", "r-eu.example/a", false);
        check("r[0-9].example", "r7.example/a", true);
        check("r[^0-9].example", "r7.example/a", false);
        check("r[0-9.example", "r7.example/a", false);
        check("r.example:5000", "r.example:5000/a", true);
        check("r.example", "r.example:5000/a", false);
        check("*.example:5000", "r.example:5000/a", true);
        check("[::1]:5000", "[::1]:5000/a", true);
        check("*", "r.example/a", false);
        check("r.example/team", "r.example/team/a", true);
        check("r.example/team", "r.example/teams", true);
        check("r.example/team/", "r.example/teams", false);
        check("*.example/team", "r.example/other/a", false);
        check("docker.io", "docker.io/library/a", true);
        check("https://index.docker.io/v1/", "docker.io/library/a", true);
        check("https://index.docker.io/v1/", "r.example/a", false);
        check("", "r.example/a", false);
    }

    #[test]
    fn the_longer_path_is_tried_first() {
        let auth = |registry: &str, user: &str| RegistryAuth {
            registry: registry.into(),
            username: user.into(),
            ..RegistryAuth::default()
        };
        let auths = [
            auth("r.example", "first"),
            auth("*.example", "any"),
            auth("r.example/team", "team"),
            auth("https://r.example", "second"),
            auth("s.example", "other"),
        ];
        let users: Vec<&str> =
            lookup("r.example/team/a", &auths).iter().map(|a| a.username.as_str()).collect();
        assert_eq!(users, ["team", "first", "second", "any"]);
    }
}
