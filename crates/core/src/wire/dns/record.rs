//! Iteration over the names and records of a message. Their bounds are checked; they are not decoded.

use super::{HEADER_BYTES, NAME_BYTES_MAX, TYPE_OPT, TYPE_SIG, TYPE_TSIG, number_at};
use std::ops::Range;

/// Maximum length of a label, which is also the maximum value of its first byte (RFC 1035, section 2.3.4).
pub(super) const LABEL_BYTES_MAX: u8 = 63;
/// Smallest first byte of a compression pointer (RFC 1035, section 4.1.4).
const POINTER: u8 = 0xc0;
/// Size of type, class, TTL and length of the data.
const FIXED_BYTES: usize = 10;

/// Section of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// The answer section.
    Answer,
    /// The authority section.
    Authority,
    /// The additional section.
    Additional,
}

/// Offsets of a record and its parts in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    section: Section,
    /// Start of the owner's name.
    at: usize,
    /// End of the owner's name and start of the type.
    fixed: usize,
    rtype: u16,
    /// End of the record.
    end: usize,
}

impl Record {
    /// Returns the section that contains the record.
    pub(crate) fn section(&self) -> Section {
        self.section
    }

    /// Returns the type.
    pub(crate) fn rtype(&self) -> u16 {
        self.rtype
    }

    /// Returns the location of the whole record.
    pub(crate) fn range(&self) -> Range<usize> {
        self.at..self.end
    }

    /// Returns the location of the data.
    pub(crate) fn data_range(&self) -> Range<usize> {
        self.data_at()..self.end
    }

    /// Returns the offset of the class, which is the UDP size in an OPT (RFC 6891, section 6.1.2).
    pub(crate) fn class_at(&self) -> usize {
        self.fixed + 2
    }

    /// Returns the offset of the TTL.
    pub(crate) fn ttl_at(&self) -> usize {
        self.fixed + 4
    }

    /// Returns the offset of the data.
    pub(crate) fn data_at(&self) -> usize {
        self.fixed + FIXED_BYTES
    }

    /// Returns true if the record signs its message: TSIG (RFC 8945), or a SIG that covers no type (RFC 2931,
    /// section 3).
    pub(crate) fn is_signature(&self, message: &[u8]) -> bool {
        self.rtype == TYPE_TSIG
            || self.rtype == TYPE_SIG && number_at(&message[..self.end], self.data_at()) == Some(0)
    }

    /// Returns true if the record may be the OPT of its message (RFC 6891, sections 6.1.1 and 6.1.2): in the
    /// additional section, with the root as its owner.
    pub(crate) fn is_opt_in_place(&self) -> bool {
        self.rtype == TYPE_OPT && self.section == Section::Additional && self.fixed == self.at + 1
    }
}

/// Error of a record that does not fit into its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Iterator over all records of a message. After an error it ends.
#[derive(Clone, Debug)]
pub(crate) struct Records<'a> {
    message: &'a [u8],
    at: usize,
    left: [u16; 3],
}

impl<'a> Records<'a> {
    /// Creates an iterator over the records that begin at `at`, the end of the question section. Their number
    /// is read from the header.
    pub(crate) fn new(message: &'a [u8], at: usize) -> Self {
        let left = [6, 8, 10].map(|count| number_at(message, count).unwrap_or(0));
        Self { message, at, left }
    }

    /// Returns the offset of the next record, or the end of the last one.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    fn read(&self, section: Section) -> Option<Record> {
        let fixed = skip_name(self.message, self.at)?;
        let rtype = number_at(self.message, fixed)?;
        let length = number_at(self.message, fixed + FIXED_BYTES - 2)?;
        let end = fixed + FIXED_BYTES + usize::from(length);
        (end <= self.message.len()).then_some(Record { section, at: self.at, fixed, rtype, end })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let section = self.left.iter().position(|left| *left > 0)?;
        self.left[section] -= 1;
        let section = [Section::Answer, Section::Authority, Section::Additional][section];
        let Some(record) = self.read(section) else {
            self.left = [0; 3];
            return Some(Err(Malformed));
        };
        self.at = record.end;
        Some(Ok(record))
    }
}

/// Returns the offset of the root label or of the compression pointer that ends the name at `at`. The message
/// has at least one byte at that offset.
pub(super) fn skip_labels(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        match *message.get(end)? {
            0 | POINTER.. => return Some(end),
            length @ 1..=LABEL_BYTES_MAX => end += 1 + usize::from(length),
            // Labels of other types are not in use (RFC 6891, section 5).
            _ => return None,
        }
        if end - at >= NAME_BYTES_MAX {
            return None;
        }
    }
}

/// Returns the end of the name at `at`, which may end with a pointer (RFC 1035, section 4.1.4). The pointer
/// is not followed.
pub(super) fn skip_name(message: &[u8], at: usize) -> Option<usize> {
    let end = skip_labels(message, at)?;
    let length = if message[end] == 0 { 1 } else { 2 };
    (end + length <= message.len()).then_some(end + length)
}

/// Returns the offset and the target of the pointer at the end of the name at `at`, if there is one.
pub(super) fn pointer(message: &[u8], at: usize) -> Option<(usize, usize)> {
    let end = skip_labels(message, at)?;
    let pointer = number_at(message, end)?;
    (message[end] >= POINTER).then_some((end, usize::from(pointer & 0x3fff)))
}

/// Returns the end of the name in the question section, or `None` if the name is malformed or compressed. It is
/// the first name of the message, so a pointer would have no valid target.
pub(super) fn question_section_name_end(message: &[u8]) -> Option<usize> {
    let end = skip_labels(message, HEADER_BYTES)?;
    (message[end] == 0).then_some(end + 1)
}

/// Returns true if the bytes are exactly one uncompressed name in wire form.
pub(crate) fn is_name(bytes: &[u8]) -> bool {
    skip_labels(bytes, 0).is_some_and(|end| end + 1 == bytes.len() && bytes[end] == 0)
}

/// Returns the end of the question section of a message with exactly one entry in it: name, type and class.
pub(crate) fn question_section_end(message: &[u8]) -> Option<usize> {
    let one = number_at(message, 4)? == 1;
    let end = question_section_name_end(message)? + 4;
    (one && end <= message.len()).then_some(end)
}

/// Returns the start of the records of a message with at most one entry in its question section.
pub(super) fn records_start(message: &[u8]) -> Option<usize> {
    if number_at(message, 4)? == 0 { Some(HEADER_BYTES) } else { question_section_end(message) }
}
