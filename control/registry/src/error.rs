//! Refusals, as the specification's error codes.

use http::StatusCode;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "repository name {0:?} is not valid: lower-case path segments of letters, digits and single separators"
    )]
    NameInvalid(String),
    #[error("repository {0:?} is not known to this registry")]
    NameUnknown(String),
    #[error(
        "tag {0:?} is not valid: up to 128 of letters, digits, '_', '.', '-', not starting with '.' or '-'"
    )]
    TagInvalid(String),
    #[error("blob {0} is not known to this repository")]
    BlobUnknown(String),
    #[error("manifest {reference} is not known to repository {name}")]
    ManifestUnknown { name: String, reference: String },
    #[error("the manifest is not valid: {0}")]
    ManifestInvalid(String),
    #[error("the manifest refers to blob {0}, which this repository does not hold: push it first")]
    ManifestBlobUnknown(String),
    #[error("the content's digest is {actual}, not {claimed}")]
    DigestMismatch { claimed: String, actual: String },
    #[error("digest {0:?} is not valid: sha256: and 64 lower-case hex digits are expected")]
    DigestInvalid(String),
    #[error("upload {0} is not known: it ended, or the registry restarted; start it again")]
    UploadUnknown(String),
    #[error("the range starts at byte {start}, the content ends at {at}")]
    RangeInvalid { start: u64, at: u64 },
    #[error("the content is larger than the {max} bytes that this registry takes")]
    TooLarge { max: u64 },
    #[error("{0} uploads are under way already; try again later")]
    TooManyUploads(usize),
    #[error("{method} is not offered for {path}")]
    Unsupported { method: String, path: String },
    #[error("the client went away: {0}")]
    Client(String),
    #[error("registry storage at {path}: {source}")]
    Io { path: String, source: std::io::Error },
}

impl Error {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    /// The HTTP status and the specification's code.
    pub fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NameInvalid(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::TagInvalid(_) => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
            Self::BlobUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::ManifestUnknown { .. } => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestBlobUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::DigestMismatch { .. } | Self::DigestInvalid(_) => {
                (StatusCode::BAD_REQUEST, "DIGEST_INVALID")
            }
            Self::UploadUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::RangeInvalid { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::TooManyUploads(_) => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Unsupported { .. } => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::Client(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                (StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN")
            }
            Self::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}
