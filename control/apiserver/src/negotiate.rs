//! Which form of an answer a client accepts.

use http::HeaderMap;
use rimward_api::{Reason, Status, status::Details};

use crate::protobuf;
use crate::served::Served;

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => protobuf::MEDIA_TYPE,
        }
    }
}

/// What an object is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    Object,
    /// `PartialObjectMetadata`, in a list `PartialObjectMetadataList`.
    Metadata,
    Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    pub encoding: Encoding,
    pub shape: Shape,
    /// The shape's own kind is of `meta.k8s.io/v1beta1`, which differs from v1 by its name only.
    pub beta: bool,
    /// Without managedFields. Only informers of this process ask for that, and only in JSON.
    pub lean: bool,
}

impl Form {
    pub const fn of(encoding: Encoding, shape: Shape) -> Self {
        Self { encoding, shape, beta: false, lean: false }
    }
}

pub const PLAIN: Form = Form::of(Encoding::Json, Shape::Object);

const AVAILABLE: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAMED: &str =
    "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// What an endpoint can answer in, beside JSON and YAML of the object itself.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Kinds with wire numbers; custom resources have none.
    pub protobuf: bool,
    pub shapes: Shapes,
    /// Watches have no YAML.
    pub stream: bool,
}

/// What objects can be shown as beside themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shapes {
    /// Nothing: they are never stored.
    None,
    /// A watch that begins with a list has no Tables.
    Metadata,
    All,
}

impl Offer {
    /// Of an endpoint that answers with an object of its own, such as a Status.
    pub const OWN: Self = Self { protobuf: true, shapes: Shapes::None, stream: false };
}

/// The form of an answer to a request on a resource.
pub fn accepted(headers: &HeaderMap, served: &Served) -> Result<Form, Status> {
    form(headers, Offer { protobuf: served.protobuf, shapes: Shapes::All, stream: false })
}

/// The best range of the Accept header that can be met: by weight, the more specific first.
pub fn form(headers: &HeaderMap, offer: Offer) -> Result<Form, Status> {
    let Some(accept) = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()) else {
        return Ok(PLAIN);
    };
    // What in-process clients and most others send needs no sorting.
    if matches!(accept, "" | "application/json" | "*/*") {
        return Ok(PLAIN);
    }
    let mut ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    ranges.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.stars.cmp(&b.stars)));
    let found = ranges.iter().find_map(|range| range.met(offer));
    found
        .ok_or_else(|| not_acceptable(offer, ranges.iter().any(|r| r.encodings().next().is_some())))
}

/// The first of some media types that the best range of the Accept header takes; None when none does.
/// For documents whose forms are not [`Encoding`]s.
pub fn media_type(headers: &HeaderMap, offered: &[&'static str]) -> Option<&'static str> {
    let accept = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok());
    let accept = accept.filter(|a| !a.trim().is_empty()).unwrap_or("*/*");
    let mut ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    ranges.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    let takes = |range: &Range<'_>, kind: &str| {
        matches!(range.media_type, "*/*" | "application/*") || range.media_type == kind
    };
    ranges.iter().find_map(|r| offered.iter().copied().find(|kind| takes(r, kind)))
}

/// One range of an Accept header.
struct Range<'a> {
    media_type: &'a str,
    parameters: &'a str,
    weight: f32,
    /// How much of the type is left open.
    stars: usize,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (media_type, parameters) = text.split_once(';').unwrap_or((text, ""));
        let media_type = media_type.trim();
        let mut range =
            Self { media_type, parameters, weight: 1.0, stars: media_type.matches('*').count() };
        let q = range.parameters().find(|(name, _)| *name == "q");
        range.weight = q.and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
        (!media_type.is_empty()).then_some(range)
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let all = self.parameters.split(';').filter_map(|p| p.split_once('='));
        all.map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
    }

    /// The encodings that the range names, in the order of the server's preference.
    fn encodings(&self) -> impl Iterator<Item = Encoding> {
        let open = matches!(self.media_type, "*/*" | "application/*");
        [Encoding::Json, Encoding::Yaml, Encoding::Protobuf]
            .into_iter()
            .filter(move |e| open || e.media_type() == self.media_type)
    }

    fn met(&self, offer: Offer) -> Option<Form> {
        let (shape, beta) = self.shape(offer)?;
        let can = |encoding: &Encoding| match encoding {
            Encoding::Json => true,
            Encoding::Yaml => !offer.stream,
            // Tables have no wire numbers.
            Encoding::Protobuf => offer.protobuf && shape != Shape::Table,
        };
        self.encodings().find(can).map(|encoding| Form { beta, ..Form::of(encoding, shape) })
    }

    /// The shape that the parameters ask for, and whether as v1beta1; None for what we do not have.
    fn shape(&self, offer: Offer) -> Option<(Shape, bool)> {
        let (mut kind, mut group, mut version) = (None, None, None);
        for (name, value) in self.parameters() {
            match name {
                "as" => kind = Some(value),
                "g" => group = Some(value),
                "v" => version = Some(value),
                "stream" if !matches!(value, "" | "watch") => return None,
                "sv" if !value.is_empty() => return None,
                _ => {}
            }
        }
        match (kind, group, version) {
            (None, None, None) => Some((Shape::Object, false)),
            (Some(kind), Some("meta.k8s.io"), Some(version @ ("v1" | "v1beta1"))) => {
                let shape = match (kind, offer.shapes) {
                    (_, Shapes::None) => return None,
                    ("Table", Shapes::All) => Shape::Table,
                    ("PartialObjectMetadata" | "PartialObjectMetadataList", _) => Shape::Metadata,
                    _ => return None,
                };
                Some((shape, version == "v1beta1"))
            }
            _ => None,
        }
    }
}

