//! Header sections of HTTP/1.1 messages (RFC 9112): their end, their lines, the framing of the body, and the
//! fields that concern only one connection. Bytes that two programs could interpret differently are refused,
//! because request smuggling is based on such differences. The exception: faults in responses that RFC 9112
//! lets a recipient repair are repaired.

mod error;
mod request;
mod response;

pub use error::HeaderError;
pub use request::{Request, RequestError, Target};
pub use response::{Response, ResponseError};

/// The limits of a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLimits {
    /// Bytes of the start line and all fields.
    pub bytes_max: usize,
    /// Number of fields.
    pub fields_max: usize,
}

impl Default for HeaderLimits {
    fn default() -> Self {
        Self { bytes_max: 32 * 1024, fields_max: 128 }
    }
}

/// Strictness with which a header section is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// For requests: anything ambiguous is refused.
    #[default]
    Strict,
    /// For responses: a line may end in LF without CR (RFC 9112, section 2.2), equal values of
    /// `Content-Length` count as one value (RFC 9110, section 8.6), and `Transfer-Encoding` overrides
    /// `Content-Length` (RFC 9112, section 6.3, item 3) and is accepted in HTTP/1.0 (RFC 9112, section 6.1).
    /// The client receives a rewritten header section. The connection is not reused if the framing was
    /// faulty.
    Tolerant,
}

/// Finds the end of a header section that arrives in pieces. Each byte is read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Number of bytes that were read.
    seen: usize,
    /// Start of the current line.
    line: usize,
    /// The message has begun: a line that is not empty was received.
    begun: bool,
    strictness: Strictness,
}

/// Extent of a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Offset of the start line: an empty line before the start line is skipped (RFC 9112, section 2.2).
    pub start: usize,
    /// Offset of the body.
    pub end: usize,
}

impl Scan {
    /// Creates a scan for the header section of a response.
    #[must_use]
    pub fn of_response() -> Self {
        Self { strictness: Strictness::Tolerant, ..Self::default() }
    }

    /// Scans the bytes that were added since the last call; `bytes` are all bytes received so far. Returns
    /// `None` if the header section is not complete.
    pub fn find(&mut self, bytes: &[u8], limits: &HeaderLimits) -> Result<Option<Found>, HeaderError> {
        while let Some(lf) = find_lf(&bytes[self.seen..]).map(|at| self.seen + at) {
            if lf >= limits.bytes_max {
                return Err(HeaderError::TooLong);
            }
            let has_cr = lf > self.line && bytes[lf - 1] == b'\r';
            if !has_cr && self.strictness == Strictness::Strict {
                return Err(HeaderError::LineEnd);
            }
            let is_empty = lf == self.line + usize::from(has_cr);
            let start = if self.begun { 0 } else { self.line };
            (self.seen, self.line) = (lf + 1, lf + 1);
            match (is_empty, self.begun) {
                (true, true) => return Ok(Some(Found { start: leading(bytes), end: lf + 1 })),
                (true, false) if start == 0 => {}
                (true, false) => return Err(HeaderError::StartLine),
                (false, _) => self.begun = true,
            }
        }
        self.seen = bytes.len();
        if bytes.len() >= limits.bytes_max { Err(HeaderError::TooLong) } else { Ok(None) }
    }

    /// Returns true if any byte of a message was received. An empty line before the message does not count.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun || self.seen > self.line
    }
}

/// Returns whether a connection begins with a request of HTTP/1 or with the preface of HTTP/2 (RFC 9113, section
/// 3.4). Returns `None` if more bytes are needed.
#[must_use]
pub fn is_http(bytes: &[u8]) -> Option<bool> {
    const METHODS: [&[u8]; 10] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"TRACE ",
        b"PRI * HTTP/2.0",
    ];
    if METHODS.iter().any(|method| bytes.starts_with(method)) {
        return Some(true);
    }
    if METHODS.iter().any(|method| method.starts_with(bytes)) { None } else { Some(false) }
}

/// Returns the length of the empty line before the message.
fn leading(bytes: &[u8]) -> usize {
    match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\n', ..] => 1,
        _ => 0,
    }
}

/// Returns the offset of the first LF, eight bytes at a time (Warren, Hacker's Delight, section 6-1).
fn find_lf(bytes: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const LF: u64 = LOW * 0x0a;
    let (words, _) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let differs = u64::from_le_bytes(*word) ^ LF;
        let zero = differs.wrapping_sub(LOW) & !differs & (LOW << 7);
        if zero != 0 {
            return Some(at * 8 + zero.trailing_zeros() as usize / 8);
        }
    }
    let done = words.len() * 8;
    bytes[done..].iter().position(|&byte| byte == b'\n').map(|at| done + at)
}

