//! Detection of the end of a zone transfer. A transfer may have many messages, and the last one has no mark.

use super::Query;
use super::record::{Record, Records, Section, question_section_name_end};
use super::{TYPE_IXFR, TYPE_SOA, number_at};

/// Size of the data of an SOA after the two names: serial, refresh, retry, expire, minimum (RFC 1035, section
/// 3.3.13).
const SOA_FIXED_BYTES: usize = 20;

/// Progress of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The serial that the client of an incremental transfer already has.
    known: Option<[u8; 4]>,
    /// The serial of the first SOA.
    serial: Option<[u8; 4]>,
    /// Number of SOA records after the first.
    further: u32,
}

impl Transfer {
    /// Creates the progress of the transfer that a query requests. A query for an incremental transfer has the
    /// SOA of the client's zone in its authority section (RFC 1995, section 3).
    #[must_use]
    pub fn of(query: &Query, message: &[u8]) -> Self {
        if query.qtype() != TYPE_IXFR {
            return Self::default();
        }
        let records = query.records(message).map_while(Result::ok);
        let mut authority = records.filter(|record| record.section() == Section::Authority);
        Self { known: authority.find_map(|record| serial_of(message, &record)), ..Self::default() }
    }

    /// Takes the next message. Returns true if it is the last message of the transfer. The transfer of a whole
    /// zone ends with the SOA that it began with (RFC 5936, section 2.2). An incremental transfer also ends
    /// with its first SOA, and has two more SOAs for each change, with the serials before and after the change
    /// (RFC 1995, section 4). If the zone has not changed, the whole transfer is a single SOA that is not newer
    /// than the client's SOA (RFC 1995, sections 2 and 4).
    pub fn take(&mut self, message: &[u8]) -> bool {
        let has_question_section = number_at(message, 4).is_some_and(|count| count > 0);
        let start = if has_question_section {
            question_section_name_end(message).map(|end| end + 4)
        } else {
            Some(super::HEADER_BYTES)
        };
        let Some(start) = start else { return false };
        let mut is_over = false;
        let is_first = self.serial.is_none();
        let mut count = 0;
        let records = Records::new(message, start).map_while(Result::ok);
        for record in records.take_while(|record| record.section() == Section::Answer) {
            count += 1;
            let Some(serial) = serial_of(message, &record) else { continue };
            match self.serial {
                None => self.serial = Some(serial),
                Some(first) => {
                    self.further = self.further.wrapping_add(1);
                    is_over = self.further % 2 == 1 && serial == first;
                }
            }
        }
        is_over || (is_first && count == 1 && self.is_up_to_date())
    }

    /// Returns true if the client has the serial of the server or a newer one.
    fn is_up_to_date(&self) -> bool {
        self.known.zip(self.serial).is_some_and(|(known, serial)| !is_newer(serial, known))
    }
}

/// Returns the serial of an SOA record, or `None` for another record.
fn serial_of(message: &[u8], record: &Record) -> Option<[u8; 4]> {
    let data = message.get(record.data_range()).filter(|_| record.rtype() == TYPE_SOA)?;
    let at = data.len().checked_sub(SOA_FIXED_BYTES)?;
    data[at..].first_chunk().copied()
}

