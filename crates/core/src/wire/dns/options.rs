//! The options of an OPT record (RFC 6891, section 6.1.2), and their removal from a message.

use super::record::{Record, Records, pointer, records_start, skip_name};
use super::{MESSAGE_BYTES_MAX, number_at};
use std::ops::Range;

/// The client's network (RFC 7871, section 6).
pub(super) const SUBNET: u16 = 8;
/// A cookie (RFC 7873, section 4).
pub(super) const COOKIE: u16 = 10;
/// The time for which a TCP connection may be idle (RFC 7828, section 3.1).
pub(super) const KEEPALIVE: u16 = 11;
/// Padding (RFC 7830, section 3).
pub(super) const PADDING: u16 = 12;
/// Number of instances of Evener that passed a query on, in the range for local use (RFC 6891, section 9).
pub(super) const HOPS: u16 = 65_197;
/// First bytes of the data of a HOPS option, because other programs may use the same code.
pub(super) const HOPS_SIGN: [u8; 2] = *b"ev";
/// Size of the code and the length of an option.
pub(super) const OPTION_HEADER_BYTES: usize = 4;

/// An option and its location in the message.
pub(super) struct EdnsOption {
    code: u16,
    location: Range<usize>,
}

impl EdnsOption {
    /// Returns the code.
    pub(super) fn code(&self) -> u16 {
        self.code
    }

    /// Returns the offset of the hop count in a HOPS option with the sign of Evener.
    pub(super) fn hop_count_at(&self, message: &[u8]) -> Option<usize> {
        let data = message.get(self.location.start + OPTION_HEADER_BYTES..self.location.end)?;
        let has_count =
            self.code == HOPS && data.starts_with(&HOPS_SIGN) && data.len() == HOPS_SIGN.len() + 1;
        has_count.then(|| self.location.end - 1)
    }
}

/// Returns the options of an OPT. A `None` is the last item and means that the options do not fill the record
/// exactly.
pub(super) fn all(message: &[u8], opt: &Record) -> impl Iterator<Item = Option<EdnsOption>> {
    let Range { start: mut at, end } = opt.data_range();
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let option = read(&message[..end], at);
        at = option.as_ref().map_or(end, |option| option.location.end);
        Some(option)
    })
}

fn read(message: &[u8], at: usize) -> Option<EdnsOption> {
    let code = number_at(message, at)?;
    let length = number_at(message, at + 2)?;
    let end = at + OPTION_HEADER_BYTES + usize::from(length);
    (end <= message.len()).then_some(EdnsOption { code, location: at..end })
}

/// The first OPT of a message that is well-formed and not signed.
struct Found {
    opt: Record,
    /// Offsets of the compression pointers to bytes after the OPT. Those bytes move if the size of the OPT
    /// changes.
    pointers: Vec<usize>,
}

fn find(message: &[u8]) -> Option<Found> {
    let mut records = Records::new(message, records_start(message)?);
    let mut found: Option<Found> = None;
    for record in records.by_ref() {
        let record = record.ok()?;
        if record.is_signature(message) {
            return None;
        }
        match &mut found {
            None if record.is_opt_in_place() => found = Some(Found { opt: record, pointers: Vec::new() }),
            None => {}
            Some(found) => note_pointers(message, &record, found)?,
        }
    }
    if records.at() == message.len() { found } else { None }
}

/// Records the pointers in a record after the OPT. Returns `None` if a pointer refers into the OPT or the data
/// are malformed.
fn note_pointers(message: &[u8], record: &Record, found: &mut Found) -> Option<()> {
    note_pointer(message, record.range().start, found)?;
    let Some((mut at, count)) = names_in_data(record) else { return Some(()) };
    for _ in 0..count {
        note_pointer(message, at, found)?;
        at = skip_name(&message[..record.range().end], at)?;
    }
    Some(())
}

fn note_pointer(message: &[u8], at: usize, found: &mut Found) -> Option<()> {
    let Some((location, target)) = pointer(message, at) else { return Some(()) };
    let opt = found.opt.range();
    if opt.contains(&target) {
        return None;
    }
    if target >= opt.end {
        found.pointers.push(location);
    }
    Some(())
}

/// Returns the offset and the number of the names in the data of a record, or `None` for a type whose names
/// are never compressed (RFC 3597, section 4).
fn names_in_data(record: &Record) -> Option<(usize, usize)> {
    let (skipped, count) = match record.rtype() {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME.
        2..=5 | 7..=9 | 12 | 39 => (0, 1),
        // SOA, MINFO, RP.
        6 | 14 | 17 => (0, 2),
        // MX, AFSDB, RT, KX; PX; SIG; SRV.
        15 | 18 | 21 | 36 => (2, 1),
        26 => (2, 2),
        24 => (18, 1),
        33 => (6, 1),
        _ => return None,
    };
    Some((record.data_at() + skipped, count))
}

/// Removes the options for which `keep` returns false from the OPT of a message. Returns false, and leaves
/// the message as it was, if the message is malformed, has no OPT, or is signed.
pub(crate) fn retain_options(message: &mut Vec<u8>, keep: impl Fn(u16) -> bool) -> bool {
    let Some(found) = find(message) else { return false };
    let Some(options) = all(message, &found.opt).collect::<Option<Vec<_>>>() else { return false };
    let mut end = found.opt.data_at();
    for option in options.into_iter().filter(|option| keep(option.code)) {
        let length = option.location.len();
        message.copy_within(option.location, end);
        end += length;
    }
    let length = (end - found.opt.data_at()) as u16;
    message[found.opt.data_at() - 2..found.opt.data_at()].copy_from_slice(&length.to_be_bytes());
    cut(message, end..found.opt.range().end, &found.pointers);
    true
}