/// A range of the bytes of a header section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    /// Returns the bytes of this range in `section`, the header section that the span was made from. Returns
    /// no bytes if `section` is another header section and too short.
    #[must_use]
    pub fn of<'a>(&self, section: &'a [u8]) -> &'a [u8] {
        section.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, as received.
    pub name: Span,
    /// Value, without surrounding space.
    pub value: Span,
    /// Kind of the field.
    pub kind: Kind,
}

/// Fields that concern an intermediary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any other field.
    Other,
    /// A field that is never passed on: it concerns only this connection (RFC 9110, section 7.6.1), or its
    /// name imitates the name of another field with `_`.
    Hop,
    /// `Connection`
    Connection,
    /// `Content-Length`
    ContentLength,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Host`
    Host,
    /// `Upgrade`
    Upgrade,
    /// `Expect`
    Expect,
    /// `Cookie`
    Cookie,
    /// `Forwarded` (RFC 7239)
    Forwarded,
    /// `X-Evener-Hops`
    Hops,
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `X-Forwarded-Proto`
    ForwardedProto,
    /// `X-Forwarded-Host`
    ForwardedHost,
    /// `X-Forwarded-Port`
    ForwardedPort,
}

impl Kind {
    fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => Self::Hop,
            4 if is("host") => Self::Host,
            6 if is("cookie") => Self::Cookie,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            9 if is("forwarded") => Self::Forwarded,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::Hop,
            13 if is("x-evener-hops") => Self::Hops,
            14 if is("content_length") => Self::Hop,
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::Hop,
            // Some servers treat `_` like `-` (RFC 3875, section 4.1.18). Names with `_` could therefore
            // replace the fields about the client or the message.
            15..=17 if name.contains(&b'_') && Self::is_disguised(name) => Self::Hop,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("x-forwarded-host") => Self::ForwardedHost,
            16 if is("x-forwarded-port") => Self::ForwardedPort,
            16 if is("proxy-connection") => Self::Hop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::ForwardedProto,
            _ => Self::Other,
        }
    }
}

impl Kind {
    fn is_disguised(name: &[u8]) -> bool {
        let plain: Vec<u8> = name.iter().map(|&byte| if byte == b'_' { b'-' } else { byte }).collect();
        !matches!(Self::of(&plain), Self::Other)
    }
}

/// Framing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A number of bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection closes; responses only.
    Close,
}

/// Options of `Connection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// `close`
    pub close: bool,
    /// `keep-alive`
    pub keep_alive: bool,
    /// `upgrade`
    pub upgrade: bool,
    /// At least one other option: the name of a field that is not passed on.
    pub names: bool,
}

/// The HTTP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0: connections close by default, and there are no chunks.
    Http10,
    /// HTTP/1.1, or a later 1.x.
    #[default]
    Http11,
}

pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const fn table(is: u8) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        table[at] = match is {
            0 => {
                matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
            }
            _ => byte >= b' ' && byte != 0x7f || byte == b'\t',
        };
        at += 1;
    }
    table
}

/// Bytes of a token (RFC 9110, section 5.6.2).
static TOKEN: [bool; 256] = table(0);
/// Bytes of a value (RFC 9110, section 5.5): visible characters, spaces, tabs and anything above ASCII.
static VALUE: [bool; 256] = table(1);

/// The fields of a header section and their effect on the message.
#[derive(Clone, Debug, Default)]
struct Fields {
    fields: Vec<Field>,
    connection: ConnectionOptions,
    length: Option<u64>,
    codings: u32,
    strictness: Strictness,
    /// Fault that was repaired; `None` if there was none.
    repair: Option<&'static str>,
}

/// Returns the length of the line end (CRLF or LF) at an offset.
fn line_end(section: &[u8], at: usize, strictness: Strictness) -> Result<usize, HeaderError> {
    match (section.get(at), section.get(at + 1)) {
        (Some(b'\r'), Some(b'\n')) => Ok(2),
        (Some(b'\n'), _) if strictness == Strictness::Tolerant => Ok(1),
        (Some(b'\r' | b'\n'), _) => Err(HeaderError::LineEnd),
        _ => Err(HeaderError::FieldValue),
    }
}