/// `known`: the media type is one of ours, only not in this shape or for this endpoint.
fn not_acceptable(offer: Offer, known: bool) -> Status {
    let (message, details) = match (known, offer.stream) {
        (true, true) => (format!("only the following media types are accepted: {STREAMED}"), None),
        (true, false) => {
            (format!("only the following media types are accepted: {AVAILABLE}"), None)
        }
        (false, stream) => {
            let also = if stream { format!(", {STREAMED}") } else { String::new() };
            let message =
                format!("406: Not Acceptable\n\nAvailable representations: {AVAILABLE}{also}");
            (message, Some(Box::new(Details::default())))
        }
    };
    Status { code: 406, reason: Reason::NotAcceptable, message, details }
}

/// Whether the client takes gzip.
pub fn gzip(headers: &HeaderMap) -> bool {
    let accepts = headers.get(http::header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
    accepts.is_some_and(|list| {
        list.split(',').any(|e| e.split(';').next().map(str::trim) == Some("gzip"))
    })
}

/// The encoding of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Json,
    Yaml,
    Protobuf,
}

/// The encoding of a request's body, by its Content-Type. None is JSON, as kubectl's raw requests are.
pub fn sent(headers: &HeaderMap) -> Result<Sent, Status> {
    let sent =
        headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match sent.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => Ok(Sent::Json),
        "application/yaml" => Ok(Sent::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Sent::Protobuf),
        _ => Err(Status::new(
            415,
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {AVAILABLE}"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offer = Offer { protobuf: true, shapes: Shapes::All, stream: false };

    fn found(accept: &str, offer: Offer) -> Option<(Encoding, Shape)> {
        let mut headers = HeaderMap::new();
        headers.insert("accept", accept.parse().expect("a header"));
        form(&headers, offer).ok().map(|f| (f.encoding, f.shape))
    }

    #[track_caller]
    fn check(accept: &str, expected: Option<(Encoding, Shape)>) {
        assert_eq!(found(accept, ALL), expected, "{accept}");
    }

    #[test]
    fn documents_by_media_type() {
        let found = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::ACCEPT, accept.parse().expect("a header"));
            media_type(&headers, &["application/json", "application/x+protobuf"])
        };
        assert_eq!(media_type(&HeaderMap::new(), &["application/json"]), Some("application/json"));
        for (accept, expected) in [
            ("*/*", Some("application/json")),
            ("", Some("application/json")),
            ("application/x+protobuf", Some("application/x+protobuf")),
            ("application/json;q=0.5, application/x+protobuf", Some("application/x+protobuf")),
            ("text/html, application/*;q=0.1", Some("application/json")),
            ("text/html", None),
        ] {
            assert_eq!(found(accept), expected, "{accept}");
        }
    }

    #[test]
    fn accept() {
        let json = Some((Encoding::Json, Shape::Object));
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        check("application/json", json);
        check("*/*", json);
        check("text/html, application/*;q=0.1", json);
        check(
            &format!("{table},application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"),
            Some((Encoding::Json, Shape::Table)),
        );
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some((Encoding::Protobuf, Shape::Object)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Encoding::Json, Shape::Table)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            Some((Encoding::Protobuf, Shape::Metadata)),
        );
        let beta = "application/json;as=Table;v=v1beta1;g=meta.k8s.io";
        check(beta, Some((Encoding::Json, Shape::Table)));
        check(beta.replace("v1beta1", "v1alpha1").as_str(), None);
        check("application/json;q=0.5,application/yaml", Some((Encoding::Yaml, Shape::Object)));
        check(
            "application/yaml;q=0.5,application/vnd.kubernetes.protobuf;q=0.9",
            Some((Encoding::Protobuf, Shape::Object)),
        );
        check("*/*,application/yaml", Some((Encoding::Yaml, Shape::Object)));
        check(
            "application/vnd.kubernetes.protobuf;stream=watch",
            Some((Encoding::Protobuf, Shape::Object)),
        );
        check("application/json;stream=other", None);
        check("application/json;as=Table", None);
        check("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None);
        check("application/cbor", None);
        check("application/cbor,application/json", json);
        check("text/html", None);
        check(";;,=,;q=", None);
        let custom = Offer { protobuf: false, ..ALL };
        assert_eq!(found("application/vnd.kubernetes.protobuf,application/json", custom), json);
        assert_eq!(found("application/vnd.kubernetes.protobuf", custom), None);
        let stream = Offer { stream: true, ..ALL };
        assert_eq!(found("application/yaml", stream), None);
        assert_eq!(found("application/yaml,application/json", stream), json);
        assert_eq!(found(table, Offer::OWN), None);
        let lists = Offer { shapes: Shapes::Metadata, ..stream };
        assert_eq!(found(table, lists), None);
        assert_eq!(found(&format!("{table},application/json"), lists), json);
    }
}
