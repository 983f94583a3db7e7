//! The walk over a message: names and records, each within bounds, none of them decoded.

use super::{HEADER_BYTES, NAME_BYTES_MAX, TYPE_OPT, TYPE_SIG, TYPE_TSIG, number_at};

/// The first byte of a label is its length up to this one (RFC 1035, section 2.3.4).
pub(super) const LABEL_BYTES_MAX: u8 = 63;
/// A first byte from here on begins a pointer (RFC 1035, section 4.1.4).
const POINTER: u8 = 0xc0;
/// Type, class, TTL and length of the data.
const FIXED_BYTES: usize = 10;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// Among the answers.
    Answer,
    /// In the authority section.
    Authority,
    /// In the additional section.
    Additional,
}

/// Where a record and its parts are in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) section: Section,
    /// Its owner's name begins here.
    pub(crate) at: usize,
    /// The owner's name ends and the type begins here.
    pub(crate) fixed: usize,
    pub(crate) rtype: u16,
    /// It ends here.
    pub(crate) end: usize,
}

impl Record {
    /// Where its TTL is.
    pub(crate) fn ttl_at(&self) -> usize {
        self.fixed + 4
    }

    /// Where its data begin.
    pub(crate) fn data_at(&self) -> usize {
        self.fixed + FIXED_BYTES
    }

    /// Whether it signs the message that it is in: TSIG (RFC 8945), or a SIG that covers no type (RFC 2931, section 3).
    pub(crate) fn is_signature(&self, message: &[u8]) -> bool {
        self.rtype == TYPE_TSIG
            || self.rtype == TYPE_SIG && number_at(&message[..self.end], self.data_at()) == Some(0)
    }

    /// Whether it may be the OPT of its message (RFC 6891, section 6.1.1 and 6.1.2): in the additional section, of the root.
    pub(crate) fn is_opt_in_place(&self) -> bool {
        self.rtype == TYPE_OPT && self.section == Section::Additional && self.fixed == self.at + 1
    }
}

/// A record does not fit into its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// All records of a message. After an error there are no more.
#[derive(Clone, Debug)]
pub(crate) struct Records<'a> {
    message: &'a [u8],
    at: usize,
    left: [u16; 3],
}

impl<'a> Records<'a> {
    /// The records from `at` on, where the question ends, as many as the header says.
    pub(crate) fn new(message: &'a [u8], at: usize) -> Self {
        let left = [6, 8, 10].map(|count| number_at(message, count).unwrap_or(0));
        Self { message, at, left }
    }

    /// Where the next record begins; after the last one, where the records end.
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

/// Where the labels of the name at `at` end: at the root or at a pointer. That byte is in the message.
pub(super) fn skip_labels(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        match *message.get(end)? {
            0 | POINTER.. => return Some(end),
            length @ 1..=LABEL_BYTES_MAX => end += 1 + usize::from(length),
            // RFC 6891, section 5: labels of other kinds are not used.
            _ => return None,
        }
        if end - at >= NAME_BYTES_MAX {
            return None;
        }
    }
}

/// Where the name at `at` ends, which may end by a pointer (RFC 1035, section 4.1.4). The pointer is not followed.
pub(super) fn skip_name(message: &[u8], at: usize) -> Option<usize> {
    let end = skip_labels(message, at)?;
    let length = if message[end] == 0 { 1 } else { 2 };
    (end + length <= message.len()).then_some(end + length)
}

/// The place of the pointer that the name at `at` ends by, if it does, and where it points.
pub(super) fn pointer(message: &[u8], at: usize) -> Option<(usize, usize)> {
    let end = skip_labels(message, at)?;
    let pointer = number_at(message, end)?;
    (message[end] >= POINTER).then_some((end, usize::from(pointer & 0x3fff)))
}

/// Where the name of the question ends; none if it is not well-formed or is compressed: there is nothing before it that it
/// could point at.
pub(super) fn question_name_end(message: &[u8]) -> Option<usize> {
    let end = skip_labels(message, HEADER_BYTES)?;
    (message[end] == 0).then_some(end + 1)
}

/// Whether bytes are a name in wire form and nothing else.
pub(crate) fn is_name(bytes: &[u8]) -> bool {
    skip_labels(bytes, 0).is_some_and(|end| end + 1 == bytes.len() && bytes[end] == 0)
}

/// Where the question of a message with exactly one ends: name, type and class.
pub(crate) fn question_end(message: &[u8]) -> Option<usize> {
    let one = number_at(message, 4)? == 1;
    let end = question_name_end(message)? + 4;
    (one && end <= message.len()).then_some(end)
}

/// Where the records of a message with at most one question begin.
pub(super) fn records_start(message: &[u8]) -> Option<usize> {
    if number_at(message, 4)? == 0 { Some(HEADER_BYTES) } else { question_end(message) }
}
