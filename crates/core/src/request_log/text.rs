//! Text of a request that its log line contains: the request line and some header fields, each bounded.

use std::ops::Range;

/// Most bytes of a request target.
const TARGET_BYTES_MAX: usize = 2048;
/// Most bytes of a request line that is not valid.
const MALFORMED_BYTES_MAX: usize = 256;
/// Most bytes of a header field.
const FIELD_BYTES_MAX: usize = 512;
/// Most bytes of a method, and of a version of HTTP.
const WORD_BYTES_MAX: usize = 32;
/// Marks text that was shortened.
const ELLIPSIS: &[u8] = b"...";

/// Text of a request, bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestText {
    bytes: Vec<u8>,
    /// Ends of the method, the target, the protocol, the host, the user agent and the referrer.
    ends: [u16; 6],
    /// The request line is not valid: it is stored as the protocol, and method and target are empty.
    is_malformed: bool,
}

impl RequestText {
    /// Stores a request line, without its line end. A line that is not valid is stored as it is.
    #[must_use]
    pub fn new(line: &[u8]) -> Self {
        if let Some((method, target, protocol)) = split(line) {
            return Self::of_parts(method, target, protocol);
        }
        let mut text = Self { is_malformed: true, ..Self::default() };
        text.add(2, line, MALFORMED_BYTES_MAX);
        text.end_fields()
    }

    fn of_parts(method: &[u8], target: &[u8], protocol: &[u8]) -> Self {
        let bytes = Vec::with_capacity(target.len().min(TARGET_BYTES_MAX) + 64);
        let mut text = Self { bytes, ..Self::default() };
        text.add(0, method, WORD_BYTES_MAX);
        text.add(1, target, TARGET_BYTES_MAX);
        text.add(2, protocol, WORD_BYTES_MAX);
        text.end_fields()
    }

    /// Ends a text without header fields.
    fn end_fields(mut self) -> Self {
        let end = self.ends[2];
        self.ends[3..].fill(end);
        self
    }

    /// Stores the contents of a DNS query: its type as the method, its name as the target.
    #[must_use]
    pub fn of_query(name: &str, qtype: &str) -> Self {
        Self::of_parts(qtype.as_bytes(), name.as_bytes(), b"DNS")
    }

    /// Adds header fields; an empty value means that the request has no such field.
    #[must_use]
    pub fn with_fields(mut self, host: &[u8], user_agent: &[u8], referer: &[u8]) -> Self {
        self.bytes.truncate(usize::from(self.ends[2]));
        self.add(3, host, FIELD_BYTES_MAX);
        self.add(4, user_agent, FIELD_BYTES_MAX);
        self.add(5, referer, FIELD_BYTES_MAX);
        self
    }

    /// Replaces the version of HTTP.
    #[must_use]
    pub fn with_protocol(self, protocol: &[u8]) -> Self {
        if self.is_malformed {
            return self;
        }
        let line = [self.method(), b" ", self.target(), b" ", protocol].concat();
        Self::new(&line).with_fields(self.host(), self.user_agent(), self.referer())
    }

    fn add(&mut self, index: usize, value: &[u8], bytes_max: usize) {
        if value.len() <= bytes_max {
            self.bytes.extend_from_slice(value);
        } else {
            self.bytes.extend_from_slice(&value[..bytes_max - ELLIPSIS.len()]);
            self.bytes.extend_from_slice(ELLIPSIS);
        }
        // The bounds of all parts add up to less than 64 KiB.
        self.ends[index] = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
    }

    fn part(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let range: Range<usize> = usize::from(start)..usize::from(self.ends[index]);
        self.bytes.get(range).unwrap_or_default()
    }

    pub(super) fn method(&self) -> &[u8] {
        self.part(0)
    }

    pub(super) fn target(&self) -> &[u8] {
        self.part(1)
    }

    /// Returns the version of HTTP, such as `HTTP/1.1`.
    pub(super) fn protocol(&self) -> &[u8] {
        if self.is_malformed { b"" } else { self.part(2) }
    }

    /// Returns a request line that is not valid.
    pub(super) fn malformed(&self) -> &[u8] {
        if self.is_malformed { self.part(2) } else { b"" }
    }

    pub(super) fn host(&self) -> &[u8] {
        self.part(3)
    }

    pub(super) fn user_agent(&self) -> &[u8] {
        self.part(4)
    }

    pub(super) fn referer(&self) -> &[u8] {
        self.part(5)
    }
}

/// Splits a request line into method, target and version; `None` if it is not valid.
fn split(line: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (method, target, protocol) = (parts.next()?, parts.next()?, parts.next()?);
    let is_word = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_graphic);
    let is_valid =
        parts.next().is_none() && is_word(method) && is_word(target) && protocol.starts_with(b"HTTP/");
    is_valid.then_some((method, target, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_are_split_if_they_are_valid() {
        let check = |line: &str, parts: [&str; 4]| {
            let text = RequestText::new(line.as_bytes()).with_fields(b"h", b"", b"r");
            let found = [text.method(), text.target(), text.protocol(), text.malformed()];
            assert_eq!(found, parts.map(str::as_bytes), "{line:?}");
            assert_eq!([text.host(), text.user_agent(), text.referer()], [b"h".as_slice(), b"", b"r"]);
        };
        check("GET /a HTTP/1.1", ["GET", "/a", "HTTP/1.1", ""]);
        check("CONNECT a:443 HTTP/1.1", ["CONNECT", "a:443", "HTTP/1.1", ""]);
        check("GET  HTTP/1.1", ["", "", "", "GET  HTTP/1.1"]);
        check("GET /a b HTTP/1.1", ["", "", "", "GET /a b HTTP/1.1"]);
        check("\u{16}\u{3}\u{1}", ["", "", "", "\u{16}\u{3}\u{1}"]);
        check("", ["", "", "", ""]);
    }

    #[test]
    fn the_version_can_be_replaced() {
        let text =
            RequestText::new(b"GET /a HTTP/1.1").with_fields(b"h", b"u", b"r").with_protocol(b"HTTP/2.0");
        assert_eq!(text, RequestText::new(b"GET /a HTTP/2.0").with_fields(b"h", b"u", b"r"));
    }
}