impl Fields {
    fn clear(&mut self, strictness: Strictness) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, strictness, ..Self::default() };
    }

    /// Parses all field lines from offset `at` to the empty line.
    fn parse(&mut self, section: &[u8], mut at: usize, limits: &HeaderLimits) -> Result<(), HeaderError> {
        loop {
            let line = at;
            while section.get(at).is_some_and(|&byte| TOKEN[usize::from(byte)]) {
                at += 1;
            }
            match section.get(at) {
                Some(b':') if at > line => {}
                Some(b'\r' | b'\n') if at == line => {
                    let is_end = section.len() == at + line_end(section, at, self.strictness)?;
                    return if is_end { Ok(()) } else { Err(HeaderError::LineEnd) };
                }
                Some(b' ' | b'\t') if at == line => return Err(HeaderError::Folded),
                _ => return Err(HeaderError::FieldName),
            }
            if self.fields.len() == limits.fields_max {
                return Err(HeaderError::TooManyFields);
            }
            let name = Span::new(line, at);
            let first = at + 1;
            at = first;
            while section.get(at).is_some_and(|&byte| VALUE[usize::from(byte)]) {
                at += 1;
            }
            let end = line_end(section, at, self.strictness)?;
            if end == 1 {
                self.repair = Some("a line ended in LF without CR");
            }
            let value = trim(section, first, at);
            self.take(section, name, value)?;
            at += end;
        }
    }

    fn take(&mut self, section: &[u8], name: Span, value: Span) -> Result<(), HeaderError> {
        let kind = Kind::of(name.of(section));
        match kind {
            Kind::ContentLength => {
                self.take_length(value.of(section))?;
            }
            Kind::TransferEncoding => {
                self.codings += 1;
                if !value.of(section).eq_ignore_ascii_case(b"chunked") {
                    return Err(HeaderError::Coding);
                }
            }
            Kind::Connection => self.connection.read(value.of(section)),
            _ => {}
        }
        self.fields.push(Field { name, value, kind });
        Ok(())
    }

    /// Records the value of `Content-Length`. In requests a second value or a list is refused, because two
    /// programs could choose different values. In responses equal values count as one (RFC 9112, section 6.3,
    /// item 5).
    fn take_length(&mut self, value: &[u8]) -> Result<(), HeaderError> {
        if self.strictness == Strictness::Strict {
            let length = parse_length(value).ok_or(HeaderError::Length)?;
            return match self.length.replace(length) {
                None => Ok(()),
                Some(other) if other == length => Err(HeaderError::RepeatedLength),
                Some(_) => Err(HeaderError::DifferentLengths),
            };
        }
        for text in value.split(|&byte| byte == b',') {
            let length = parse_length(text.trim_ascii()).ok_or(HeaderError::Length)?;
            match self.length.replace(length) {
                None => {}
                Some(other) if other == length => self.repair = Some("Content-Length was repeated"),
                Some(_) => return Err(HeaderError::DifferentLengths),
            }
        }
        Ok(())
    }

    /// Returns true if `Connection` names this field, so that it is not passed on. Returns false for fields
    /// that define the message: they cannot be removed this way.
    fn is_named_by_connection(&self, section: &[u8], field: &Field) -> bool {
        let protected = matches!(
            field.kind,
            Kind::Host | Kind::ContentLength | Kind::TransferEncoding | Kind::Cookie | Kind::Expect
        );
        self.connection.names
            && !protected
            && self.fields.iter().filter(|other| other.kind == Kind::Connection).any(|other| {
                tokens(other.value.of(section))
                    .any(|token| token.eq_ignore_ascii_case(field.name.of(section)))
            })
    }

    /// Returns the framing, or `None` if no field declares it. Messages with both `Content-Length` and
    /// `Transfer-Encoding` are the classic form of request smuggling (RFC 9112, section 6.3, items 3 and 4).
    fn framing(&self, version: HttpVersion) -> Result<Option<Framing>, HeaderError> {
        match (self.codings, self.length) {
            (0, None) => Ok(None),
            (0, Some(length)) => Ok(Some(Framing::Length(length))),
            (1, None) if version == HttpVersion::Http11 => Ok(Some(Framing::Chunked)),
            (1, _) if self.strictness == Strictness::Tolerant => Ok(Some(Framing::Chunked)),
            (_, Some(_)) => Err(HeaderError::LengthAndCoding),
            (_, None) => Err(HeaderError::RepeatedCoding),
        }
    }

    /// Returns true if the framing was repaired. The sender may assume another end of the message, so the
    /// connection must not be reused (RFC 9112, sections 6.1 and 6.3).
    fn is_framing_faulty(&self, version: HttpVersion) -> bool {
        self.codings > 0 && (self.length.is_some() || version == HttpVersion::Http10)
    }
}

impl ConnectionOptions {
    fn read(&mut self, value: &[u8]) {
        for token in tokens(value) {
            match token {
                token if token.eq_ignore_ascii_case(b"close") => self.close = true,
                token if token.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                token if token.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                _ => self.names = true,
            }
        }
    }
}

