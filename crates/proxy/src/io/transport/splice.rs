//! Bytes that move from one socket to another by splice(2), through a pipe and without a copy in memory. The
//! pipe belongs to the sink while there are bytes in it. Only sockets without TLS can be spliced.

use super::{Sending, Transport};
use crate::io::buffer::{Buffer, Buffers};
use crate::io::pipe::{Following, Pipe};
use crate::io::relay::{End, SPLICE_BYTES_MIN};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// Number of bytes still to come from which they are spliced: for fewer bytes, copying costs less.
pub(crate) const BULK_BYTES_MIN: u64 = 64 * 1024;

impl Transport {
    /// Returns whether the next `length` bytes of `source` are better spliced to this transport than copied:
    /// there are many, they arrive fast, no earlier byte waits in memory, and no side uses TLS.
    pub(crate) fn is_spliced_from(&self, source: &Self, length: u64) -> bool {
        let has_bulk = source.is_bulk && source.readable && !source.must_confirm_by_recv;
        let is_direct = source.tls.is_none() && source.input.is_empty() && source.end.is_none();
        let is_open = self.tls.is_none() && !self.is_broken && self.sending == Sending::Open;
        length >= BULK_BYTES_MIN && has_bulk && is_direct && is_open && self.pipe.is_none()
    }

    /// Receives at most `limit` bytes into a pipe, for [`Transport::queue_pipe`]. Returns `None` if there are no
    /// bytes, or if they must be received by [`Transport::receive`].
    pub(crate) fn receive_pipe(&mut self, limit: u64, buffers: &mut Buffers) -> Option<Box<Pipe>> {
        let Ok(mut pipe) = buffers.take_pipe() else {
            // Without a pipe the bytes are copied.
            self.is_bulk = false;
            return None;
        };
        match pipe.fill_up_to(&self.socket, usize::try_from(limit).unwrap_or(usize::MAX)) {
            Ok(0) | Err(Errno::AGAIN) => self.must_confirm_by_recv = true,
            Ok(moved) => {
                self.is_bulk = moved >= SPLICE_BYTES_MIN;
                return Some(pipe);
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                self.readable = false;
                self.end = Some(End::Error(error));
            }
        }
        buffers.give_pipe(pipe);
        None
    }

    /// Queues bytes without sending them; [`Transport::flush`] sends them together with the bytes that follow.
    pub(crate) fn queue(&mut self, bytes: &[u8]) {
        debug_assert!(self.tls.is_none(), "bytes are queued for splicing only");
        self.output.tail().extend_from_slice(bytes);
    }

    /// Queues the bytes of a pipe after the bytes queued before. One pipe can be queued at a time.
    pub(crate) fn queue_pipe(&mut self, pipe: Box<Pipe>) {
        debug_assert!(self.pipe.is_none(), "see `is_spliced_from`");
        (self.before_pipe, self.pipe) = (self.output.len(), Some(pipe));
    }

    /// Returns the number of bytes in the pipe.
    pub(super) fn spliced_bytes(&self) -> usize {
        self.pipe.as_ref().map_or(0, |pipe| pipe.len())
    }

