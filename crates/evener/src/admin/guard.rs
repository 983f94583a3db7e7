//! The checks that each request passes before its handler: host, origin and token (over TCP), and a time limit. After
//! the handler, a change gets its entry in the audit log.

use super::problem::{failed, in_form};
use crate::api_access::ApiAccess;
use crate::config::FILE_BYTES_MAX;
use crate::supervisor::Handle;
use axum::Extension;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;
use evener_core::event::{Event, Similar};
use http_body_util::LengthLimitError;
use std::error::Error;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// Time limit of a request, from the end of its header section to the beginning of its response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of changes in progress.
const CHANGES_MAX: usize = 64;
/// Interval of events about refused requests.
const REFUSED_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of characters of a value in an entry of the audit log.
const VALUE_CHARS_MAX: usize = 300;

/// The other side of a connection.
#[derive(Clone)]
pub(super) enum Peer {
    /// A process at the admin socket.
    Local { who: Arc<str> },
    /// A client over TCP.
    Remote { address: SocketAddr, access: Arc<ApiAccess> },
}

impl Peer {
    /// Returns the process that opened a connection.
    pub(super) fn local(stream: &UnixStream) -> Self {
        let who = match stream.peer_cred() {
            Ok(user) => {
                let mut who = format!("uid {}", user.uid());
                if let Some(pid) = user.pid() {
                    let _ = write!(who, " pid {pid}");
                }
                who
            }
            Err(_) => "unknown user".into(),
        };
        Self::Local { who: who.into() }
    }

    pub(super) fn remote(address: SocketAddr, access: Arc<ApiAccess>) -> Self {
        Self::Remote { address, access }
    }

    /// Returns who sends a request, or the reason why it is refused.
    fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
        let (address, access) = match self {
            Self::Local { who } => return Ok(Arc::clone(who)),
            Self::Remote { address, access } => (address, access),
        };
        let host = only(headers, &HOST)?.ok_or(Refusal::NoHost)?;
        // The target may have an authority of its own (RFC 9112, section 3.2.2).
        let target = uri.authority().map_or(host, |authority| authority.as_str());
        if !access.admits_host(host) || !access.admits_host(target) {
            return Err(Refusal::WrongHost);
        }
        if let Some(origin) = only(headers, &ORIGIN)?
            && !origin.eq_ignore_ascii_case(&format!("{}://{host}", access.scheme()))
        {
            return Err(Refusal::WrongOrigin);
        }
        let token = only(headers, &AUTHORIZATION)?.and_then(|field| access.authenticate(field.as_bytes()));
        let name = token.ok_or(Refusal::NoToken)?;
        Ok(format!("token {name} from {address}").into())
    }
}

/// Returns the value of a header field that a request may have once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Refusal::Malformed),
        (Some(_), Some(_)) => Err(Refusal::Malformed),
    }
}

/// Reason why a request over TCP is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Malformed,
    NoHost,
    WrongHost,
    WrongOrigin,
    NoToken,
}

impl Refusal {
    fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed header field",
            Self::NoHost => "no host",
            Self::WrongHost => "wrong host",
            Self::WrongOrigin => "wrong origin",
            Self::NoToken => "no valid token",
        }
    }

    /// Returns the response. The client is closed after it.
    fn response(self) -> Response {
        let (status, why) = match self {
            Self::Malformed => {
                (StatusCode::BAD_REQUEST, "Host, Origin or Authorization is malformed or repeated")
            }
            Self::NoHost => (StatusCode::BAD_REQUEST, "the request has no Host"),
            Self::WrongHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "the API has another address: use the address of admin.listen, or add the name to admin.hosts",
            ),
            Self::WrongOrigin => (StatusCode::FORBIDDEN, "pages of other origins must not use the API"),
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "no valid token: the request needs `Authorization: Bearer TOKEN` with a token of admin.token_file",
            ),
        };
        let mut response = failed(status, why);
        let headers = response.headers_mut();
        if self == Self::NoToken {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"evener\""));
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// A change that a handler made, for the audit log. Handlers add it to the extensions of their response.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    action: &'static str,
    subject: String,
    before: Option<String>,
    after: Option<String>,
}

impl Audit {
    pub(crate) fn new(action: &'static str, subject: impl Into<String>) -> Self {
        Self { action, subject: subject.into(), before: None, after: None }
    }

    /// Adds the values before and after the change.
    pub(crate) fn values(self, before: impl Into<String>, after: impl Into<String>) -> Self {
        Self { before: Some(before.into()), after: Some(after.into()), ..self }
    }

    /// Adds the value after the change.
    pub(crate) fn after(self, after: impl Into<String>) -> Self {
        Self { after: Some(after.into()), ..self }
    }

