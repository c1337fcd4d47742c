//! The image registry behind the API server's listener, and behind the nodes' tunnels.

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full};
use rimward_api::UserInfo;
use rimward_client::{Body, TransportError};
use rimward_control_apiserver::serve::Extra;
use rimward_control_apiserver::{ApiServer, BoxBody, BoxError};
use rimward_control_hub::RegistryFetch;
use rimward_control_registry::{Registry, ResponseBody};

/// Lets users at `/v2/` whom RBAC allows: `images` of group `rimward.dev`, named by repository, with the
/// verbs get, create (push) and delete.
pub(crate) struct Door {
    pub registry: Registry,
    pub api: ApiServer,
}

impl Door {
    fn allowed(
        &self,
        user: &UserInfo,
        method: &Method,
        path: &str,
    ) -> Result<(), Box<Response<BoxBody>>> {
        if user.name == UserInfo::anonymous().name {
            // Clients of registries send credentials only when they are asked.
            let mut response = refusal(
                StatusCode::UNAUTHORIZED,
                "UNAUTHORIZED",
                "credentials are needed: a client certificate, or a ServiceAccount token as the password",
            );
            let challenge = http::HeaderValue::from_static("Basic realm=\"rimward\"");
            response.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
            return Err(Box::new(response));
        }
        let verb = match *method {
            Method::GET | Method::HEAD => "get",
            Method::DELETE => "delete",
            _ => "create",
        };
        let rest = path.trim_start_matches("/v2").trim_matches('/');
        let end = ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
            .iter()
            .filter_map(|m| rest.rfind(m))
            .min();
        let repository = end.map_or("", |end| &rest[..end]);
        if repository.is_empty() && verb == "get" {
            return Ok(());
        }
        self.api
            .authorize(user, verb, ("rimward.dev", "images", ""), "", repository)
            .map_err(|status| Box::new(refusal(StatusCode::FORBIDDEN, "DENIED", &status.message)))
    }
}

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
        if let Err(refused) = self.allowed(user, request.method(), path) {
            return Some(*refused);
        }
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
