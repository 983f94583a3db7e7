//! The head of a request.

use super::{
    ConnectionSays, Field, Fields, Framing, HeadError, HeadLimits, HttpVersion, Kind, Span, Strictness,
    parse_version,
};

/// A request's head that was read; to be used for one after the other.
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

/// What a request is for (RFC 9112, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A path with its query, of the origin or the absolute form.
    Path(&'a [u8]),
    /// The query, from `?` on, of an absolute form without a path: `/` goes before it (RFC 9110, section 4.2.3).
    Query(&'a [u8]),
    /// `host:port`, of CONNECT.
    Authority(&'a [u8]),
    /// `*`, of OPTIONS.
    Asterisk,
}

/// Why bytes are not the head of a request that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not the head of a message.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Another version than 1.x.
    #[error("HTTP version not supported")]
    Version,
    /// A target that is none.
    #[error("malformed request target")]
    Target,
    /// No host, more than one, or a malformed one (RFC 9112, section 3.2).
    #[error("missing, repeated or malformed Host")]
    Host,
}

impl RequestError {
    /// The status to answer with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Head(HeadError::TooLong | HeadError::TooManyFields) => 431,
            Self::Head(HeadError::Coding) => 501,
            Self::Version => 505,
            Self::Head(_) | Self::Target | Self::Host => 400,
        }
    }
}

impl Request {
    /// Reads a head: from the start line to the empty line, as [`super::Scan`] found it.
    pub fn parse(&mut self, head: &[u8], limits: &HeadLimits) -> Result<(), RequestError> {
        self.fields.clear(Strictness::Strict);
        let line_end = head.iter().position(|&byte| byte == b'\r').ok_or(HeadError::LineEnd)?;
        if head.get(line_end + 1) != Some(&b'\n') {
            return Err(HeadError::LineEnd.into());
        }
        self.parse_line(head, line_end)?;
        self.fields.parse(head, line_end + 2, limits)?;
        self.framing = self.fields.framing(self.version)?;
        // CONNECT has no content (RFC 9110, section 9.3.6): what follows would be read in two ways.
        if self.framing.is_some() && self.method.of(head) == b"CONNECT" {
            return Err(HeadError::Length.into());
        }
        self.check_host(head)
    }