/// Appends an option to the OPT of a message. Returns false, and leaves the message as it was, if the message
/// is malformed or signed, has no OPT, has a record after the OPT, or would be too long.
pub(super) fn add_option(message: &mut Vec<u8>, code: u16, data: &[u8]) -> bool {
    let Some(opt) = find(message).map(|found| found.opt).filter(|opt| opt.range().end == message.len())
    else {
        return false;
    };
    let (added, length_at) = (OPTION_HEADER_BYTES + data.len(), opt.data_at() - 2);
    let length = u16::try_from(opt.data_range().len() + added);
    let Some(length) = length.ok().filter(|_| message.len() + added <= MESSAGE_BYTES_MAX) else {
        return false;
    };
    message[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&code.to_be_bytes());
    message.extend_from_slice(&(data.len() as u16).to_be_bytes());
    message.extend_from_slice(data);
    true
}

/// Removes the OPT of a message and returns the high part of the extended RCODE. Returns `None`, and leaves
/// the message as it was, if the message is malformed, has no OPT, or is signed.
pub(super) fn remove_opt(message: &mut Vec<u8>) -> Option<u8> {
    let Found { opt, pointers } = find(message)?;
    let rcode_high = message[opt.ttl_at()];
    let count = number_at(message, 10)?.saturating_sub(1);
    message[10..12].copy_from_slice(&count.to_be_bytes());
    cut(message, opt.range(), &pointers);
    Some(rcode_high)
}

/// Removes a range of bytes and adjusts `pointers`, which refer to bytes after the range.
fn cut(message: &mut Vec<u8>, range: Range<usize>, pointers: &[usize]) {
    for &location in pointers {
        if let Some(pointer) = number_at(message, location) {
            // The pointer refers to bytes beyond the range, so its lower bits hold more than the length of
            // the range.
            let moved = pointer - range.len() as u16;
            message[location..location + 2].copy_from_slice(&moved.to_be_bytes());
        }
    }
    message.drain(range);
}

#[cfg(test)]
mod tests {
    use super::super::samples::{opt, record, sample, with_records};
    use super::*;

    const OPTIONS: &[u8] = &[0, 10, 0, 2, 7, 7, 0, 8, 0, 1, 9, 0, 12, 0, 0, 0, 8, 0, 0];

    /// Returns a response with an OPT between records whose names refer to earlier bytes.
    fn response(edns: &[u8]) -> Vec<u8> {
        let mut message = sample("response");
        message = with_records(message, 3, &[record(&[2, b'n', b's', 0xc0, 16], 1, 1, 60, &[1; 4])]);
        if !edns.is_empty() {
            message = with_records(message, 3, &[edns.to_vec()]);
        }
        let named = message.len() as u16 | 0xc000;
        message = with_records(message, 3, &[record(&[1, b'a', 0xc0, 16], 1, 1, 60, &[2; 4])]);
        let [high, low] = named.to_be_bytes();
        let data = [&[0, 5, 1, b'b', high, low][..], &[high, low], &[0xc0, 12, high, low]];
        message = with_records(message, 3, &[record(&[high, low], 15, 1, 60, data[0])]);
        message = with_records(message, 3, &[record(&[0xc0, 12], 2, 1, 60, data[1])]);
        with_records(message, 3, &[record(&[0xc0, 12], 6, 1, 60, &[data[2], &[0; 20]].concat())])
    }

    #[test]
    fn an_opt_between_other_records_is_removed() {
        let mut message = response(&opt(1232, 0x0700_0000, OPTIONS));
        assert_eq!(remove_opt(&mut message), Some(7));
        assert_eq!(message, response(&[]));
        assert_eq!(remove_opt(&mut message), None);
        assert_eq!(message, response(&[]), "a message without an OPT is not changed");
    }

    #[test]
    fn options_are_removed_by_code() {
        let check = |retained: &[u16], expected: &[u8]| {
            let mut message = response(&opt(1232, 0x8000, OPTIONS));
            assert!(retain_options(&mut message, |code| retained.contains(&code)));
            assert_eq!(message, response(&opt(1232, 0x8000, expected)));
        };
        check(&[8, 10, 12], OPTIONS);
        check(&[10, 12], &[0, 10, 0, 2, 7, 7, 0, 12, 0, 0]);
        check(&[8], &[0, 8, 0, 1, 9, 0, 8, 0, 0]);
        check(&[12], &[0, 12, 0, 0]);
        check(&[], &[]);
    }

    #[test]
    fn messages_that_cannot_be_changed_stay_as_they_are() {
        let check = |message: Vec<u8>| {
            let mut changed = message.clone();
            assert!(!retain_options(&mut changed, |_| false));
            assert_eq!(remove_opt(&mut changed), None);
            assert_eq!(changed, message);
        };
        let edns = opt(1232, 0, OPTIONS);
        let with = |records: &[Vec<u8>]| with_records(sample("response"), 3, records);
        let tsig = record(&[1, b'k', 0], 250, 255, 0, &[0; 16]);
        check(with(&[edns.clone(), tsig.clone()]));
        check(with(&[tsig, edns.clone()]));
        check([&with(std::slice::from_ref(&edns))[..], &[0]].concat());
        let length = with(std::slice::from_ref(&edns)).len();
        check(with(std::slice::from_ref(&edns))[..length - 1].to_vec());
        // A name that refers to the root in the OPT, and data that end within a name.
        let [high, low] = (sample("response").len() as u16 | 0xc000).to_be_bytes();
        check(with(&[edns.clone(), record(&[high, low], 1, 1, 60, &[1; 4])]));
        check(with(&[edns, record(&[0], 2, 1, 60, &[3, b'a'])]));
        check(sample("response"));
        check(vec![]);
    }
}
