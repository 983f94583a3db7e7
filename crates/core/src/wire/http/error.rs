//! Reasons why bytes are not a header section.

use super::HeaderLimits;
use crate::reason::Detail;

/// Reason why bytes are not a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The header section is longer than the limit.
    TooLong,
    /// The header section has more fields than the limit.
    TooManyFields,
    /// An LF without a CR before it, or a CR without an LF after it (RFC 9112, section 2.2).
    LineEnd,
    /// The start line is malformed.
    StartLine,
    /// The name of a field is not a token, or no colon follows directly (RFC 9112, section 5.1).
    FieldName,
    /// A field continues on the next line (RFC 9112, section 5.2).
    Folded,
    /// A value has a control character.
    FieldValue,
    /// A length is not a number (RFC 9112, section 6.3).
    Length,
    /// `Content-Length` occurs twice (RFC 9112, section 6.3).
    RepeatedLength,
    /// Values of `Content-Length` differ (RFC 9112, section 6.3).
    DifferentLengths,
    /// Both `Content-Length` and `Transfer-Encoding` occur (RFC 9112, section 6.3).
    LengthAndCoding,
    /// `Transfer-Encoding` occurs twice, or in HTTP/1.0 (RFC 9112, section 6.1).
    RepeatedCoding,
    /// A request of the method CONNECT has a body (RFC 9110, section 9.3.6).
    ConnectBody,
    /// A transfer coding is unknown (RFC 9112, section 6.1).
    Coding,
}

impl std::error::Error for HeaderError {}

impl std::fmt::Display for HeaderError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.words())
    }
}

impl HeaderError {
    /// Returns the limit that the header section exceeds, if it exceeds one.
    #[must_use]
    pub const fn exceeded(self, limits: &HeaderLimits) -> Option<Detail> {
        match self {
            Self::TooLong => Some(Detail::Above(limits.bytes_max as u64, "bytes")),
            Self::TooManyFields => Some(Detail::Above(limits.fields_max as u64, "fields")),
            _ => None,
        }
    }

    /// Returns a description of the rule that the header section breaks.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::TooLong => "the header section is too long",
            Self::TooManyFields => "too many header fields",
            Self::LineEnd => "a line does not end in CR LF",
            Self::StartLine => "malformed start line",
            Self::FieldName => "malformed field name",
            Self::Folded => "a field continues on the next line",
            Self::FieldValue => "a control character in a field value",
            Self::Length => "Content-Length is not a number",
            Self::RepeatedLength => "Content-Length is repeated",
            Self::DifferentLengths => "two Content-Length values that differ",
            Self::LengthAndCoding => "both Content-Length and Transfer-Encoding",
            Self::RepeatedCoding => "Transfer-Encoding is repeated, or used in HTTP/1.0",
            Self::ConnectBody => "CONNECT with a body",
            Self::Coding => "unknown transfer coding",
        }
    }
}
