//! The header section of a response.

use super::{
    ConnectionOptions, Field, Fields, Framing, HeaderError, HeaderLimits, HttpVersion, Kind, Span,
    Strictness, parse_version,
};

/// A parsed header section of a response. The value can be reused for the next response.
#[derive(Clone, Debug, Default)]
pub struct Response {
    status: u16,
    reason: Span,
    version: HttpVersion,
    framing: Option<Framing>,
    fields: Fields,
}

/// Reason why bytes are not the header section of a response that can be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct ResponseError(#[from] pub HeaderError);

impl Response {
    /// Parses a header section: from the status line to the empty line, as [`super::Scan::of_response`] found
    /// it.
    pub fn parse(&mut self, section: &[u8], limits: &HeaderLimits) -> Result<(), ResponseError> {
        self.fields.clear(Strictness::Tolerant);
        let end = section.iter().position(|byte| b"\r\n".contains(byte)).ok_or(HeaderError::LineEnd)?;
        let next = end + super::line_end(section, end, Strictness::Tolerant)?;
        // "HTTP/1.1 200 OK"; the reason may be empty, and some servers omit the space before an empty reason
        // (RFC 9112, section 4).
        let line = &section[..end];
        let version = line.get(..8).and_then(parse_version).and_then(Result::ok);
        self.version = version.ok_or(HeaderError::StartLine)?;
        let status = match line.get(8..12) {
            Some([b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
                [a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(*digit - b'0'))
            }
            _ => return Err(HeaderError::StartLine.into()),
        };
        self.status = status;
        self.reason = match line.get(12) {
            None => Span::new(12, 12),
            Some(b' ') if line[13..].iter().all(|&byte| super::VALUE[usize::from(byte)]) => {
                Span::new(13, end)
            }
            Some(_) => return Err(HeaderError::StartLine.into()),
        };
        self.fields.parse(section, next, limits)?;
        self.framing = self.fields.framing(self.version)?;
        Ok(())
    }

    /// Returns the status, from 100 to 999.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the reason, which may be empty.
    #[must_use]
    pub fn reason<'a>(&self, section: &'a [u8]) -> &'a [u8] {
        self.reason.of(section)
    }

    /// Returns the framing that the fields declare, even if the response has no body, or `None` if they
    /// declare none.
    #[must_use]
    pub fn declared_framing(&self) -> Option<Framing> {
        self.framing
    }

    /// Returns the framing of the body of a response to a request of this method (RFC 9112, section 6.3), or
    /// `None` if there is no body.
    #[must_use]
    pub fn framing(&self, method: &[u8]) -> Option<Framing> {
        match self.status {
            100..=199 | 204 | 304 => None,
            _ if method == b"HEAD" => None,
            _ => Some(self.framing.unwrap_or(Framing::Close)),
        }
    }

    /// Returns the options of `Connection`.
    #[must_use]
    pub fn connection(&self) -> ConnectionOptions {
        self.fields.connection
    }

    /// Returns true if the server keeps the connection open (RFC 9112, section 9.3).
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let options = self.fields.connection;
        let is_sound = !self.fields.is_framing_faulty(self.version);
        is_sound && !options.close && (self.version == HttpVersion::Http11 || options.keep_alive)
    }

    /// Returns the fault that was repaired (see [`Strictness::Tolerant`]), or `None` if there was none.
    #[must_use]
    pub fn repair(&self) -> Option<&'static str> {
        let is_faulty = self.fields.is_framing_faulty(self.version);
        match self.fields.length {
            Some(_) if is_faulty => Some("it had both Content-Length and Transfer-Encoding"),
            None if is_faulty => Some("it had Transfer-Encoding in HTTP/1.0"),
            _ => self.fields.repair,
        }
    }

    /// Returns the value of `Upgrade`, which is the new protocol if the status is 101.
    #[must_use]
    pub fn upgrade<'a>(&self, section: &'a [u8]) -> Option<&'a [u8]> {
        let field = self.fields.fields.iter().find(|field| field.kind == Kind::Upgrade)?;
        Some(field.value.of(section))
    }

    /// Returns all fields.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields.fields
    }

    /// Returns the fields that are passed on to the client unchanged.
    pub fn passed_on<'a>(&'a self, section: &'a [u8]) -> impl Iterator<Item = &'a Field> {
        let stays = |field: &&Field| {
            !matches!(
                field.kind,
                Kind::Hop | Kind::Connection | Kind::Upgrade | Kind::ContentLength | Kind::TransferEncoding
            )
        };
        self.fields.fields.iter().filter(stays).filter(|f| !self.fields.is_named_by_connection(section, f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Response, HeaderError> {
        let mut response = Response::default();
        let parsed = response.parse(text.replace('\n', "\r\n").as_bytes(), &HeaderLimits::default());
        parsed.map(|()| response).map_err(|error| error.0)
    }

    #[test]
    fn the_status_is_read_only_from_well_formed_status_lines() {
        let status = |line: &str| parse(&format!("{line}\n\n")).map(|response| response.status());
        assert_eq!(status("HTTP/1.1 200 OK"), Ok(200));
        assert_eq!(status("HTTP/1.0 404 "), Ok(404));
        assert_eq!(status("HTTP/1.1 204"), Ok(204));
        for wrong in [
            "HTTP/2 200 OK",
            "HTTP/1.1 20 OK",
            "HTTP/1.1  200",
            "HTTP/1.1 2000",
            "ICY 200 OK",
            "HTTP/1.1 099 X",
        ] {
            assert_eq!(status(wrong), Err(HeaderError::StartLine), "{wrong}");
        }
    }

    #[test]
    fn the_framing_depends_on_the_status_and_the_method() {
        let framing = |text: &str, method: &str| parse(text).unwrap().framing(method.as_bytes());
        assert_eq!(framing("HTTP/1.1 200 OK\nContent-Length: 5\n\n", "GET"), Some(Framing::Length(5)));
        assert_eq!(framing("HTTP/1.1 200 OK\nContent-Length: 5\n\n", "HEAD"), None);
        assert_eq!(framing("HTTP/1.1 304 OK\nContent-Length: 5\n\n", "GET"), None);
        assert_eq!(framing("HTTP/1.1 200 OK\nTransfer-Encoding: Chunked\n\n", "GET"), Some(Framing::Chunked));
        assert_eq!(framing("HTTP/1.1 200 OK\n\n", "GET"), Some(Framing::Close));
    }

    #[test]
    fn faults_that_rfc_9112_lets_a_recipient_repair_are_repaired() {
        let check = |section: &str, framing, stays: bool| {
            let mut response = Response::default();
            let found = super::super::Scan::of_response().find(section.as_bytes(), &HeaderLimits::default());
            let found = found.unwrap().expect("a whole header section");
            assert_eq!((found.start, found.end), (0, section.len()), "{section:?}");
            response.parse(section.as_bytes(), &HeaderLimits::default()).unwrap();
            assert_eq!(
                (response.framing(b"GET").unwrap(), response.keeps_alive()),
                (framing, stays),
                "{section:?}"
            );
            assert_eq!(response.reason(section.as_bytes()), b"OK");
            let values =
                response.passed_on(section.as_bytes()).map(|field| field.value.of(section.as_bytes()));
            assert!(values.into_iter().all(|value| !value.iter().any(|byte| b"\r\n".contains(byte))));
        };
        let (two, chunked) = (Framing::Length(2), Framing::Chunked);
        for (fields, framing, stays) in [
            ("Content-Length: 2\n", two, true),
            ("Content-Length: 2\nContent-Length: 2\n", two, true),
            ("Content-Length: 2, 2\nContent-Length: 02\n", two, true),
            ("Transfer-Encoding: chunked\n", chunked, true),
            ("Content-Length: 2\nTransfer-Encoding: chunked\n", chunked, false),
            ("Transfer-Encoding: chunked\nContent-Length: 2\nContent-Length: 2\n", chunked, false),
        ] {
            let section = format!("HTTP/1.1 200 OK\nX: y\n{fields}\n");
            check(&section, framing, stays);
            check(&section.replace('\n', "\r\n"), framing, stays);
            // Some lines end in LF, others in CRLF.
            check(&section.replace("OK\n", "OK\r\n"), framing, stays);
            check(&section.replace("\n\n", "\n\r\n"), framing, stays);
            let persistent = section.replace("\n\n", "\nConnection: keep-alive\n\n");
            check(&persistent.replace("HTTP/1.1", "HTTP/1.0"), framing, stays && framing == two);
        }
    }

    #[test]
    fn other_ambiguous_responses_are_refused() {
        let error = |fields: &str| parse(&format!("HTTP/1.1 200 OK\n{fields}\n\n")).unwrap_err();
        for (lengths, expected) in [
            ("Content-Length: 5\nContent-Length: 50", HeaderError::DifferentLengths),
            ("Content-Length: 5, 50", HeaderError::DifferentLengths),
            ("Content-Length: 5,", HeaderError::Length),
            ("Content-Length: 5, +5", HeaderError::Length),
            ("Content-Length: 5\nContent-Length:", HeaderError::Length),
            (
                "Content-Length: 5\nContent-Length: 50\nTransfer-Encoding: chunked",
                HeaderError::DifferentLengths,
            ),
            ("Transfer-Encoding: chunked\nContent-Length: x", HeaderError::Length),
            ("Transfer-Encoding: chunked\nTransfer-Encoding: chunked", HeaderError::RepeatedCoding),
        ] {
            assert_eq!(error(lengths), expected, "{lengths}");
        }
        assert_eq!(error("Transfer-Encoding: chunked, chunked"), HeaderError::Coding);
        assert_eq!(error("X: a\rb"), HeaderError::LineEnd);
        assert_eq!(error("X: a\r"), HeaderError::LineEnd);
        assert_eq!(error(" folded"), HeaderError::Folded);
        assert_eq!(error("X: a\0b"), HeaderError::FieldValue);
    }
}
