//! Where the transfer of a zone ends: it has many messages, and none says that it is the last.

use super::record::{Records, Section, question_name_end};
use super::{TYPE_SOA, number_at};

/// The part of SOA data after its two names: serial, refresh, retry, expire, minimum (RFC 1035, section 3.3.13).
const SOA_FIXED_BYTES: usize = 20;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The serial of the SOA that it began with.
    serial: Option<[u8; 4]>,
    /// SOA records after that.
    further: u32,
}

impl Transfer {
    /// One more message of it; whether that was the last one. A whole zone ends with the SOA that it began with (RFC 5936,
    /// section 2.2). Between the first and the last SOA of an incremental one there are two for each change, of the
    /// serial before it and of that after it (RFC 1995, section 4). Of a single SOA, which says that nothing changed, it
    /// cannot be told whether more is to come.
    pub fn take(&mut self, message: &[u8]) -> bool {
        let has_question = number_at(message, 4).is_some_and(|count| count > 0);
        let start = if has_question {
            question_name_end(message).map(|end| end + 4)
        } else {
            Some(super::HEADER_BYTES)
        };
        let Some(start) = start else { return false };
        let mut is_over = false;
        let answers = Records::new(message, start).map_while(Result::ok);
        for record in answers.take_while(|record| record.section == Section::Answer) {
            let data = &message[record.data_at()..record.end];
            let serial = data.len().checked_sub(SOA_FIXED_BYTES).and_then(|at| data[at..].first_chunk::<4>());
            let Some(serial) = serial.filter(|_| record.rtype == TYPE_SOA) else { continue };
            match self.serial {
                None => self.serial = Some(*serial),
                Some(first) => {
                    self.further = self.further.wrapping_add(1);
                    is_over = self.further % 2 == 1 && *serial == first;
                }
            }
        }
        is_over
    }
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
