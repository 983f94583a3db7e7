//! Sending: bytes go to the socket, through TLS if there is TLS, and are queued if the socket does not take them.

use super::Transport;
use crate::io::buffer::Buffers;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use std::io::IoSlice;

impl Transport {
    /// Sends the bytes that the socket takes now, and queues the rest. The caller checks [`Transport::is_full`]
    /// before it sends more.
    pub(crate) fn send(&mut self, bytes: &[u8], buffers: &mut Buffers) {
        self.send_both([bytes, b""], buffers);
    }

    /// Sends two pieces, the second after the first, like [`Transport::send`].
    pub(crate) fn send_both(&mut self, pieces: [&[u8]; 2], buffers: &mut Buffers) {
        if self.tls.is_none() {
            return self.send_plain(pieces, buffers);
        }
        pieces.into_iter().for_each(|piece| self.send_sealed(piece, buffers));
    }

    fn send_sealed(&mut self, bytes: &[u8], buffers: &mut Buffers) {
        if self.is_broken || bytes.is_empty() {
            return;
        }
        if !self.is_established {
            return self.early.extend_from_slice(bytes);
        }
        if self.output.has_no_memory() {
            // The buffer for sealed records is shared; only the bytes that the socket does not take are copied.
            self.output = buffers.take_sealed();
            self.seal(bytes);
            self.flush_output(buffers);
            self.output = buffers.give_sealed(std::mem::take(&mut self.output));
        } else {
            self.seal(bytes);
            self.flush(buffers);
        }
    }

    fn send_plain(&mut self, mut pieces: [&[u8]; 2], buffers: &mut Buffers) {
        if self.is_broken || pieces.iter().all(|piece| piece.is_empty()) {
            return;
        }
        if self.pending() == 0 && self.writable {
            let Some(mut taken) = self.push(pieces, SendFlags::NOSIGNAL) else { return };
            for piece in &mut pieces {
                let of_piece = taken.min(piece.len());
                *piece = &piece[of_piece..];
                taken -= of_piece;
            }
        }
        pieces.into_iter().for_each(|piece| self.output.tail().extend_from_slice(piece));
        // The kernel reports that the socket is writable only after EAGAIN.
        self.flush_output(buffers);
    }

    /// Sends bytes without TLS, before TLS begins.
    pub(crate) fn send_raw(&mut self, bytes: &[u8], buffers: &mut Buffers) {
        debug_assert!(self.tls.is_none(), "TLS has not begun");
        self.send_plain([bytes, b""], buffers);
    }

    /// Sends bytes and returns the number that the socket took; `None` if the socket is broken.
    fn push(&mut self, pieces: [&[u8]; 2], flags: SendFlags) -> Option<usize> {
        let sent = match pieces {
            [bytes, b""] | [b"", bytes] => send(&self.socket, bytes, flags),
            pieces => {
                let mut control = SendAncillaryBuffer::default();
                sendmsg(&self.socket, &pieces.map(IoSlice::new), &mut control, flags)
            }
        };
        self.note_sent(sent)
    }

    /// Records the result of a send; returns the number of bytes that the socket took, or `None` if the socket
    /// is broken.
    pub(super) fn note_sent(&mut self, sent: Result<usize, Errno>) -> Option<usize> {
        match sent {
            Ok(taken) => {
                self.taken += taken as u64;
                Some(taken)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Some(0)
            }
            Err(Errno::INTR) => Some(0),
            Err(_) => {
                self.is_broken = true;
                // The input that the peer sent before is still readable.
                self.readable = true;
                None
            }
        }
    }

    pub(super) fn flush_output(&mut self, buffers: &mut Buffers) {
        while self.writable && !self.is_broken {
            if self.pipe.is_some() && self.before_pipe == 0 {
                self.drain_pipe(buffers);
                continue;
            }
            if self.output.is_empty() {
                break;
            }
            let output = std::mem::take(&mut self.output);
            let taken = self.push([self.before(&output), b""], self.flags());
            self.output = output;
            let Some(taken) = taken else { break };
            self.output.consume(taken);
            self.before_pipe = self.before_pipe.saturating_sub(taken);
        }
        self.output.compact();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn two_pieces_arrive_in_order_wherever_the_socket_blocks() {
        let bytes: Vec<u8> = (0..40_000_u32).map(|number| (number % 251) as u8).collect();
        for split in [0, 1, 100, 5000, 20_000, 39_999, 40_000] {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            socket2::SockRef::from(&near).set_send_buffer_size(4096).unwrap();
            let (mut transport, mut buffers) = (Transport::new(near.into()), Buffers::default());
            let (first, second) = bytes.split_at(split);
            transport.send_both([first, second], &mut buffers);
            assert!(transport.pending() > 0 && !transport.writable, "{split}");
            let mut received = Vec::new();
            while received.len() < bytes.len() {
                let mut piece = [0; 4096];
                let length = far.read(&mut piece).unwrap();
                received.extend_from_slice(&piece[..length]);
                transport.writable = true;
                transport.flush(&mut buffers);
            }
            assert!(received == bytes, "{split}");
            assert_eq!((transport.pending(), transport.taken), (0, 40_000), "{split}");
        }
    }
}