    fn parse_line(&mut self, head: &[u8], end: usize) -> Result<(), RequestError> {
        let line = &head[..end];
        let mut spaces = line.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| at);
        let (Some(first), Some(second), None) = (spaces.next(), spaces.next(), spaces.next()) else {
            return Err(HeadError::StartLine.into());
        };
        let method = &line[..first];
        if method.is_empty() || !method.iter().all(|&byte| super::TOKEN[usize::from(byte)]) {
            return Err(HeadError::StartLine.into());
        }
        match parse_version(&line[second + 1..]) {
            Some(Ok(version)) => self.version = version,
            Some(Err(())) => return Err(RequestError::Version),
            None => return Err(HeadError::StartLine.into()),
        }
        (self.method, self.target) = (Span::new(0, first), Span::new(first + 1, second));
        self.parse_target(head)
    }

    fn parse_target(&mut self, head: &[u8]) -> Result<(), RequestError> {
        let target = self.target.of(head);
        // A fragment never goes over the wire (RFC 9110, section 4.1).
        if target.is_empty() || !target.iter().all(|&byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(RequestError::Target);
        }
        let start = self.target.start as usize;
        (self.authority, self.path) = (None, Span::default());
        match (self.method.of(head), target) {
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
                    let (head, rest) = absolute.split_at_checked(scheme.len())?;
                    head.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
                });
                let rest = rest.ok_or(RequestError::Target)?;
                let host = start + absolute.len() - rest.len();
                let length = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
                let authority = Span::new(host, host + length);
                if length == 0 || !is_host(authority.of(head)) {
                    return Err(RequestError::Target);
                }
                self.authority = Some(authority);
                self.path = Span::new(host + length, start + absolute.len());
            }
        }
        Ok(())
    }

    /// HTTP/1.1 wants exactly one; that of an absolute target counts before it (RFC 9112, sections 3.2 and 3.2.2).
    fn check_host(&self, head: &[u8]) -> Result<(), RequestError> {
        let mut hosts = self.fields.fields.iter().filter(|field| field.kind == Kind::Host);
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if is_host(host.value.of(head)) || host.value.of(head).is_empty() => Ok(()),
            (None, _) if self.version == HttpVersion::Http10 => Ok(()),
            _ => Err(RequestError::Host),
        }
    }

    /// The method.
    #[must_use]
    pub fn method<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        self.method.of(head)
    }

    /// What it is for.
    #[must_use]
    pub fn target<'a>(&self, head: &'a [u8]) -> Target<'a> {
        match (self.method.of(head), self.target.of(head)) {
            (b"CONNECT", authority) => Target::Authority(authority),
            (_, b"*") => Target::Asterisk,
            // The absolute form of `*` has no path (RFC 9112, section 3.2.4).
            (b"OPTIONS", _) if self.authority.is_some() && self.path.of(head).is_empty() => Target::Asterisk,
            _ if self.path == Span::default() || self.path.of(head).is_empty() => Target::Path(b"/"),
            _ => match self.path.of(head) {
                query @ [b'?', ..] => Target::Query(query),
                path => Target::Path(path),
            },
        }
    }

    /// The host that is meant, with its port if it has one; empty when there is none.
    #[must_use]
    pub fn authority<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        let host = || self.fields.fields.iter().find(|field| field.kind == Kind::Host);
        let span = self.authority.or_else(|| host().map(|host| host.value));
        span.map_or(b"", |span| span.of(head))
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> HttpVersion {
        self.version
    }

    /// How the body is framed; `None` when there is none.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        self.framing
    }

    /// What `Connection` says.
    #[must_use]
    pub fn connection(&self) -> ConnectionSays {
        self.fields.connection
    }

    /// Whether the client would keep the connection (RFC 9112, section 9.3).
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let says = self.fields.connection;
        !says.close && (self.version == HttpVersion::Http11 || says.keep_alive)
    }

    /// All fields.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields.fields
    }

    /// The fields that go on to the server as they are: not those for this connection alone, nor the host, the length
    /// and what tells of the client.
    pub fn passed_on<'a>(&'a self, head: &'a [u8]) -> impl Iterator<Item = &'a Field> {
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
        self.fields.fields.iter().filter(stays).filter(|f| !self.fields.is_named_by_connection(head, f))
    }

    /// The protocols that the client would change to, if it asks for that. h2c is none of them: HTTP/2 behind our back
    /// would be a tunnel past every rule.
    #[must_use]
    pub fn upgrade<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        if !self.fields.connection.upgrade || self.version == HttpVersion::Http10 {
            return None;
        }
        let mut fields = self.fields.fields.iter().filter(|field| field.kind == Kind::Upgrade);
        let (value, None) = (fields.next()?.value.of(head), fields.next()) else { return None };
        let is_h2c = super::tokens(value).any(|token| token.eq_ignore_ascii_case(b"h2c"));
        (!is_h2c && !value.is_empty()).then_some(value)
    }

    /// The value of a cookie (RFC 6265, section 5.4).
    #[must_use]
    pub fn cookie<'a>(&self, head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        let cookies = self.fields.fields.iter().filter(|field| field.kind == Kind::Cookie);
        cookies.flat_map(|field| field.value.of(head).split(|&byte| byte == b';')).find_map(|pair| {
            let pair = pair.trim_ascii();
            pair.strip_prefix(name)?.strip_prefix(b"=")
        })
    }

    /// Whether a second request would do no harm (RFC 9110, section 9.2.2).
    #[must_use]
    pub fn is_idempotent(&self, head: &[u8]) -> bool {
        matches!(self.method.of(head), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
    }
}