    /// Returns the bytes of `output` that are sent next: those before the pipe, if there is a pipe.
    pub(super) fn before<'a>(&self, output: &'a Buffer) -> &'a [u8] {
        let length = if self.pipe.is_some() { self.before_pipe } else { output.len() };
        &output.unread()[..length.min(output.len())]
    }

    /// Returns the flags for sending the bytes of the output: if a pipe follows, the kernel waits for its bytes.
    pub(super) fn flags(&self) -> SendFlags {
        if self.pipe.is_some() { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL }
    }

    /// Sends bytes of the pipe. Gives the pipe back when it is empty.
    pub(super) fn drain_pipe(&mut self, buffers: &mut Buffers) {
        let Some(mut pipe) = self.pipe.take() else { return };
        let following = if self.output.is_empty() { Following::Nothing } else { Following::Bytes };
        let sent = pipe.drain_before(&self.socket, following);
        // A pipe with bytes that moves none would keep the worker here.
        self.note_sent(sent.and_then(|sent| if sent == 0 { Err(Errno::PIPE) } else { Ok(sent) }));
        if pipe.is_empty() || self.is_broken {
            buffers.give_pipe(pipe);
        } else {
            self.pipe = Some(pipe);
        }
    }

    /// Closes the pipe: its bytes have no receiver.
    pub(super) fn drop_pipe(&mut self) {
        (self.pipe, self.before_pipe) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::transport::Received;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A source with a fast sender, and a sink, with the peers of both.
    struct Fixture {
        source: Transport,
        sink: Transport,
        buffers: Buffers,
        sender: UnixStream,
        receiver: UnixStream,
    }

    fn pair() -> (UnixStream, Transport) {
        let (far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (far, Transport::new(near.into()))
    }

    impl Fixture {
        fn new() -> Self {
            let ((sender, mut source), (receiver, sink)) = (pair(), pair());
            (source.readable, source.is_bulk) = (true, true);
            Self { source, sink, buffers: Buffers::default(), sender, receiver }
        }

        /// Splices at most `limit` bytes that the sender sent, between two queued pieces.
        fn splice(&mut self, limit: u64, before: &[u8], after: &[u8]) -> Option<usize> {
            let pipe = self.source.receive_pipe(limit, &mut self.buffers)?;
            let length = pipe.len();
            self.sink.queue(before);
            self.sink.queue_pipe(pipe);
            self.sink.queue(after);
            self.sink.flush(&mut self.buffers);
            Some(length)
        }

        fn received(&mut self, count: usize) -> String {
            let mut bytes = vec![0; count];
            self.receiver.read_exact(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        }
    }

    #[test]
    fn many_bytes_are_spliced_after_a_full_read() {
        let check = |length: u64, change: fn(&mut Fixture), expected: bool| {
            let mut fixture = Fixture::new();
            change(&mut fixture);
            assert_eq!(fixture.sink.is_spliced_from(&fixture.source, length), expected, "{length}");
        };
        check(BULK_BYTES_MIN, |_| {}, true);
        check(u64::MAX, |_| {}, true);
        check(BULK_BYTES_MIN - 1, |_| {}, false);
        check(BULK_BYTES_MIN, |fixture| fixture.source.is_bulk = false, false);
        check(BULK_BYTES_MIN, |fixture| fixture.source.readable = false, false);
        check(BULK_BYTES_MIN, |fixture| fixture.source.input.tail().push(1), false);
        check(BULK_BYTES_MIN, |fixture| fixture.source.stop_receiving(), false);
        check(BULK_BYTES_MIN, |fixture| fixture.sink.break_off(), false);
        check(BULK_BYTES_MIN, |fixture| fixture.sink.finish(&mut Buffers::default()), false);
    }

    #[test]
    fn a_receive_that_fills_the_buffer_begins_bulk_and_a_shorter_one_ends_it() {
        let mut fixture = Fixture::new();
        let Fixture { source, sender, buffers, .. } = &mut fixture;
        for (length, expected) in [(65_536, true), (65_535, false), (65_536, true), (1, false)] {
            sender.write_all(&vec![7; length]).unwrap();
            source.readable = true;
            assert_eq!(source.receive(buffers), Received::Some);
            assert_eq!((source.unread().len(), source.is_bulk), (length, expected));
            source.consume(usize::MAX);
            source.settle(buffers);
        }
    }

    #[test]
    fn bytes_after_the_limit_stay_in_the_source() {
        let mut fixture = Fixture::new();
        fixture.sender.write_all(b"bodynext").unwrap();
        assert_eq!(fixture.splice(4, b"", b""), Some(4));
        assert_eq!(fixture.received(4), "body");
        assert!(!fixture.source.is_bulk, "a small splice ends the bulk mode");
        assert_eq!(fixture.source.receive(&mut fixture.buffers), Received::Some);
        assert_eq!(fixture.source.unread(), b"next");
        assert_eq!(fixture.buffers.shed_pipes(), 2, "the empty pipe was given back");
    }

    #[test]
    fn a_blocked_sink_gets_the_queued_bytes_around_the_pipe_in_order() {
        let mut fixture = Fixture::new();
        fixture.sink.writable = false;
        fixture.sink.send(b"earlier ", &mut fixture.buffers);
        fixture.sender.write_all(b"spliced").unwrap();
        assert_eq!(fixture.splice(100, b"before ", b" after"), Some(7));
        fixture.sink.send(b" later", &mut fixture.buffers);
        let expected = "earlier before spliced after later";
        assert_eq!((fixture.sink.pending(), fixture.sink.is_full()), (expected.len(), true));
        fixture.sink.finish(&mut fixture.buffers);
        assert!(!fixture.sink.is_finished(), "the end comes after the bytes");
        fixture.sink.writable = true;
        fixture.sink.flush(&mut fixture.buffers);
        assert_eq!(fixture.received(expected.len()), expected);
        assert_eq!((fixture.sink.pending(), fixture.sink.is_full()), (0, false));
        assert_eq!((fixture.sink.is_finished(), fixture.sink.taken), (true, expected.len() as u64));
        assert_eq!(fixture.buffers.shed_pipes(), 2);
    }

    #[test]
    fn a_sink_that_blocks_in_the_middle_of_a_pipe_continues_there() {
        let mut fixture = Fixture::new();
        let sent: String = (0..16_000).map(|number| format!("{number:05} ")).collect();
        socket2::SockRef::from(&fixture.sink.socket).set_send_buffer_size(4096).unwrap();
        fixture.sender.write_all(sent.as_bytes()).unwrap();
        let moved = fixture.splice(u64::MAX, b"[", b"]").unwrap();
        assert!(fixture.sink.spliced_bytes() > 0 && !fixture.sink.writable);
        let mut received = String::new();
        while fixture.sink.pending() > 0 {
            let taken = moved + 2 - fixture.sink.pending() - received.len();
            received += &fixture.received(taken);
            fixture.sink.writable = true;
            fixture.sink.flush(&mut fixture.buffers);
        }
        received += &fixture.received(moved + 2 - received.len());
        assert!(received == format!("[{}]", &sent[..moved]));
    }

    #[test]
    fn the_bytes_for_a_broken_sink_are_closed_with_their_pipe() {
        let mut fixture = Fixture::new();
        fixture.sender.write_all(b"secret").unwrap();
        drop(fixture.receiver);
        let pipe = fixture.source.receive_pipe(100, &mut fixture.buffers).unwrap();
        fixture.sink.queue_pipe(pipe);
        fixture.sink.flush(&mut fixture.buffers);
        assert_eq!((fixture.sink.is_broken(), fixture.sink.pending()), (true, 0));
        assert_eq!(fixture.buffers.shed_pipes(), 0);
    }

    #[test]
    fn a_released_transport_gives_no_filled_pipe_back() {
        let mut fixture = Fixture::new();
        fixture.sink.writable = false;
        fixture.sender.write_all(b"secret").unwrap();
        fixture.splice(100, b"", b"").unwrap();
        fixture.sink.release(&mut fixture.buffers);
        assert_eq!((fixture.sink.pending(), fixture.buffers.shed_pipes()), (0, 0));
    }

    #[test]
    fn a_receive_follows_a_splice_that_moved_nothing() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.splice(100, b"", b""), None);
        assert!(!fixture.sink.is_spliced_from(&fixture.source, u64::MAX));
        assert_eq!(fixture.source.receive(&mut fixture.buffers), Received::Nothing);
        fixture.source.readable = true;
        assert!(fixture.sink.is_spliced_from(&fixture.source, u64::MAX), "no byte waits; bulk continues");
        drop(fixture.sender);
        assert_eq!(fixture.source.receive_pipe(100, &mut fixture.buffers).map(|pipe| pipe.len()), None);
        assert_eq!(fixture.source.end(), None, "only a receive finds the end");
        assert_eq!(fixture.source.receive(&mut fixture.buffers), Received::Nothing);
        assert_eq!(fixture.source.end(), Some(End::Fin));
        assert_eq!(fixture.buffers.shed_pipes(), 2);
    }
}
