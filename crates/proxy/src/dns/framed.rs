//! A stream socket with its received and its unsent bytes. Over streams each DNS message is preceded by its
//! length (RFC 1035, section 4.2.2).

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Bytes, and there may be more.
    Some,
    /// No bytes at present.
    Blocked,
    /// The end of the stream.
    End,
}

/// A stream socket with its buffers.
#[derive(Debug)]
pub(super) struct Framed {
    socket: OwnedFd,
    inbox: Vec<u8>,
    /// Length of the used part of the inbox.
    used: usize,
    outbox: Vec<u8>,
    /// Length of the sent part of the outbox.
    sent: usize,
    /// Messages that are queued until the server accepts the session; `None` if messages are sent immediately.
    held: Option<Vec<u8>>,
    /// Set if there may be something to receive.
    readable: bool,
}

impl Framed {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, inbox: Vec::new(), used: 0, outbox: Vec::new(), sent: 0, held: None, readable: true }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Returns whether there may be something to receive.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Receives once.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno> {
        match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => {
                self.readable = false;
                Ok(Received::End)
            }
            Ok((count, _)) => {
                self.compact();
                self.inbox.extend_from_slice(&buffer[..count]);
                Ok(Received::Some)
            }
            Err(Errno::INTR) => Ok(Received::Some),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(Received::Blocked)
            }
            Err(error) => Err(error),
        }
    }

    /// Received bytes that are not used yet.
    pub(super) fn pending(&self) -> &[u8] {
        &self.inbox[self.used..]
    }

    /// Removes the first bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.used = (self.used + count).min(self.inbox.len());
        if self.used == self.inbox.len() {
            self.inbox.clear();
            self.used = 0;
            // The memory of a large message is freed.
            if self.inbox.capacity() > crate::dns::READ_BYTES {
                self.inbox = Vec::new();
            }
        }
    }

    fn compact(&mut self) {
        if self.used > 0 {
            self.inbox.drain(..self.used);
            self.used = 0;
        }
    }

    /// Copies the next complete message into `message`, and returns whether there was one.
    pub(super) fn take_message(&mut self, message: &mut Vec<u8>) -> bool {
        let pending = self.pending();
        let Some((length, rest)) = pending.split_first_chunk::<2>() else { return false };
        let length = usize::from(u16::from_be_bytes(*length));
        let Some(found) = rest.get(..length) else { return false };
        message.clear();
        message.extend_from_slice(found);
        self.consume(2 + length);
        true
    }

    /// Queues bytes.
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    /// Queues a message, preceded by its length.
    pub(super) fn queue_message(&mut self, message: &[u8]) {
        let length = message.len().min(usize::from(u16::MAX)) as u16;
        let queue = self.held.as_mut().unwrap_or(&mut self.outbox);
        queue.extend_from_slice(&length.to_be_bytes());
        queue.extend_from_slice(&message[..usize::from(length)]);
    }

    /// Queues messages apart from the outbox until [`Framed::let_go`].
    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Moves the queued messages to the outbox. Further messages are sent immediately.
    pub(super) fn let_go(&mut self) {
        let held = self.held.take().unwrap_or_default();
        self.queue(&held);
    }

    /// Returns the number of bytes that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.outbox.len() - self.sent + self.held.as_ref().map_or(0, Vec::len)
    }

    /// Sends until the socket blocks, and returns the number of sent bytes.
    pub(super) fn flush(&mut self) -> Result<usize, Errno> {
        let mut total = 0;
        while self.sent < self.outbox.len() {
            match send(&self.socket, &self.outbox[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.sent += count;
                    total += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        if self.sent == self.outbox.len() {
            self.outbox.clear();
            self.sent = 0;
            if self.outbox.capacity() > crate::dns::READ_BYTES {
                self.outbox = Vec::new();
            }
        } else if self.sent > crate::dns::READ_BYTES {
            self.outbox.drain(..self.sent);
            self.sent = 0;
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_are_reassembled_from_single_bytes() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut framed = Framed::new(near.into());
        let bytes = [&[0, 3][..], b"abc", &[0, 0], &[1, 44], &[7; 300]].concat();
        let (mut seen, mut message, mut buffer) = (Vec::new(), Vec::new(), [0; 16]);
        for byte in &bytes {
            far.write_all(&[*byte]).unwrap();
            framed.receive(&mut buffer).unwrap();
            while framed.take_message(&mut message) {
                seen.push(message.clone());
            }
        }
        assert_eq!(seen, [b"abc".to_vec(), Vec::new(), vec![7; 300]]);
        assert!(framed.pending().is_empty());
        framed.queue_message(b"xy");
        assert_eq!((framed.flush().unwrap(), framed.waiting()), (4, 0));
        let mut sent = [0; 4];
        far.read_exact(&mut sent).unwrap();
        assert_eq!(sent, [0, 2, b'x', b'y']);
        drop(far);
        assert_eq!(framed.receive(&mut buffer).unwrap(), Received::End);
    }
}
