//! The header section of a request.

use super::{
    ConnectionOptions, Field, Fields, Framing, HeaderError, HeaderLimits, HttpVersion, Kind, Span,
    Strictness, parse_version,
};
use crate::reason::{Cause, Reason};

/// A parsed header section of a request. The value can be reused for the next request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    method: Span,
    target: Span,
    authority: Option<Span>,
    path: Span,
    version: HttpVersion,
    framing: Option<Framing>,
    fields: Fields,
}

/// Target of a request (RFC 9112, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A path with its query, of the origin or the absolute form.
    Path(&'a [u8]),
    /// The query, from `?` on, of an absolute form without a path: `/` has to be written before the query
    /// (RFC 9110, section 4.2.3).
    Query(&'a [u8]),
    /// `host:port`, of CONNECT.
    Authority(&'a [u8]),
    /// `*`, of OPTIONS.
    Asterisk,
}

/// Reason why bytes are not the header section of an acceptable request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The header section is malformed.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The version is not 1.x.
    #[error("HTTP version not supported")]
    Version,
    /// The target is malformed.
    #[error("malformed request target")]
    Target,
    /// The host is missing, repeated or malformed (RFC 9112, section 3.2).
    #[error("missing, repeated or malformed Host")]
    Host,
}

impl RequestError {
    /// Returns the reason for the response to the client, with the rule that the request breaks.
    #[must_use]
    pub fn cause(self, limits: &HeaderLimits) -> Cause {
        match self {
            Self::Header(HeaderError::Coding) => Reason::CodingUnsupported.into(),
            Self::Version => Reason::VersionUnsupported.into(),
            Self::Header(error) => match error.exceeded(limits) {
                Some(limit) => Cause::new(Reason::HeaderTooLarge, limit),
                None => Cause::with(Reason::RequestInvalid, error.words()),
            },
            Self::Target => Cause::with(Reason::RequestInvalid, "malformed request target"),
            Self::Host => Cause::with(Reason::RequestInvalid, "Host is missing, repeated or malformed"),
        }
    }
}

impl Request {
    /// Parses a header section: from the start line to the empty line, as [`super::Scan`] found it.
    pub fn parse(&mut self, section: &[u8], limits: &HeaderLimits) -> Result<(), RequestError> {
        self.fields.clear(Strictness::Strict);
        let line_end = section.iter().position(|&byte| byte == b'\r').ok_or(HeaderError::LineEnd)?;
        if section.get(line_end + 1) != Some(&b'\n') {
            return Err(HeaderError::LineEnd.into());
        }
        self.parse_line(section, line_end)?;
        self.fields.parse(section, line_end + 2, limits)?;
        self.framing = self.fields.framing(self.version)?;
        // CONNECT has no content (RFC 9110, section 9.3.6), so the bytes that follow would be ambiguous.
        if self.framing.is_some() && self.method.of(section) == b"CONNECT" {
            return Err(HeaderError::ConnectBody.into());
        }
        self.check_host(section)
    }

    fn parse_line(&mut self, section: &[u8], end: usize) -> Result<(), RequestError> {
        let line = &section[..end];
        let mut spaces = line.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| at);
        let (Some(first), Some(second), None) = (spaces.next(), spaces.next(), spaces.next()) else {
            return Err(HeaderError::StartLine.into());
        };
        let method = &line[..first];
        if method.is_empty() || !method.iter().all(|&byte| super::TOKEN[usize::from(byte)]) {
            return Err(HeaderError::StartLine.into());
        }
        match parse_version(&line[second + 1..]) {
            Some(Ok(version)) => self.version = version,
            Some(Err(())) => return Err(RequestError::Version),
            None => return Err(HeaderError::StartLine.into()),
        }
        (self.method, self.target) = (Span::new(0, first), Span::new(first + 1, second));
        self.parse_target(section)
    }

    fn parse_target(&mut self, section: &[u8]) -> Result<(), RequestError> {
        let target = self.target.of(section);
        // A fragment never goes over the wire (RFC 9110, section 4.1).
        if target.is_empty() || !target.iter().all(|&byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(RequestError::Target);
        }
        let start = self.target.start as usize;
        (self.authority, self.path) = (None, Span::default());
        match (self.method.of(section), target) {
            (b"CONNECT", authority) => {
                let colon = authority.iter().rposition(|&byte| byte == b':').ok_or(RequestError::Target)?;
                let port = &authority[colon + 1..];
                if !is_host(authority) || port.is_empty() || !port.iter().all(u8::is_ascii_digit) {
                    return Err(RequestError::Target);
                }
                self.authority = Some(self.target);
            }
            (_, [b'/', ..]) => self.path = self.target,
            (b"OPTIONS", b"*") => {}
            (_, absolute) => {
                let rest = ["http://", "https://"].iter().find_map(|scheme| {
                    let (section, rest) = absolute.split_at_checked(scheme.len())?;
                    section.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
                });
                let rest = rest.ok_or(RequestError::Target)?;
                let host = start + absolute.len() - rest.len();
                let length = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
                let authority = Span::new(host, host + length);
                if length == 0 || !is_host(authority.of(section)) {
                    return Err(RequestError::Target);
                }
                self.authority = Some(authority);
                self.path = Span::new(host + length, start + absolute.len());
            }
        }
        Ok(())
    }

    /// Checks the `Host` field. HTTP/1.1 requires exactly one, even if the host of an absolute target
    /// overrides it (RFC 9112, sections 3.2 and 3.2.2).
    fn check_host(&self, section: &[u8]) -> Result<(), RequestError> {
        let mut hosts = self.fields.fields.iter().filter(|field| field.kind == Kind::Host);
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if is_host(host.value.of(section)) || host.value.of(section).is_empty() => {
                Ok(())
            }
            (None, _) if self.version == HttpVersion::Http10 => Ok(()),
            _ => Err(RequestError::Host),
        }
    }

    /// Returns the method.
    #[must_use]
    pub fn method<'a>(&self, section: &'a [u8]) -> &'a [u8] {
        self.method.of(section)
    }

    /// Returns the target.
    #[must_use]
    pub fn target<'a>(&self, section: &'a [u8]) -> Target<'a> {
        match (self.method.of(section), self.target.of(section)) {
            (b"CONNECT", authority) => Target::Authority(authority),
            (_, b"*") => Target::Asterisk,
            // The absolute form of `*` has no path (RFC 9112, section 3.2.4).
            (b"OPTIONS", _) if self.authority.is_some() && self.path.of(section).is_empty() => {
                Target::Asterisk
            }
            _ if self.path == Span::default() || self.path.of(section).is_empty() => Target::Path(b"/"),
            _ => match self.path.of(section) {
                query @ [b'?', ..] => Target::Query(query),
                path => Target::Path(path),
            },
        }
    }

    /// Returns the host, with a port if the request has one, from the target or else from `Host`. Returns an
    /// empty slice if there is no host.
    #[must_use]
    pub fn authority<'a>(&self, section: &'a [u8]) -> &'a [u8] {
        let host = || self.fields.fields.iter().find(|field| field.kind == Kind::Host);
        let span = self.authority.or_else(|| host().map(|host| host.value));
        span.map_or(b"", |span| span.of(section))
    }

    /// Returns the version.
    #[must_use]
    pub fn version(&self) -> HttpVersion {
        self.version
    }

    /// Returns the framing of the body, or `None` if there is no body.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        self.framing
    }

    /// Returns the options of `Connection`.
    #[must_use]
    pub fn connection(&self) -> ConnectionOptions {
        self.fields.connection
    }

    /// Returns true if the client keeps the connection open (RFC 9112, section 9.3).
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let options = self.fields.connection;
        !options.close && (self.version == HttpVersion::Http11 || options.keep_alive)
    }

    /// Returns all fields.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields.fields
    }

    /// Returns the fields that are passed on to the server unchanged. Excluded are the fields that concern
    /// only this connection, the host, the length and the information about the client.
    pub fn passed_on<'a>(&'a self, section: &'a [u8]) -> impl Iterator<Item = &'a Field> {
        let stays = |field: &&Field| {
            !matches!(
                field.kind,
                Kind::Hop
                    | Kind::Connection
                    | Kind::Upgrade
                    | Kind::Host
                    | Kind::ContentLength
                    | Kind::TransferEncoding
                    | Kind::Hops
                    | Kind::Forwarded
                    | Kind::ForwardedFor
                    | Kind::ForwardedProto
                    | Kind::ForwardedHost
                    | Kind::ForwardedPort
            )
        };
        self.fields.fields.iter().filter(stays).filter(|f| !self.fields.is_named_by_connection(section, f))
    }

    /// Returns the value of `Upgrade`: the protocols to which the client wants to upgrade. Returns `None` if
    /// the list includes h2c, because HTTP/2 inside a tunnel would bypass every rule.
    #[must_use]
    pub fn upgrade<'a>(&self, section: &'a [u8]) -> Option<&'a [u8]> {
        if !self.fields.connection.upgrade || self.version == HttpVersion::Http10 {
            return None;
        }
        let mut fields = self.fields.fields.iter().filter(|field| field.kind == Kind::Upgrade);
        let (value, None) = (fields.next()?.value.of(section), fields.next()) else { return None };
        let is_h2c = super::tokens(value).any(|token| token.eq_ignore_ascii_case(b"h2c"));
        (!is_h2c && !value.is_empty()).then_some(value)
    }

    /// Returns the value of a cookie (RFC 6265, section 5.4).
    #[must_use]
    pub fn cookie<'a>(&self, section: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        let cookies = self.fields.fields.iter().filter(|field| field.kind == Kind::Cookie);
        cookies.flat_map(|field| field.value.of(section).split(|&byte| byte == b';')).find_map(|pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(name)?.strip_prefix(b"=")
        })
    }

    /// Returns true if the method is idempotent: the request may be repeated (RFC 9110, section 9.2.2).
    #[must_use]
    pub fn is_idempotent(&self, section: &[u8]) -> bool {
        matches!(self.method.of(section), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
    }
}

