//! The image registry behind the API server's listener, and behind the nodes' tunnels.

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full};
use rimward_api::{Status, UserInfo};
use rimward_client::{Body, TransportError};
use rimward_control_apiserver::serve::Extra;
use rimward_control_apiserver::{ApiServer, BoxBody, BoxError};
use rimward_control_hub::RegistryFetch;
use rimward_control_registry::{Registry, ResponseBody, Scope};

/// Lets users at `/v2/` whom RBAC allows: `images` of group `rimward.dev`, named by repository, with the
/// verbs get, create (push) and delete, and list for the names of all. Taking a blob from another
/// repository needs get there.
pub(crate) struct Door {
    pub registry: Registry,
    pub api: ApiServer,
}

impl Door {
    fn allowed(
        &self,
        user: &UserInfo,
        method: &Method,
        uri: &http::Uri,
    ) -> Result<Mount, Box<Response<BoxBody>>> {
        if user.name == UserInfo::anonymous().name {
            // Clients of registries send credentials only when they are asked.
            let mut response = refusal(
                StatusCode::UNAUTHORIZED,
                "UNAUTHORIZED",
                "credentials are needed: a client certificate, or a ServiceAccount token as the password",
            );
            response.headers_mut().insert(http::header::WWW_AUTHENTICATE, CHALLENGE.clone());
            return Err(Box::new(response));
        }
        let verb = match *method {
            Method::GET | Method::HEAD => "get",
            Method::DELETE => "delete",
            _ => "create",
        };
        let may = |verb: &str, repository: &str| {
            self.api.authorize(user, verb, ("rimward.dev", "images", ""), "", repository)
        };
        let denied =
            |status: Status| Box::new(refusal(StatusCode::FORBIDDEN, "DENIED", &status.message));
        match Scope::of(uri) {
            // The registry refuses what it does not know, and says what is wrong with it.
            None | Some(Scope::Base) => Ok(Mount::Kept),
            Some(Scope::Catalog) => may("list", "").map(|()| Mount::Kept).map_err(denied),
            Some(Scope::Repository { name, mount_from }) => {
                may(verb, &name).map_err(denied)?;
                let from_allowed = mount_from.is_none_or(|from| may("get", &from).is_ok());
                Ok(if from_allowed { Mount::Kept } else { Mount::Dropped })
            }
        }
    }
}

/// Whether a request may take a blob from the repository that it names. If not, the client is made to
/// upload it, as the specification has it for blobs that are not there: neither tells more.
enum Mount {
    Kept,
    Dropped,
}

fn without_query<B>(mut request: Request<B>) -> Request<B> {
    if let Ok(path) = request.uri().path().parse() {
        *request.uri_mut() = path;
    }
    request
}

/// Every client of registries knows passwords; a token is sent as one. A Bearer challenge would need a
/// token service that trades one token for another.
static CHALLENGE: http::HeaderValue = http::HeaderValue::from_static("Basic realm=\"rimward\"");

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<BoxBody> {
    let message = message.replace('\\', "\\\\").replace('"', "\\\"");
    let text = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"{message}\"}}]}}");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

fn inward(body: BoxBody) -> UnsyncBoxBody<Bytes, std::io::Error> {
    body.map_err(std::io::Error::other).boxed_unsync()
}

fn outward(body: ResponseBody) -> BoxBody {
    body.map_err(|e| -> BoxError { Box::new(e) }).boxed_unsync()
}

#[async_trait]
impl Extra for Door {
    async fn handle(
        &self,
        user: &UserInfo,
        request: Request<BoxBody>,
    ) -> Option<Response<BoxBody>> {
        let path = request.uri().path();
        if path != "/v2" && !path.starts_with("/v2/") {
            return None;
        }
        let request = match self.allowed(user, request.method(), request.uri()) {
            Ok(Mount::Kept) => request,
            Ok(Mount::Dropped) => without_query(request),
            Err(refused) => return Some(*refused),
        };
        // A boxed error type would make this future not Send to the compiler's eyes.
        let response = self.registry.handle(request.map(inward)).await;
        Some(response.map(outward))
    }
}

#[async_trait]
impl RegistryFetch for Door {
    async fn fetch(&self, request: Request<Bytes>) -> Result<Response<Body>, String> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(format!("nodes only read images; {} is not for them", request.method()));
        }
        let response = self.registry.handle(request.map(Full::new)).await;
        Ok(response.map(|body| -> Body {
            let chunks =
                TryStreamExt::map_err(BodyStream::new(body), |e| TransportError(e.to_string()));
            Box::pin(chunks.try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok()))))
        }))
    }
}
