//! Responses that the balancer creates itself: error pages, redirections, the health of a service, and the
//! configured response.

use super::client::{Client, Parties};
use super::message::{Afterwards, field, number};
use crate::context::Context;
use bytes::Bytes;
use evener_core::reason::{Cause, Reason};
use evener_core::spec::{RedirectSpec, RespondSpec};
use std::borrow::Cow;
use std::io::Write;

/// Status for a reason that has none: such a reason never leads to a response.
const INTERNAL: u16 = 500;

/// Response that the balancer creates itself.
#[derive(Clone, Debug)]
pub(super) struct LocalResponse {
    status: u16,
    /// Reason for the response, with its details.
    cause: Cause,
    /// Client, pool and server of the request, if they are known.
    parties: Parties,
    location: Option<Vec<u8>>,
    body: String,
    /// Media type of the body.
    kind: Cow<'static, str>,
    /// The request had the method HEAD: the header section announces the body, which is not sent.
    omits_body: bool,
}

impl LocalResponse {
    /// Returns a small page that explains the reason to a person with a browser.
    pub(super) fn page(cause: impl Into<Cause>) -> Self {
        let cause = cause.into();
        Self::explain(cause.reason().status().unwrap_or(INTERNAL), cause)
    }

    fn explain(status: u16, cause: Cause) -> Self {
        let (phrase, sentence) = (phrase_of(status), explanation_of(cause.reason()));
        let body = format!(
            "<!doctype html>\n<title>{status} {phrase}</title>\n<h1>{status} {phrase}</h1>\n<p>{sentence}</p>\n"
        );
        Self {
            cause,
            status,
            parties: Parties::default(),
            location: None,
            body,
            kind: "text/html; charset=utf-8".into(),
            omits_body: false,
        }
    }

    /// Names the client, the pool and the server of the request in reports.
    #[must_use]
    pub(super) fn about(self, parties: Parties) -> Self {
        Self { parties, ..self }
    }

    /// Returns the reason for the response, with its details.
    pub(super) fn cause(&self) -> Cause {
        self.cause
    }

    /// Returns the number of bytes of the body that is sent.
    pub(super) fn body_bytes(&self) -> u64 {
        if self.has_body() && !self.omits_body { self.body.len() as u64 } else { 0 }
    }

    /// Returns the status.
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    /// Counts the response by its reason, and reports it.
    pub(super) fn note(&self, cx: &Context, client: &Client) {
        client.note_unserved(cx, self.cause, Some(self.status), || self.parties.clone());
    }

    /// Returns the response that reports the health of the service.
    pub(super) fn health(is_usable: bool) -> Self {
        let (status, body) = if is_usable { (200, "ok\n") } else { (503, "no server is up\n") };
        Self {
            status,
            cause: Reason::Health.into(),
            parties: Parties::default(),
            location: None,
            body: body.into(),
            kind: "text/plain; charset=utf-8".into(),
            omits_body: false,
        }
    }

    /// Returns the configured response.
    pub(super) fn respond(spec: &RespondSpec) -> Self {
        Self {
            status: spec.status,
            cause: Reason::Respond.into(),
            parties: Parties::default(),
            location: None,
            // A response with status 205 has no body, but has a length (RFC 9110, section 15.3.6).
            body: if spec.status == 205 { String::new() } else { spec.body.clone() },
            kind: spec.content_type.clone().into(),
            omits_body: false,
        }
    }

    /// Omits the body if the request had the method HEAD.
    #[must_use]
    pub(super) fn for_method(self, is_head: bool) -> Self {
        Self { omits_body: is_head, ..self }
    }

    /// Returns whether a response with this status has a body, so that its length is sent (RFC 9110, section
    /// 8.6).
    fn has_body(&self) -> bool {
        !matches!(self.status, 204 | 304)
    }

    /// Returns a redirection to the same resource by https; `None` when the host is not known.
    pub(super) fn redirect(spec: RedirectSpec, authority: &[u8], target: &[u8]) -> Option<Self> {
        let host = match authority.iter().rposition(|&byte| byte == b':') {
            Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
            _ => authority,
        };
        if host.is_empty() {
            return None;
        }
        let mut location = b"https://".to_vec();
        location.extend_from_slice(host);
        if spec.port != 443 {
            let _ = write!(location, ":{}", spec.port);
        }
        location.extend_from_slice(if target == b"*" { b"/" } else { target });
        Some(Self { location: Some(location), ..Self::explain(spec.status, Reason::Redirect.into()) })
    }

