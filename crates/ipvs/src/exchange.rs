//! The responses to requests that were sent together: acknowledgements, messages, and the end of a dump.

use crate::error::ErrorKind;
use crate::message::Message;
use netlink_packet_core::NetlinkBuffer;

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const FLAG_DUMP_INTERRUPTED: u16 = 0x10;
/// Kinds below are netlink's own.
const KIND_FAMILY_MIN: u16 = 16;
/// Length of the generic netlink header.
const GENERIC_HEADER: usize = 4;

/// Requests whose responses are not complete.
#[derive(Debug)]
pub(crate) struct Exchange {
    first: u32,
    /// `errno` of each request, 0 for success, `None` before its acknowledgement.
    outcomes: Vec<Option<i32>>,
    messages: Vec<Message>,
    is_interrupted: bool,
}

impl Exchange {
    /// Begins with the sequence number of the first request.
    pub(crate) fn new(first: u32, count: usize) -> Self {
        Self { first, outcomes: vec![None; count], messages: Vec::new(), is_interrupted: false }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.outcomes.iter().all(Option::is_some)
    }

    /// A dump was interrupted by a change, so its messages are not a consistent state.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.is_interrupted
    }

    /// Returns the messages, and the `errno` of each request.
    pub(crate) fn finish(self) -> (Vec<Message>, Vec<i32>) {
        (self.messages, self.outcomes.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Reads a datagram. Messages of other requests are skipped.
    pub(crate) fn read(&mut self, mut datagram: &[u8]) -> Result<(), ErrorKind> {
        while !datagram.is_empty() {
            let buffer = NetlinkBuffer::new_checked(datagram)
                .map_err(|error| ErrorKind::Unreadable(error.to_string()))?;
            let length = buffer.length() as usize;
            self.read_message(&buffer)?;
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn read_message(&mut self, buffer: &NetlinkBuffer<&[u8]>) -> Result<(), ErrorKind> {
        let index = buffer.sequence_number().wrapping_sub(self.first) as usize;
        let Some(outcome) = self.outcomes.get_mut(index) else { return Ok(()) };
        self.is_interrupted |= buffer.flags() & FLAG_DUMP_INTERRUPTED != 0;
        let payload = buffer.payload();
        match buffer.message_type() {
            KIND_ERROR => {
                let code = payload.first_chunk().copied().map(i32::from_ne_bytes);
                let code = code.ok_or_else(|| ErrorKind::Unreadable("an error without a code".to_owned()))?;
                *outcome = Some(code.wrapping_neg());
            }
            // Linux puts the error of a dump into the last message.
            KIND_DONE => {
                let code = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                *outcome = Some(code.wrapping_neg().max(0));
            }
            kind if kind >= KIND_FAMILY_MIN => {
                let command = payload.first().copied();
                let (Some(command), Some(attributes)) = (command, payload.get(GENERIC_HEADER..)) else {
                    return Err(ErrorKind::Unreadable("a message without a command".to_owned()));
                };
                self.messages.push(Message::parse(command, attributes)?);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAG_MULTIPART: u16 = 2;

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), [0; 4], sequence.to_ne_bytes(), [0; 4]].concat();
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn error(sequence: u32, code: i32) -> Vec<u8> {
        message(KIND_ERROR, 0, sequence, &code.to_ne_bytes())
    }

    #[test]
    fn each_request_gets_the_error_of_its_sequence_number() {
        let mut exchange = Exchange::new(u32::MAX, 3);
        exchange.read(&[error(u32::MAX, 0), error(1, -libc::EEXIST)].concat()).unwrap();
        assert!(!exchange.is_complete(), "the second request has no acknowledgement");
        exchange.read(&[error(77, -libc::EPERM), error(0, -libc::ESRCH)].concat()).unwrap();
        assert!(exchange.is_complete());
        assert_eq!(exchange.finish().1, [0, libc::ESRCH, libc::EEXIST]);
    }

    #[test]
    fn an_interrupted_dump_is_noticed_at_any_message() {
        for (first, last) in [(FLAG_DUMP_INTERRUPTED, 0), (0, FLAG_DUMP_INTERRUPTED), (0, 0)] {
            let mut exchange = Exchange::new(5, 1);
            exchange.read(&message(20, FLAG_MULTIPART | first, 5, &[1, 1, 0, 0])).unwrap();
            exchange.read(&message(KIND_DONE, FLAG_MULTIPART | last, 5, &[0; 4])).unwrap();
            assert!(exchange.is_complete());
            assert_eq!(exchange.is_interrupted(), first | last != 0);
        }
    }

    #[test]
    fn cut_datagrams_never_panic() {
        let whole = [message(20, 2, 5, &[1, 1, 0, 0, 8, 0, 1, 0, 4, 0, 1, 0]), error(5, -1)].concat();
        for length in 0..whole.len() {
            let _ = Exchange::new(5, 1).read(&whole[..length]);
        }
    }
}