/// A host with or without a port: names, IPv4 and bracketed IPv6 addresses have no other characters
/// (RFC 3986, section 3.2.2).
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
        let head = text.as_bytes().to_vec();
        let limits = HeadLimits::default();
        let found = Scan::default().find(&head, &limits)?.expect("a whole head");
        let head = head[found.start..found.end].to_vec();
        let mut request = Request::default();
        request.parse(&head, &limits).map(|()| (request, head))
    }

    #[test]
    fn targets_and_hosts() {
        let check = |line: &str, host: &str, target: Target<'_>, authority: &str| {
            let (request, head) = parse(&format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
            assert_eq!(request.target(&head), target, "{line}");
            assert_eq!(request.authority(&head), authority.as_bytes(), "{line}");
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
    fn what_is_ambiguous_is_refused() {
        let error = |text: &str| parse(&text.replace('\n', "\r\n")).map(|_| ()).unwrap_err();
        let with = |fields: &str| error(&format!("POST / HTTP/1.1\nHost: a\n{fields}\n\n"));
        assert_eq!(with("Content-Length: 1\nContent-Length: 1"), HeadError::Length.into());
        assert_eq!(with("Content-Length: 1\nTransfer-Encoding: chunked"), HeadError::Length.into());
        assert_eq!(with("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"), HeadError::Length.into());
        assert_eq!(with("Transfer-Encoding: gzip, chunked"), HeadError::Coding.into());
        assert_eq!(with("Host: b"), RequestError::Host);
        assert_eq!(with("X : y"), HeadError::FieldName.into());
        assert_eq!(with(" folded"), HeadError::Folded.into());
        assert_eq!(with("X: \u{1}"), HeadError::FieldValue.into());
        assert_eq!(error("GET / HTTP/1.1\n\n"), RequestError::Host);
        assert_eq!(error("GET  / HTTP/1.1\nHost: a\n\n"), HeadError::StartLine.into());
        assert_eq!(error("GET / HTTP/2.0\nHost: a\n\n"), RequestError::Version);
        for target in ["a", "?a", "http://?a", "http:///a", "http://a?#", "http://a@b?c"] {
            let text = format!("GET {target} HTTP/1.1\nHost: a\n\n");
            assert_eq!(error(&text), RequestError::Target, "{target}");
        }
        assert_eq!(error("CONNECT / HTTP/1.1\nHost: a\n\n"), RequestError::Target);
        assert_eq!(
            error("POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n"),
            RequestError::Head(HeadError::Length)
        );
    }

    #[test]
    fn only_end_to_end_fields_go_on() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret, Host\r\nX-Secret: 1\r\nTE: gzip\r\n\
            X-Forwarded-For: 1.2.3.4\r\nAccept: */*\r\nKeep-Alive: 5\r\nCookie: a=1; who=two\r\n\r\n";
        let (request, head) = parse(text).unwrap();
        let names: Vec<&[u8]> = request.passed_on(&head).map(|field| field.name.of(&head)).collect();
        assert_eq!(names, [b"Accept".as_slice(), b"Cookie"]);
        assert_eq!(request.cookie(&head, b"who"), Some(b"two".as_slice()));
        assert_eq!(request.cookie(&head, b"wh"), None);
        assert!(!request.keeps_alive());
    }

    #[test]
    fn upgrades_but_not_to_h2c() {
        let upgrade = |fields: &str| {
            let (request, head) = parse(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")).unwrap();
            request.upgrade(&head).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        assert_eq!(
            upgrade("Connection: keep-alive, Upgrade\r\nUpgrade: websocket").as_deref(),
            Some("websocket")
        );
        assert_eq!(upgrade("Upgrade: websocket"), None);
        assert_eq!(upgrade("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"), None);
    }
}