    /// Writes the response for a client of HTTP/1.
    pub(super) fn write(&self, afterwards: Afterwards, out: &mut Vec<u8>) {
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, phrase_of(self.status));
        if self.has_body() {
            field("Content-Type", self.kind.as_bytes(), out);
            number("Content-Length", self.body.len() as u64, out);
        }
        field("Cache-Control", b"no-store", out);
        if let Some(location) = &self.location {
            field("Location", location, out);
        }
        if self.status == 503 || self.status == 429 {
            field("Retry-After", b"1", out);
        }
        afterwards.write(out);
        out.extend_from_slice(b"\r\n");
        if !self.omits_body && self.has_body() {
            out.extend_from_slice(self.body.as_bytes());
        }
    }

    /// Makes the response for a client of HTTP/2, with its body if one is sent.
    pub(super) fn to_http2(&self) -> (http::Response<()>, Option<Bytes>) {
        let mut response = http::Response::new(());
        *response.status_mut() =
            http::StatusCode::from_u16(self.status).unwrap_or(http::StatusCode::BAD_GATEWAY);
        let fields = response.headers_mut();
        if self.has_body() {
            if let Ok(kind) = http::HeaderValue::from_bytes(self.kind.as_bytes()) {
                fields.insert(http::header::CONTENT_TYPE, kind);
            }
            fields.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(self.body.len()));
        }
        fields.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
        let location = self.location.as_ref().and_then(|value| http::HeaderValue::from_bytes(value).ok());
        if let Some(location) = location {
            fields.insert(http::header::LOCATION, location);
        }
        let is_sent = self.has_body() && !self.omits_body;
        (response, is_sent.then(|| Bytes::copy_from_slice(self.body.as_bytes())))
    }
}

/// Returns the reason phrase (RFC 9110, section 15).
fn phrase_of(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unassigned")
}

/// Returns one sentence for a person with a browser. It contains no details of the network.
fn explanation_of(reason: Reason) -> &'static str {
    match reason {
        Reason::Redirect => "The page is at another address.",
        Reason::ClientDenied => "Access is not permitted.",
        Reason::ClientLimited => "Too many requests; try again in a moment.",
        Reason::NoRoute => "No server is configured for this address.",
        Reason::RequestTimeout | Reason::RequestStalled | Reason::RequestSlow => "The request took too long.",
        Reason::HeaderTooLarge => "The request's header fields are too large.",
        Reason::MethodUnsupported => "The method of the request is not supported.",
        Reason::CodingUnsupported => "The transfer coding of the request is not supported.",
        Reason::VersionUnsupported => "The version of HTTP is not supported.",
        Reason::PlainHttp => "This port expects HTTPS; the request was sent as plain HTTP.",
        Reason::TlsOnPlainPort => "This port expects plain HTTP; the request was sent with TLS.",
        Reason::Loop => "The request loops between load balancers.",
        Reason::PoolEmpty | Reason::NoServerUp => "No server is available at the moment; try again later.",
        Reason::ServersFull | Reason::NoDescriptor => "All servers are busy; try again in a moment.",
        Reason::QueueFull => {
            "All servers are busy, and too many requests are waiting; try again in a moment."
        }
        Reason::QueueTimeout => "All servers were busy for too long; try again in a moment.",
        Reason::NoServerAdmits => "No server accepts requests from your address.",
        Reason::NoFailover => "Your server is not available at the moment; try again later.",
        Reason::ConnectFailed | Reason::RetriesExhausted => {
            "No server could be reached; try again in a moment."
        }
        Reason::ServerClosed => "The server closed the connection without a response.",
        Reason::ResponseInvalid | Reason::ResponseTooLarge => "The server sent no valid response.",
        Reason::ResponseTimeout => "The server did not respond in time.",
        Reason::ServerStalled => "The server did not read the request in time.",
        Reason::ServerDown | Reason::ServerEnded => "The connection to the server was closed.",
        _ => "The request is not valid.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_responses_have_a_body_and_are_not_cached() {
        let (response, body) = LocalResponse::page(Reason::ConnectFailed).to_http2();
        assert_eq!((response.status().as_u16(), body.is_some()), (502, true));
        let field = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(field("content-length"), body.map(|body| body.len().to_string()));
        assert_eq!(field("cache-control").as_deref(), Some("no-store"));
        assert_eq!(field("location"), None);
        let (response, body) = LocalResponse::page(Reason::ConnectFailed).for_method(true).to_http2();
        assert!(body.is_none() && response.headers().contains_key("content-length"));
    }
}