/// Returns the members of a comma-separated list. Empty members are skipped (RFC 9110, section 5.6.1).
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Parses decimal digits (RFC 9110, section 8.6), at most 18 of them.
fn parse_length(value: &[u8]) -> Option<u64> {
    let fits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    fits.then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn trim(section: &[u8], mut start: usize, mut end: usize) -> Span {
    let is_space = |at: usize| matches!(section[at], b' ' | b'\t');
    while start < end && is_space(start) {
        start += 1;
    }
    while start < end && is_space(end - 1) {
        end -= 1;
    }
    Span::new(start, end)
}

/// Parses `HTTP/1.x`. Returns `Some(Err(()))` for other versions and `None` for other text.
fn parse_version(text: &[u8]) -> Option<Result<HttpVersion, ()>> {
    match text {
        b"HTTP/1.1" => Some(Ok(HttpVersion::Http11)),
        b"HTTP/1.0" => Some(Ok(HttpVersion::Http10)),
        // Digits only (RFC 9112, section 2.3); a higher minor version is treated as 1.1.
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => Some(Ok(HttpVersion::Http11)),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Some(Err(())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_token(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
    }

    fn is_value(byte: u8) -> bool {
        byte >= b' ' && byte != 0x7f || byte == b'\t'
    }

    #[test]
    fn the_tables_of_bytes_match_the_grammar() {
        for byte in 0..=255_u8 {
            assert_eq!(TOKEN[usize::from(byte)], is_token(byte), "{byte}");
            assert_eq!(VALUE[usize::from(byte)], is_value(byte), "{byte}");
        }
    }

    #[test]
    fn requests_are_recognized_by_their_first_bytes() {
        let check = |bytes: &[u8], expected| assert_eq!(is_http(bytes), expected, "{bytes:?}");
        for request in [&b"GET / HTTP/1.1\r\n"[..], b"OPTIONS *", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            check(request, Some(true));
        }
        for beginning in [&b""[..], b"G", b"PRI * HTT", b"CONNECT"] {
            check(beginning, None);
        }
        for other in [&b"\x16\x03\x01"[..], b"SSH-2.0", b"get / HTTP/1.1", b"GETX", b"PRI * HTTP/1"] {
            check(other, Some(false));
        }
    }

    #[test]
    fn a_line_feed_is_found_at_any_offset() {
        for length in 0..40 {
            for at in 0..length {
                let mut bytes = vec![0x8a; length];
                assert_eq!(find_lf(&bytes), None);
                bytes[at] = b'\n';
                assert_eq!(find_lf(&bytes), Some(at));
                bytes[length - 1] = b'\n';
                assert_eq!(find_lf(&bytes), Some(at));
            }
        }
    }

    #[test]
    fn the_end_is_found_for_every_size_of_pieces() {
        let limits = HeaderLimits { bytes_max: 60, ..HeaderLimits::default() };
        let check = |bytes: &[u8], expected: Result<Option<Found>, HeaderError>| {
            for size in 1..=bytes.len() {
                let mut scan = Scan::default();
                let mut outcome = Ok(None);
                for end in (size..bytes.len()).step_by(size).chain([bytes.len()]) {
                    outcome = scan.find(&bytes[..end], &limits);
                    if outcome != Ok(None) {
                        break;
                    }
                }
                assert_eq!(outcome, expected, "{size}: {:?}", String::from_utf8_lossy(bytes));
            }
        };
        check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody", Ok(Some(Found { start: 0, end: 27 })));
        check(b"\r\nGET / HTTP/1.1\r\n\r\n", Ok(Some(Found { start: 2, end: 20 })));
        check(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", Err(HeaderError::StartLine));
        check(b"GET / HTTP/1.1\nHost: a\r\n\r\n", Err(HeaderError::LineEnd));
        check(b"\nGET / HTTP/1.1\r\n", Err(HeaderError::LineEnd));
        check(b"GET / HTTP/1.1\r\n\n", Err(HeaderError::LineEnd));
        check(b"GET / HTTP/1.1\r\nHost: a\r\n", Ok(None));
        check(b"HTTP/1.1 200 OK\n\n", Err(HeaderError::LineEnd));
        check(&[b'a'; 60], Err(HeaderError::TooLong));
        check(&[b'a'; 59], Ok(None));
        check(&[&[b'a'; 58][..], b"\r\n\r\n"].concat(), Err(HeaderError::TooLong));
    }

    #[test]
    fn only_digits_are_parsed_as_a_length() {
        let check = |text: &str, expected| assert_eq!(parse_length(text.as_bytes()), expected, "{text}");
        check("0", Some(0));
        check("0012", Some(12));
        check("999999999999999999", Some(999_999_999_999_999_999));
        for wrong in ["", "-1", "+1", "1,1", "1 1", "0x1", "1.0", "1000000000000000000"] {
            check(wrong, None);
        }
    }
}
