//! Responses that the balancer creates itself: error pages, redirections, the health of a service, and the
//! configured response.

use super::message::{Afterwards, field, number};
use bytes::Bytes;
use evener_core::spec::{RedirectSpec, RespondSpec};
use std::borrow::Cow;
use std::io::Write;

/// Response that the balancer creates itself.
#[derive(Clone, Debug)]
pub(super) struct LocalResponse {
    status: u16,
    location: Option<Vec<u8>>,
    body: String,
    /// Media type of the body.
    kind: Cow<'static, str>,
    /// The request had the method HEAD: the header section announces the body, which is not sent.
    omits_body: bool,
}

impl LocalResponse {
    /// Returns a small page that explains the status.
    pub(super) fn page(status: u16) -> Self {
        let reason = reason_of(status);
        let body = format!(
            "<!doctype html>\n<title>{status} {reason}</title>\n<h1>{status} {reason}</h1>\n<p>{}</p>\n",
            explanation_of(status)
        );
        Self { status, location: None, body, kind: "text/html; charset=utf-8".into(), omits_body: false }
    }

    /// Returns the response that reports the health of the service.
    pub(super) fn health(is_usable: bool) -> Self {
        let (status, body) = if is_usable { (200, "ok\n") } else { (503, "no server is up\n") };
        Self {
            status,
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
        Some(Self { location: Some(location), ..Self::page(spec.status) })
    }

    /// Writes the response for a client of HTTP/1.
    pub(super) fn write(&self, afterwards: Afterwards, out: &mut Vec<u8>) {
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason_of(self.status));
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
fn reason_of(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unassigned")
}

fn explanation_of(status: u16) -> &'static str {
    match status {
        301 | 302 | 307 | 308 => "The page is at another address.",
        403 => "Access is not permitted.",
        404 => "No server is configured for this address.",
        408 => "The request took too long.",
        421 => "This connection was made for another name.",
        429 => "Too many requests; try again in a moment.",
        431 => "The request's header fields are too large.",
        502 => "The server sent no valid response.",
        503 => "No server is available; try again in a moment.",
        504 => "The server did not respond in time.",
        508 => "The request loops between load balancers.",
        _ => "The request is not valid.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_responses_have_a_body_and_are_not_cached() {
        let (response, body) = LocalResponse::page(502).to_http2();
        assert_eq!((response.status().as_u16(), body.is_some()), (502, true));
        let field = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(field("content-length"), body.map(|body| body.len().to_string()));
        assert_eq!(field("cache-control").as_deref(), Some("no-store"));
        assert_eq!(field("location"), None);
        let (response, body) = LocalResponse::page(502).for_method(true).to_http2();
        assert!(body.is_none() && response.headers().contains_key("content-length"));
    }
}