    /// Adds the change to a response.
    pub(crate) fn on(self, mut response: Response) -> Response {
        response.extensions_mut().insert(self);
        response
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// State that all requests share.
#[derive(Clone)]
pub(super) struct Guard {
    supervisor: Handle,
    refused: Arc<Mutex<Refused>>,
    /// Permits for changes in progress.
    changes: Arc<Semaphore>,
}

/// Events about refused requests, at most one in [`REFUSED_EVERY`].
#[derive(Default)]
struct Refused {
    last: Option<Instant>,
    unlogged: u64,
}

impl Guard {
    pub(super) fn new(supervisor: Handle) -> Self {
        Self { supervisor, refused: Arc::default(), changes: Arc::new(Semaphore::new(CHANGES_MAX)) }
    }

    async fn on_refused(&self, peer: &Peer, refusal: Refusal) {
        let Peer::Remote { address, .. } = peer else { return };
        let unlogged = {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if refused.last.is_some_and(|last| now.duration_since(last) < REFUSED_EVERY) {
                refused.unlogged = refused.unlogged.saturating_add(1);
                return;
            }
            refused.last = Some(now);
            std::mem::take(&mut refused.unlogged)
        };
        let similar_not_logged = Similar::Sampled(unlogged);
        let (client, reason) = (address.ip(), refusal.reason());
        self.supervisor.log(Event::ApiRefused { client, reason, similar_not_logged }).await;
    }

    async fn on_change(&self, who: &str, request: (&Method, &str), audit: Option<Audit>) {
        let (method, path) = request;
        let audit = audit.unwrap_or_else(|| Audit::new("request", format!("{method} {path}")));
        let Audit { action, subject, before, after } = audit;
        let event = Event::ApiChange {
            who: who.into(),
            action,
            subject: shortened(subject).into(),
            before: before.map(|text| shortened(text).into()),
            after: after.map(|text| shortened(text).into()),
        };
        self.supervisor.log(event).await;
    }
}

/// Passes a request to its handler.
pub(super) async fn guard(
    State(guard): State<Guard>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let who = match peer.admit(request.uri(), request.headers()) {
        Ok(who) => who,
        Err(refusal) => {
            guard.on_refused(&peer, refusal).await;
            return refusal.response();
        }
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if method.is_safe() {
        return in_form(in_time(request, next).await);
    }
    let Ok(permit) = Arc::clone(&guard.changes).try_acquire_owned() else {
        return failed(StatusCode::SERVICE_UNAVAILABLE, "too many changes are in progress: try again later");
    };
    let request = match received(request).await {
        Ok(request) => request,
        Err(refused) => return refused,
    };
    // A change is made and logged as a whole, even if it takes long or the client does not wait for the response.
    let change = tokio::spawn(async move {
        let mut response = next.run(request).await;
        let audit = response.extensions_mut().remove::<Audit>();
        if response.status().is_success() {
            guard.on_change(&who, (&method, &path), audit).await;
        }
        drop(permit);
        in_form(response)
    });
    match tokio::time::timeout(REQUEST_TIMEOUT, change).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => failed(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be handled"),
        Err(_) => {
            let why =
                format!("the change takes more than {REQUEST_TIMEOUT:?} and goes on: the log tells its end");
            failed(StatusCode::REQUEST_TIMEOUT, why)
        }
    }
}

/// Receives the whole body of a request, within the time limit.
async fn received(request: Request) -> Result<Request, Response> {
    let most = usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX);
    let (parts, body) = request.into_parts();
    let too_large = || failed(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {most} bytes"));
    if body.size_hint().lower() > FILE_BYTES_MAX {
        return Err(too_large());
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
        Ok(Err(error)) if error.source().is_some_and(<dyn Error>::is::<LengthLimitError>) => Err(too_large()),
        Ok(Err(error)) => Err(failed(StatusCode::BAD_REQUEST, format!("the body is not complete: {error}"))),
        Err(_) => {
            let why = format!("the body was not complete within {REQUEST_TIMEOUT:?}");
            Err(failed(StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    let response = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    let late =
        || failed(StatusCode::REQUEST_TIMEOUT, format!("the request took more than {REQUEST_TIMEOUT:?}"));
    response.unwrap_or_else(|_| late())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_field_that_decides_must_not_be_repeated() {
        let mut headers = HeaderMap::new();
        assert_eq!(only(&headers, &HOST), Ok(None));
        headers.append(HOST, HeaderValue::from_static("a"));
        assert_eq!(only(&headers, &HOST), Ok(Some("a")));
        headers.append(HOST, HeaderValue::from_static("a"));
        assert_eq!(only(&headers, &HOST), Err(Refusal::Malformed));
    }

    #[test]
    fn long_values_are_shortened() {
        assert_eq!(shortened("é".repeat(VALUE_CHARS_MAX)).chars().count(), VALUE_CHARS_MAX);
        assert!(shortened("é".repeat(VALUE_CHARS_MAX + 1)).ends_with("é..."));
    }
}
