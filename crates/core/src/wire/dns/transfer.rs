//! Where the transfer of a zone ends: it has many messages, and none says that it is the last.

use super::Query;
use super::record::{Record, Records, Section, question_name_end};
use super::{TYPE_IXFR, TYPE_SOA, number_at};

/// The part of SOA data after its two names: serial, refresh, retry, expire, minimum (RFC 1035, section 3.3.13).
const SOA_FIXED_BYTES: usize = 20;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The serial that the client of an incremental transfer has already.
    known: Option<[u8; 4]>,
    /// The serial of the SOA that it began with.
    serial: Option<[u8; 4]>,
    /// SOA records after that.
    further: u32,
}

impl Transfer {
    /// The transfer that a query asks for. A query for an incremental one has the SOA of the client's zone in its authority
    /// section (RFC 1995, section 3).
    #[must_use]
    pub fn of(query: &Query, message: &[u8]) -> Self {
        if query.qtype() != TYPE_IXFR {
            return Self::default();
        }
        let records = Records::new(message, usize::from(query.question_end)).map_while(Result::ok);
        let mut authority = records.filter(|record| record.section == Section::Authority);
        Self { known: authority.find_map(|record| serial_of(message, &record)), ..Self::default() }
    }

    /// One more message of it; whether that was the last one. A whole zone ends with the SOA that it began with (RFC 5936,
    /// section 2.2). Between the first and the last SOA of an incremental one there are two for each change, of the
    /// serial before it and of that after it (RFC 1995, section 4). A single SOA that is not newer than the client's says
    /// that nothing changed, and is all (RFC 1995, sections 2 and 4).
    pub fn take(&mut self, message: &[u8]) -> bool {
        let has_question = number_at(message, 4).is_some_and(|count| count > 0);
        let start = if has_question {
            question_name_end(message).map(|end| end + 4)
        } else {
            Some(super::HEADER_BYTES)
        };
        let Some(start) = start else { return false };
        let mut is_over = false;
        let is_first = self.serial.is_none();
        let mut count = 0;
        let answers = Records::new(message, start).map_while(Result::ok);
        for record in answers.take_while(|record| record.section == Section::Answer) {
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

    /// Whether the client has what the server has, or newer.
    fn is_up_to_date(&self) -> bool {
        self.known.zip(self.serial).is_some_and(|(known, serial)| !is_newer(serial, known))
    }
}

/// The serial of an SOA record; `None` of another one.
fn serial_of(message: &[u8], record: &Record) -> Option<[u8; 4]> {
    let data = message.get(record.data_at()..record.end).filter(|_| record.rtype == TYPE_SOA)?;
    let at = data.len().checked_sub(SOA_FIXED_BYTES)?;
    data[at..].first_chunk().copied()
}

/// Whether a serial is newer than another one, in serial number arithmetic (RFC 1982, section 3.2).
fn is_newer(one: [u8; 4], other: [u8; 4]) -> bool {
    (1..1 << 31).contains(&u32::from_be_bytes(one).wrapping_sub(u32::from_be_bytes(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of a transfer: SOA records by their serials, 0 another record.
    fn message(with_question: bool, records: &[u8]) -> Vec<u8> {
        let mut message = vec![0, 1, 0x84, 0, 0, u8::from(with_question), 0, records.len() as u8, 0, 0, 0, 0];
        if with_question {
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
    fn it_ends_with_the_soa_that_it_began_with() {
        check(&[&[7, 0, 0, 7]], Some(0));
        check(&[&[7, 0], &[0, 0], &[0, 7]], Some(2));
        check(&[&[7], &[0], &[7]], Some(2));
        check(&[&[7, 0, 0], &[0]], None);
        // Incremental: from 5 to 7 by 6.
        check(&[&[7, 5, 0, 6, 0], &[6, 0, 7, 0], &[7]], Some(2));
        check(&[&[7, 5, 0, 6, 0, 6, 0, 7], &[0, 7]], Some(1));
        check(&[&[7]], None);
    }

    /// A query of this type by a client that has the zone with this serial; 0 is none.
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
    fn an_incremental_one_of_which_nothing_is_newer_is_one_soa() {
        let check = |qtype: u8, has: u32, messages: &[&[u8]], over_at: Option<usize>| {
            let query = query_of(qtype, has);
            let mut transfer = Transfer::of(&Query::parse(&query).unwrap(), &query);
            let mut each = messages.iter().enumerate();
            let seen = each.position(|(at, records)| transfer.take(&message(at == 0, records)));
            assert_eq!(seen, over_at, "{qtype} {has} {messages:?}");
        };
        check(251, 7, &[&[7]], Some(0));
        check(251, 9, &[&[7]], Some(0));
        // By serial number arithmetic 2^32 - 1 is older than 7.
        check(251, u32::MAX, &[&[7]], None);
        // More is to come of what is newer, also where the first message has nothing but its SOA.
        check(251, 5, &[&[7], &[5, 6, 0], &[6, 7, 0, 7]], Some(2));
        // The whole zone instead.
        check(251, 5, &[&[7], &[0, 0], &[7]], Some(2));
        check(251, 5, &[&[7, 0, 0, 7]], Some(0));
        check(251, 7, &[&[7, 0, 0, 7]], Some(0));
        // What the client has is not said, or does not matter.
        check(251, 0, &[&[7]], None);
        check(252, 7, &[&[7], &[0, 7]], Some(1));
    }

    #[test]
    fn any_bytes_are_taken() {
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
