//! What in an answer refers to the backend's root refers to the proxy afterwards; apimachinery's
//! proxy transport says which.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, header};

use super::html::Rewriter;
use crate::body::BoxError;

/// How links change.
#[derive(Clone, Debug)]
pub struct Links {
    /// The proxy's own path.
    pub prefix: String,
    /// Host and port of the backend, and the host that the client asked for: links to either mean the
    /// backend.
    pub backend: String,
    pub host: String,
}

impl Links {
    /// A link as it must be for the client.
    pub fn rewrite(&self, link: &str) -> String {
        let (scheme, host, path) = split(link);
        let ours = host == self.host && !host.is_empty();
        if !path.starts_with('/') || !(host.is_empty() || ours || host == self.backend) {
            return link.to_owned();
        }
        let start = match ours {
            true => format!("{scheme}//{host}"),
            false => String::new(),
        };
        match path.starts_with(&self.prefix) {
            true => format!("{start}{path}"),
            false => format!("{start}{}{path}", self.prefix),
        }
    }
}

/// `https:`, host and port, and the rest; the first two may be empty.
fn split(link: &str) -> (&str, &str, &str) {
    let (scheme, after) = match link.split_once("//") {
        Some((scheme @ ("" | "http:" | "https:"), after)) => (scheme, after),
        _ => return ("", "", link),
    };
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    (scheme, &after[..end], &after[end..])
}

/// How HTML that can be looked into is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Plain,
    Gzip,
}

/// None for a body that goes on as it is.
pub fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().trim();
    let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    match text(header::CONTENT_ENCODING) {
        _ if !kind.eq_ignore_ascii_case("text/html") => None,
        "" => Some(Encoding::Plain),
        "gzip" => Some(Encoding::Gzip),
        _ => None,
    }
}

/// HTML with its links changed, as it comes.
pub fn body(
    chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    encoding: Encoding,
    links: Links,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let change = Change::new(encoding, links);
    futures::stream::unfold((chunks.boxed(), Some(change)), |(mut chunks, change)| async move {
        let mut change = change?;
        loop {
            match chunks.next().await {
                Some(Ok(chunk)) => match change.push(&chunk) {
                    Ok(out) if out.is_empty() => {}
                    Ok(out) => return Some((Ok(out), (chunks, Some(change)))),
                    Err(e) => return Some((Err(e.into()), (chunks, None))),
                },
                Some(Err(e)) => return Some((Err(e), (chunks, None))),
                None => {
                    let rest = change.finish().map_err(BoxError::from);
                    return Some((rest, (chunks, None)));
                }
            }
        }
    })
}

struct Change {
    links: Links,
    html: Rewriter,
    packed: Option<(MultiGzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>)>,
}

impl Change {
    fn new(encoding: Encoding, links: Links) -> Self {
        let packed = (encoding == Encoding::Gzip).then(|| {
            let unpack = MultiGzDecoder::new(Vec::new());
            (unpack, GzEncoder::new(Vec::new(), Compression::fast()))
        });
        Self { links, html: Rewriter::default(), packed }
    }

    fn push(&mut self, chunk: &[u8]) -> std::io::Result<Bytes> {
        let links = &self.links;
        let mut out = Vec::with_capacity(chunk.len() + 256);
        let Some((unpack, pack)) = &mut self.packed else {
            self.html.push(chunk, &mut out, |link| links.rewrite(link));
            return Ok(out.into());
        };
        unpack.write_all(chunk)?;
        let plain = std::mem::take(unpack.get_mut());
        self.html.push(&plain, &mut out, |link| links.rewrite(link));
        pack.write_all(&out)?;
        Ok(std::mem::take(pack.get_mut()).into())
    }

    fn finish(self) -> std::io::Result<Bytes> {
        let Self { links, mut html, packed } = self;
        let mut out = Vec::new();
        let Some((unpack, mut pack)) = packed else {
            html.finish(&mut out);
            return Ok(out.into());
        };
        let plain = unpack.finish()?;
        html.push(&plain, &mut out, |link| links.rewrite(link));
        html.finish(&mut out);
        pack.write_all(&out)?;
        Ok(pack.finish()?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        Links {
            prefix: "/proxy".into(),
            backend: "10.42.0.5:80".into(),
            host: "api.example:6443".into(),
        }
    }

    #[test]
    fn links_to_the_root_of_the_backend() {
        #[track_caller]
        fn check(link: &str, expected: &str) {
            assert_eq!(links().rewrite(link), expected);
        }
        check("/a/b?c#d", "/proxy/a/b?c#d");
        check("/", "/proxy/");
        check("/proxy/a", "/proxy/a");
        check("http://10.42.0.5:80/a", "/proxy/a");
        check("//10.42.0.5:80/a", "/proxy/a");
        check("https://api.example:6443/a", "https://api.example:6443/proxy/a");
        for same in
            ["a/b", "", "#top", "?q", "http://elsewhere/a", "mailto:x@y", "http://10.42.0.5:80"]
        {
            check(same, same);
        }
    }

    #[test]
    fn what_is_looked_into() {
        let of = |kind: &'static str, packed: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            if !packed.is_empty() {
                headers.insert(header::CONTENT_ENCODING, packed.parse().unwrap());
            }
            encoding(&headers)
        };
        assert_eq!(of("text/html; charset=utf-8", ""), Some(Encoding::Plain));
        assert_eq!(of("text/html", "gzip"), Some(Encoding::Gzip));
        assert_eq!(of("text/html", "br"), None);
        assert_eq!(of("text/plain", ""), None);
    }

    #[tokio::test]
    async fn packed_html_is_unpacked_and_packed_again() {
        let html = r#"<a href="/x">"#.repeat(3000);
        let mut pack = GzEncoder::new(Vec::new(), Compression::best());
        pack.write_all(html.as_bytes()).unwrap();
        let packed = pack.finish().unwrap();
        let chunks: Vec<_> = packed.chunks(50).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        let out = body(futures::stream::iter(chunks), Encoding::Gzip, links());
        let out: Vec<Bytes> = out.map(Result::unwrap).collect().await;
        let mut unpack = MultiGzDecoder::new(Vec::new());
        unpack.write_all(&out.concat()).unwrap();
        let plain = String::from_utf8(unpack.finish().unwrap()).unwrap();
        assert_eq!(plain, r#"<a href="/proxy/x">"#.repeat(3000));
        let broken = futures::stream::iter([Ok(Bytes::from_static(b"not gzip at all"))]);
        let all: Vec<_> = body(broken, Encoding::Gzip, links()).collect().await;
        assert!(all.iter().any(Result::is_err));
    }
}