/// Returns true for a host with or without a port. Only the characters of names, IPv4 addresses and bracketed
/// IPv6 addresses are checked (RFC 3986, section 3.2.2).
fn is_host(text: &[u8]) -> bool {
    let (host, port) = match text.iter().rposition(|&byte| byte == b':') {
        Some(colon) if !text[colon..].contains(&b']') => (&text[..colon], &text[colon + 1..]),
        _ => (text, &b""[..]),
    };
    let named = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
    let numbered = |byte: &u8| byte.is_ascii_hexdigit() || b":.%vV".contains(byte);
    let inside = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    let host_fits = match inside {
        Some(inside) => !inside.is_empty() && inside.iter().all(numbered),
        None => !host.is_empty() && host.iter().all(named),
    };
    host_fits && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::Scan;

    fn parse(text: &str) -> Result<(Request, Vec<u8>), RequestError> {
        let section = text.as_bytes().to_vec();
        let limits = HeaderLimits::default();
        let found = Scan::default().find(&section, &limits)?.expect("a whole header section");
        let section = section[found.start..found.end].to_vec();
        let mut request = Request::default();
        request.parse(&section, &limits).map(|()| (request, section))
    }

    #[test]
    fn every_form_of_target_is_parsed() {
        let check = |line: &str, host: &str, target: Target<'_>, authority: &str| {
            let (request, section) = parse(&format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
            assert_eq!(request.target(&section), target, "{line}");
            assert_eq!(request.authority(&section), authority.as_bytes(), "{line}");
        };
        check("GET /a?b=c", "x.example", Target::Path(b"/a?b=c"), "x.example");
        check("GET http://y.example:81/a", "x.example", Target::Path(b"/a"), "y.example:81");
        check("GET HTTP://[::1]", "x.example", Target::Path(b"/"), "[::1]");
        check("GET http://y.example?b=c/?", "x.example", Target::Query(b"?b=c/?"), "y.example");
        check("GET http://y.example:81?", "x.example", Target::Query(b"?"), "y.example:81");
        check("OPTIONS http://y.example", "x.example", Target::Asterisk, "y.example");
        check("OPTIONS http://y.example?a", "x.example", Target::Query(b"?a"), "y.example");
        check("OPTIONS *", "[::1]:80", Target::Asterisk, "[::1]:80");
        check("CONNECT a.example:443", "a.example", Target::Authority(b"a.example:443"), "a.example:443");
        check("GET /", "", Target::Path(b"/"), "");
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let error = |text: &str| parse(&text.replace('\n', "\r\n")).map(|_| ()).unwrap_err();
        let with = |fields: &str| error(&format!("POST / HTTP/1.1\nHost: a\n{fields}\n\n"));
        assert_eq!(with("Content-Length: 1\nContent-Length: 1"), HeaderError::RepeatedLength.into());
        assert_eq!(with("Content-Length: 1\nContent-Length: 2"), HeaderError::DifferentLengths.into());
        assert_eq!(with("Content-Length: 1, 1"), HeaderError::Length.into());
        assert_eq!(
            with("Content-Length: 1\nTransfer-Encoding: chunked"),
            HeaderError::LengthAndCoding.into()
        );
        assert_eq!(
            with("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"),
            HeaderError::RepeatedCoding.into()
        );
        assert_eq!(with("Transfer-Encoding: gzip, chunked"), HeaderError::Coding.into());
        assert_eq!(with("Host: b"), RequestError::Host);
        assert_eq!(with("X : y"), HeaderError::FieldName.into());
        assert_eq!(with(" folded"), HeaderError::Folded.into());
        assert_eq!(with("X: \u{1}"), HeaderError::FieldValue.into());
        assert_eq!(error("GET / HTTP/1.1\n\n"), RequestError::Host);
        assert_eq!(error("GET  / HTTP/1.1\nHost: a\n\n"), HeaderError::StartLine.into());
        assert_eq!(error("GET / HTTP/2.0\nHost: a\n\n"), RequestError::Version);
        for target in ["a", "?a", "http://?a", "http:///a", "http://a?#", "http://a@b?c"] {
            let text = format!("GET {target} HTTP/1.1\nHost: a\n\n");
            assert_eq!(error(&text), RequestError::Target, "{target}");
        }
        assert_eq!(error("CONNECT / HTTP/1.1\nHost: a\n\n"), RequestError::Target);
        assert_eq!(
            error("POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n"),
            RequestError::Header(HeaderError::RepeatedCoding)
        );
    }

    #[test]
    fn only_end_to_end_fields_are_passed_on() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret, Host\r\nX-Secret: 1\r\nTE: gzip\r\n\
            X-Forwarded-For: 1.2.3.4\r\nAccept: */*\r\nKeep-Alive: 5\r\nCookie: a=1; who=two\r\n\r\n";
        let (request, section) = parse(text).unwrap();
        let names: Vec<&[u8]> = request.passed_on(&section).map(|field| field.name.of(&section)).collect();
        assert_eq!(names, [b"Accept".as_slice(), b"Cookie"]);
        assert_eq!(request.cookie(&section, b"who"), Some(b"two".as_slice()));
        assert_eq!(request.cookie(&section, b"wh"), None);
        assert!(!request.keeps_alive());
    }

    #[test]
    fn upgrades_to_h2c_are_ignored() {
        let upgrade = |fields: &str| {
            let (request, section) =
                parse(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")).unwrap();
            request.upgrade(&section).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        assert_eq!(
            upgrade("Connection: keep-alive, Upgrade\r\nUpgrade: websocket").as_deref(),
            Some("websocket")
        );
        assert_eq!(upgrade("Upgrade: websocket"), None);
        assert_eq!(upgrade("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"), None);
    }
}
