//! Header sections between HTTP/2 and HTTP/1.1, in whose terms requests are read and responses come.

use crate::http::message::OwnAnswer;
use bytes::Bytes;
use evener_core::wire::http::{Framing, HeadLimits, Response};

/// Returns whether a header section has more fields or bytes than the limits allow, as it came: pieces of a cookie are fields, too. Bytes are
/// counted as HTTP/1.1 would have them.
pub(super) fn exceeds(parts: &http::request::Parts, head: &[u8], limits: &HeadLimits) -> bool {
    let pieces = parts.headers.get_all(http::header::COOKIE).iter().count();
    // Joined, each piece but the first costs two bytes instead of `cookie: ` and the end of the line.
    let bytes = head.len() + pieces.saturating_sub(1) * ("cookie: \r\n".len() - "; ".len());
    parts.headers.len() > limits.fields_max || bytes > limits.bytes_max
}

/// The head as HTTP/1.1 would have it: one reader for both, so that the same is refused and understood.
pub(super) fn write_head(parts: &http::request::Parts, bodyless: bool, out: &mut Vec<u8>) {
    out.clear();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    for part in [parts.method.as_str(), " ", path, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut field = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    // `:authority` comes before `Host`, which then says the same (RFC 9113, section 8.3.1).
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    if let Some(authority) = authority {
        field("host", authority.as_bytes());
    }
    // Cookies may come in pieces (RFC 9113, section 8.2.3).
    let cookies: Vec<&[u8]> =
        parts.headers.get_all(http::header::COOKIE).iter().map(http::HeaderValue::as_bytes).collect();
    if !cookies.is_empty() {
        field("cookie", &cookies.join(&b"; "[..]));
    }
    for (name, value) in &parts.headers {
        let said = name == http::header::COOKIE || (name == http::header::HOST && authority.is_some());
        if !said {
            field(name.as_str(), value.as_bytes());
        }
    }
    if !bodyless && !parts.headers.contains_key(http::header::CONTENT_LENGTH) {
        field("transfer-encoding", b"chunked");
    }
    out.extend_from_slice(b"\r\n");
}

/// Translates the header section of a response to HTTP/2, which has no fields about the connection.
pub(super) fn translate(
    response: &Response,
    head: &[u8],
    framing: Option<Framing>,
    cookie: Option<&str>,
) -> Option<http::Response<()>> {
    let mut answer = http::Response::new(());
    *answer.status_mut() = http::StatusCode::from_u16(response.status()).ok()?;
    let fields = answer.headers_mut();
    for field in response.passed_on(head) {
        let name = http::HeaderName::from_bytes(field.name.of(head)).ok()?;
        fields.append(name, http::HeaderValue::from_bytes(field.value.of(head)).ok()?);
    }
    // Where no body comes, the length that it would have is sent all the same (RFC 9110, section 8.6).
    let may_have = response.status() >= 200 && response.status() != 204;
    let told = framing.or(response.told_framing().filter(|_| may_have));
    if let Some(Framing::Length(length)) = told {
        fields.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(length));
    }
    if let Some(cookie) = cookie {
        fields.append(http::header::SET_COOKIE, http::HeaderValue::from_str(cookie).ok()?);
    }
    Some(answer)
}

/// Makes a local response of HTTP/2.
pub(super) fn own_answer(answer: &OwnAnswer) -> (http::Response<()>, Bytes) {
    let mut response = http::Response::new(());
    *response.status_mut() =
        http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::BAD_GATEWAY);
    let fields = response.headers_mut();
    if answer.has_body() {
        if let Ok(kind) = http::HeaderValue::from_bytes(answer.kind.as_bytes()) {
            fields.insert(http::header::CONTENT_TYPE, kind);
        }
        fields.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(answer.body.len()));
    }
    fields.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    if let Some(location) =
        answer.location.as_ref().and_then(|value| http::HeaderValue::from_bytes(value).ok())
    {
        fields.insert(http::header::LOCATION, location);
    }
    (response, Bytes::copy_from_slice(answer.body.as_bytes()))
}
