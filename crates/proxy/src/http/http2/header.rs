//! Translation of header sections between HTTP/2 and HTTP/1.1, the form in which requests are judged and
//! responses are parsed.

use evener_core::wire::http::{Framing, HeaderLimits, Response};

/// Returns whether the received header section exceeds the limits for fields or bytes. Each piece of a cookie
/// counts as a field. Bytes are counted in the form of HTTP/1.1.
pub(super) fn exceeds(parts: &http::request::Parts, section: &[u8], limits: &HeaderLimits) -> bool {
    let pieces = parts.headers.get_all(http::header::COOKIE).iter().count();
    // When cookies are joined, each piece but the first costs two bytes instead of `cookie: ` and a line end.
    let bytes = section.len() + pieces.saturating_sub(1) * ("cookie: \r\n".len() - "; ".len());
    parts.headers.len() > limits.fields_max || bytes > limits.bytes_max
}

/// Writes a header section in the form of HTTP/1.1, so that one parser applies the same rules to both versions.
pub(super) fn write_header(parts: &http::request::Parts, bodyless: bool, out: &mut Vec<u8>) {
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
    // `:authority` replaces `Host` (RFC 9113, section 8.3.1).
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
        let counted = name == http::header::COOKIE || (name == http::header::HOST && authority.is_some());
        if !counted {
            field(name.as_str(), value.as_bytes());
        }
    }
    if !bodyless && !parts.headers.contains_key(http::header::CONTENT_LENGTH) {
        field("transfer-encoding", b"chunked");
    }
    out.extend_from_slice(b"\r\n");
}

/// Translates the header section of a response to HTTP/2, which has no fields about the connection. Returns
/// `None` if HTTP/2 does not permit the status or a field.
pub(super) fn translate(
    response: &Response,
    section: &[u8],
    framing: Option<Framing>,
    cookie: Option<&str>,
) -> Option<http::Response<()>> {
    let mut local = http::Response::new(());
    *local.status_mut() = http::StatusCode::from_u16(response.status()).ok()?;
    let fields = local.headers_mut();
    for field in response.passed_on(section) {
        let name = http::HeaderName::from_bytes(field.name.of(section)).ok()?;
        fields.append(name, http::HeaderValue::from_bytes(field.value.of(section)).ok()?);
    }
    // A response without a body still announces the length that the body would have (RFC 9110, section 8.6).
    let may_have = response.status() >= 200 && response.status() != 204;
    let forwarded = framing.or(response.declared_framing().filter(|_| may_have));
    if let Some(Framing::Length(length)) = forwarded {
        fields.insert(http::header::CONTENT_LENGTH, http::HeaderValue::from(length));
    }
    if let Some(cookie) = cookie {
        fields.append(http::header::SET_COOKIE, http::HeaderValue::from_str(cookie).ok()?);
    }
    Some(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, fields: &[(&str, &str)]) -> http::request::Parts {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn written(uri: &str, fields: &[(&str, &str)], bodyless: bool) -> String {
        let mut header = b"an earlier header section".to_vec();
        write_header(&parts(uri, fields), bodyless, &mut header);
        String::from_utf8(header).unwrap()
    }

    #[test]
    fn requests_are_written_in_the_form_of_http1() {
        let check = |uri: &str, fields: &[(&str, &str)], bodyless: bool, expected: &[&str]| {
            let text = written(uri, fields, bodyless);
            let lines: Vec<&str> = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n").collect();
            assert_eq!(lines, expected, "{uri} {fields:?}");
        };
        let line = "GET /a?b HTTP/1.1";
        check("https://t/a?b", &[], true, &[line, "host: t"]);
        check("https://t/a?b", &[("host", "other")], true, &[line, "host: t"]);
        check("/a?b", &[("host", "other")], true, &[line, "host: other"]);
        let pieces = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")];
        check("https://t/a?b", &pieces, true, &[line, "host: t", "cookie: a=1; b=2", "x: y"]);
        check("https://t/a?b", &[], false, &[line, "host: t", "transfer-encoding: chunked"]);
        let length = [("content-length", "3")];
        check("https://t/a?b", &length, false, &[line, "host: t", "content-length: 3"]);
    }

    #[test]
    fn limits_apply_to_the_received_fields_and_bytes() {
        let pieces = [("cookie", "a=1"), ("cookie", "b=2")];
        let (parts, header) = (parts("https://t/", &pieces), written("https://t/", &pieces, true));
        // The second piece was received as a separate field.
        let came = header.len() + "cookie: \r\n".len() - "; ".len();
        let check = |fields_max, bytes_max, expected| {
            let limits = HeaderLimits { fields_max, bytes_max };
            assert_eq!(exceeds(&parts, header.as_bytes(), &limits), expected, "{fields_max} {bytes_max}");
        };
        check(2, came, false);
        check(1, came, true);
        check(2, came - 1, true);
    }

    #[test]
    fn responses_lose_the_fields_of_their_connection() {
        let check =
            |header: &str, framing: Option<Framing>, cookie: Option<&str>, expected: &[(&str, &str)]| {
                let mut response = Response::default();
                response.parse(header.as_bytes(), &HeaderLimits::default()).unwrap();
                let translated = translate(&response, header.as_bytes(), framing, cookie).unwrap();
                let fields = translated.headers().iter();
                let fields: Vec<(&str, &str)> =
                    fields.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
                assert_eq!(
                    (translated.status().as_u16(), &fields[..]),
                    (response.status(), expected),
                    "{header}"
                );
            };
        let header = "HTTP/1.1 200 OK\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nServer: s\r\nContent-Length: 3\r\n\r\n";
        check(header, Some(Framing::Length(3)), None, &[("server", "s"), ("content-length", "3")]);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(chunked, Some(Framing::Chunked), Some("a=1"), &[("set-cookie", "a=1")]);
        let unchanged = "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n";
        check(unchanged, None, None, &[("content-length", "9")]);
        check("HTTP/1.1 204 No Content\r\n\r\n", None, None, &[]);
    }
}