/// Returns true if a serial is newer than another one, in serial number arithmetic (RFC 1982, section 3.2).
fn is_newer(one: [u8; 4], other: [u8; 4]) -> bool {
    (1..1 << 31).contains(&u32::from_be_bytes(one).wrapping_sub(u32::from_be_bytes(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a message of a transfer with SOA records of these serials; 0 stands for an A record.
    fn message(with_question_section: bool, records: &[u8]) -> Vec<u8> {
        let mut message =
            vec![0, 1, 0x84, 0, 0, u8::from(with_question_section), 0, records.len() as u8, 0, 0, 0, 0];
        if with_question_section {
            message.extend_from_slice(b"\x01z\0\0\xfc\0\x01");
        }
        for &serial in records {
            let data = if serial > 0 {
                [&[0, 0, 0, 0, 0, serial][..], &[0; 16]].concat()
            } else {
                vec![192, 0, 2, 1]
            };
            let rtype = if serial > 0 { 6 } else { 1 };
            message.extend_from_slice(&[1, b'z', 0, 0, rtype, 0, 1, 0, 0, 0, 9, 0, data.len() as u8]);
            message.extend_from_slice(&data);
        }
        message
    }

    fn check(messages: &[&[u8]], over_at: Option<usize>) {
        let mut transfer = Transfer::default();
        let seen =
            messages.iter().enumerate().position(|(at, records)| transfer.take(&message(at == 0, records)));
        assert_eq!(seen, over_at, "{messages:?}");
    }

    #[test]
    fn a_transfer_ends_when_its_first_soa_is_repeated() {
        check(&[&[7, 0, 0, 7]], Some(0));
        check(&[&[7, 0], &[0, 0], &[0, 7]], Some(2));
        check(&[&[7], &[0], &[7]], Some(2));
        check(&[&[7, 0, 0], &[0]], None);
        // Incremental: from serial 5 to 6 and from 6 to 7.
        check(&[&[7, 5, 0, 6, 0], &[6, 0, 7, 0], &[7]], Some(2));
        check(&[&[7, 5, 0, 6, 0, 6, 0, 7], &[0, 7]], Some(1));
        check(&[&[7]], None);
    }

    /// Returns a query of this type by a client that has the zone with this serial; 0 if it has no zone.
    fn query_of(qtype: u8, serial: u32) -> Vec<u8> {
        let mut query =
            vec![0, 1, 0, 0, 0, 1, 0, 0, 0, u8::from(serial > 0), 0, 0, 1, b'z', 0, 0, qtype, 0, 1];
        if serial > 0 {
            query.extend_from_slice(&[1, b'z', 0, 0, 6, 0, 1, 0, 0, 0, 9, 0, 22, 0, 0]);
            query.extend_from_slice(&serial.to_be_bytes());
            query.extend_from_slice(&[0; 16]);
        }
        query
    }

    #[test]
    fn an_incremental_transfer_without_changes_has_a_single_soa() {
        let check = |qtype: u8, has: u32, messages: &[&[u8]], over_at: Option<usize>| {
            let query = query_of(qtype, has);
            let mut transfer = Transfer::of(&Query::parse(&query).unwrap(), &query);
            let mut each = messages.iter().enumerate();
            let seen = each.position(|(at, records)| transfer.take(&message(at == 0, records)));
            assert_eq!(seen, over_at, "{qtype} {has} {messages:?}");
        };
        check(251, 7, &[&[7]], Some(0));
        check(251, 9, &[&[7]], Some(0));
        // In serial number arithmetic 2^32 - 1 is older than 7.
        check(251, u32::MAX, &[&[7]], None);
        // If the serial is newer, more messages follow, even if the first message has only the SOA.
        check(251, 5, &[&[7], &[5, 6, 0], &[6, 7, 0, 7]], Some(2));
        // The server sends the whole zone instead of the changes.
        check(251, 5, &[&[7], &[0, 0], &[7]], Some(2));
        check(251, 5, &[&[7, 0, 0, 7]], Some(0));
        check(251, 7, &[&[7, 0, 0, 7]], Some(0));
        // The client's serial is missing or irrelevant.
        check(251, 0, &[&[7]], None);
        check(252, 7, &[&[7], &[0, 7]], Some(1));
    }

    #[test]
    fn malformed_messages_do_not_panic() {
        let whole = message(true, &[7, 0, 7]);
        for end in 0..whole.len() {
            Transfer::default().take(&whole[..end]);
        }
        for at in 0..whole.len() {
            let mut turned = whole.clone();
            turned[at] ^= 0xff;
            Transfer::default().take(&turned);
        }
    }
}
