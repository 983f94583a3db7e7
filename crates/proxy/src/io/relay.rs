//! Relay: moves bytes from one socket to another, in one direction, as many bytes as both sockets allow without
//! waiting.
//!
//! Bytes are copied through one buffer of the worker; only bytes that a blocked sink does not take are stored
//! for their connection. When a read fills the whole buffer, the direction changes to splice(2), which costs
//! less for bulk and more for small messages, and changes back when a splice moves little. No byte is lost at
//! the end: a direction ends only when its sink has taken everything from its source.

mod passing;

pub use passing::{PassedDirection, PassedPipe};

use crate::context::registry::Readiness;
use crate::io::pipe::{Pipe, PipePool};
use crate::io::request_log::Tap;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Size of the buffer that all connections of a worker share.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;
/// A splice that moves less than this ends the bulk mode.
pub(super) const SPLICE_BYTES_MIN: usize = 16 * 1024;
/// Number of rounds before the worker handles another connection.
const ROUNDS_MAX: usize = 16;

/// Most bytes that are read from a socket before it is closed.
const DRAIN_BYTES_MAX: usize = 1 << 20;

/// Memory that all connections of a worker share.
#[derive(Debug)]
pub(crate) struct Scratch {
    buffer: Box<[u8]>,
    pipes: PipePool,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES].into(), pipes: PipePool::default() }
    }

    /// Closes all empty pipes; returns the number of their descriptors.
    pub(crate) fn shed_pipes(&mut self) -> u32 {
        self.pipes.shed()
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    /// The source may have something to read.
    readable: bool,
    /// The sink may take bytes.
    writable: bool,
    /// An event announced the end of the source, so reading continues even after a short read.
    hung_up: bool,
    /// The sink is closed; bytes from the source are discarded.
    is_discarding: bool,
    /// The source ended, and the end was passed to the sink.
    is_done: bool,
    /// Bytes are moved by splice(2).
    bulk: bool,
    /// The last splice moved nothing: no bytes were left, or the source had ended. A receive must follow,
    /// because an urgent mark (RFC 9293, section 3.8.5) in the stream also makes every splice move nothing.
    must_confirm_by_recv: bool,
    /// Bytes that a blocked sink did not take, from `offset` on.
    spill: Vec<u8>,
    offset: usize,
    /// Boxed, because most directions never have a pipe and a connection should be small.
    pipe: Option<Box<Pipe>>,
    end: Option<End>,
}

/// End of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// An orderly end.
    Fin,
    /// A reset, or another error.
    Error(Errno),
}

/// Result of pumping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// The source or the sink is not ready.
    Waiting,
    /// More bytes can be moved, after the worker has handled other connections.
    More,
    /// The source ended, and the sink has everything.
    Ended(End),
    /// The sink is closed.
    SinkClosed(Errno),
}

/// Reads and discards the bytes that a socket has received, up to [`DRAIN_BYTES_MAX`], before the socket is
/// closed. With unread bytes the close would be a reset, which can destroy bytes that its peer has not read yet
/// (RFC 9293, section 3.10.4).
pub(crate) fn drain(socket: &OwnedFd) {
    let mut piece = [0; 16 * 1024];
    for _ in 0..DRAIN_BYTES_MAX / piece.len() {
        match recv(socket, &mut piece, RecvFlags::DONTWAIT) {
            Ok((1.., _)) | Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

impl Direction {
    /// Creates a direction whose sink takes bytes from the beginning, as an accepted socket does.
    pub(crate) fn to_writable_sink() -> Self {
        Self { writable: true, ..Self::default() }
    }

    /// Records an event of the source.
    pub(crate) fn on_source_event(&mut self, ready: Readiness) {
        self.readable |= ready.readable || ready.ended;
        self.hung_up |= ready.ended;
    }

    /// Records an event of the sink.
    pub(crate) fn on_sink_event(&mut self, ready: Readiness) {
        self.writable |= ready.writable || ready.error;
    }

    /// Records that the sink was connected: it takes bytes.
    pub(crate) fn on_sink_connected(&mut self) {
        self.writable = true;
    }

    /// Records that the source has bytes that no event will report again.
    pub(crate) fn expect_unread_bytes(&mut self) {
        self.readable = true;
    }

    /// Returns whether the source ended, and the end was passed to the sink.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Records that the end of the source was passed to the sink.
    pub(crate) fn set_done(&mut self) {
        self.is_done = true;
    }

    /// Moves as many bytes as possible, and logs them to `tap`. Returns the number of bytes that the sink took.
    pub(crate) fn pump(
        &mut self,
        source: &OwnedFd,
        sink: &OwnedFd,
        scratch: &mut Scratch,
        tap: Option<Tap<'_>>,
    ) -> (u64, Pumped) {
        let mut moved = 0;
        for _ in 0..ROUNDS_MAX {
            match self.round(source, sink, scratch, tap) {
                Ok(bytes) => moved += bytes as u64,
                Err(outcome) => return (moved, outcome),
            }
        }
        (moved, Pumped::More)
    }

    /// Returns whether the sink has taken everything that was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.spill.is_empty() && self.pipe.is_none()
    }

    /// Returns the number of bytes that the sink still has to take.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.spill.len() - self.offset + self.pipe.as_ref().map_or(0, |pipe| pipe.len())
    }

    fn round(
        &mut self,
        source: &OwnedFd,
        sink: &OwnedFd,
        scratch: &mut Scratch,
        tap: Option<Tap<'_>>,
    ) -> Result<usize, Pumped> {
        if !self.is_empty() {
            return self.flush(sink, &mut scratch.pipes);
        }
        if let Some(end) = self.end {
            return Err(Pumped::Ended(end));
        }
        if !self.readable {
            return Err(Pumped::Waiting);
        }
        // Spliced bytes cannot be logged.
        if self.bulk && !self.is_discarding && !self.must_confirm_by_recv && tap.is_none() {
            self.fill_pipe(source, &mut scratch.pipes)
        } else {
            self.copy(source, sink, scratch, tap)
        }
    }

    /// Sends queued bytes to the sink.
    fn flush(&mut self, sink: &OwnedFd, pipes: &mut PipePool) -> Result<usize, Pumped> {
        if !self.writable {
            return Err(Pumped::Waiting);
        }
        let taken = match &mut self.pipe {
            Some(pipe) => pipe.drain(sink),
            None => send(sink, &self.spill[self.offset..], SendFlags::NOSIGNAL),
        };
        let taken = taken.map_err(|error| self.sink_failed(error))?;
        match self.pipe.take_if(|pipe| pipe.is_empty()) {
            Some(pipe) => pipes.give(pipe),
            None if self.pipe.is_none() => self.consume(taken),
            None => {}
        }
        Ok(taken)
    }

    fn consume(&mut self, taken: usize) {
        self.offset += taken;
        if self.offset == self.spill.len() {
            (self.spill, self.offset) = (Vec::new(), 0);
        }
    }

    fn fill_pipe(&mut self, source: &OwnedFd, pipes: &mut PipePool) -> Result<usize, Pumped> {
        let Ok(mut pipe) = pipes.take() else {
            // Without a pipe the bytes are copied.
            self.bulk = false;
            return Ok(0);
        };
        match pipe.fill(source) {
            Ok(0) | Err(Errno::AGAIN) => self.must_confirm_by_recv = true,
            Ok(moved) => {
                self.bulk = moved >= SPLICE_BYTES_MIN;
                self.pipe = Some(pipe);
                return Ok(0);
            }
            Err(error) => self.source_failed(error),
        }
        pipes.give(pipe);
        Ok(0)
    }

    fn copy(
        &mut self,
        source: &OwnedFd,
        sink: &OwnedFd,
        scratch: &mut Scratch,
        tap: Option<Tap<'_>>,
    ) -> Result<usize, Pumped> {
        self.must_confirm_by_recv = false;
        let buffer = &mut scratch.buffer[..];
        let read = match recv(source, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => {
                self.end = Some(End::Fin);
                return Ok(0);
            }
            Ok((read, _)) => read,
            Err(error) => {
                self.source_failed(error);
                return Ok(0);
            }
        };
        if let Some(tap) = tap.filter(|_| !self.is_discarding) {
            tap.piece(&buffer[..read]);
        }
        self.bulk = read == BUFFER_BYTES;
        // A short read emptied the socket: the kernel reports more bytes, unless it has reported the end.
        self.readable = self.bulk || self.hung_up;
        let taken = if self.is_discarding { Ok(read) } else { self.offer(&buffer[..read], sink) };
        let taken = taken.map_err(|error| self.sink_failed(error))?;
        if taken < read {
            self.spill = buffer[taken..read].to_vec();
        }
        Ok(taken)
    }

    /// Sends bytes and returns the number that the sink took. After a partial send the rest must be offered
    /// again, because the kernel reports that the sink is writable only after EAGAIN.
    fn offer(&mut self, bytes: &[u8], sink: &OwnedFd) -> Result<usize, Errno> {
        if !self.writable {
            return Ok(0);
        }
        match send(sink, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(Errno::INTR) => Ok(0),
            other => other,
        }
    }

    fn source_failed(&mut self, error: Errno) {
        match error {
            Errno::AGAIN => self.readable = false,
            Errno::INTR => {}
            error => self.end = Some(End::Error(error)),
        }
    }

    fn sink_failed(&mut self, error: Errno) -> Pumped {
        match error {
            Errno::AGAIN => {
                self.writable = false;
                Pumped::Waiting
            }
            Errno::INTR => Pumped::More,
            error => Pumped::SinkClosed(error),
        }
    }

    /// Sends these bytes to the sink before the bytes of the source.
    pub(crate) fn prepend(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.is_empty(), "nothing was read yet");
        (self.spill, self.offset) = (bytes, 0);
    }

    /// Continues where another relay stopped: with the bytes that the sink has not taken yet, and the end of
    /// the source if it has ended.
    pub(crate) fn resume(&mut self, rest: Vec<u8>, end: Option<End>) {
        (self.readable, self.writable) = (true, true);
        self.end = self.end.or(end);
        if !self.is_discarding {
            (self.spill, self.offset) = (rest, 0);
        }
    }

    /// Discards further bytes of the source, because the sink is closed. Closing the source instead would reset
    /// the connection, and destroy bytes of the other direction that the peer has not read yet (RFC 9293,
    /// section 3.10.4).
    pub(crate) fn discard(&mut self, scratch: &mut Scratch) {
        self.is_discarding = true;
        (self.spill, self.offset) = (Vec::new(), 0);
        self.release(scratch);
    }

    /// Reads nothing more from the source; queued bytes are still sent to the sink.
    pub(crate) fn stop(&mut self) {
        self.end.get_or_insert(End::Fin);
    }

    /// Reads the source to its end and discards the bytes, even if the direction was stopped or had ended.
    pub(crate) fn discard_until_end(&mut self, scratch: &mut Scratch) {
        self.discard(scratch);
        (self.end, self.is_done, self.readable) = (None, false, true);
    }

    /// Returns whether the sink is closed and bytes of the source are discarded.
    pub(crate) fn is_discarding(&self) -> bool {
        self.is_discarding
    }

    /// Gives the pipe, if there is one, back to the pool.
    pub(crate) fn release(&mut self, scratch: &mut Scratch) {
        self.pipe.take().into_iter().for_each(|pipe| scratch.pipes.give(pipe));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// Longest wait for the kernel.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// One direction between two sockets, with the peers of both.
    struct Fixture {
        direction: Direction,
        scratch: Scratch,
        source: OwnedFd,
        sink: OwnedFd,
        sender: UnixStream,
        receiver: UnixStream,
    }

    fn pair() -> (UnixStream, OwnedFd) {
        let (far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_read_timeout(Some(DEADLINE)).unwrap();
        (far, near.into())
    }

    impl Fixture {
        fn new() -> Self {
            let ((sender, source), (receiver, sink)) = (pair(), pair());
            let direction = Direction { readable: true, ..Direction::to_writable_sink() };
            Self { direction, scratch: Scratch::new(), source, sink, sender, receiver }
        }

        fn send(&mut self, bytes: &[u8]) {
            self.sender.write_all(bytes).unwrap();
            self.direction.readable = true;
        }

        fn pump(&mut self) -> (u64, Pumped) {
            self.direction.pump(&self.source, &self.sink, &mut self.scratch, None)
        }

        fn received(&mut self, count: usize) -> Vec<u8> {
            let mut bytes = vec![0; count];
            self.receiver.read_exact(&mut bytes).unwrap();
            bytes
        }
    }

    /// Returns bytes by which a missing or misplaced byte is detected.
    fn pattern(count: usize) -> Vec<u8> {
        (0..count as u32)
            .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
            .take(count)
            .collect()
    }

    #[test]
    fn a_direction_ends_when_its_sink_has_everything() {
        let mut fixture = Fixture::new();
        fixture.send(b"request");
        assert_eq!(fixture.pump(), (7, Pumped::Waiting));
        assert_eq!(fixture.received(7), b"request");
        fixture.send(b"last");
        fixture.sender.shutdown(std::net::Shutdown::Write).unwrap();
        fixture.direction.hung_up = true;
        assert_eq!(fixture.pump(), (4, Pumped::Ended(End::Fin)));
        assert_eq!(fixture.received(4), b"last");
    }

    #[test]
    fn a_blocked_sink_gets_the_rest_in_order_when_it_is_writable_again() {
        let mut fixture = Fixture::new();
        let sent = pattern(1 << 20);
        let (mut offset, mut got, mut blocked) = (0, Vec::new(), 0);
        fixture.sender.set_nonblocking(true).unwrap();
        while got.len() < sent.len() {
            if offset < sent.len()
                && let Ok(count) = fixture.sender.write(&sent[offset..])
            {
                offset += count;
                fixture.direction.readable = true;
            }
            let (_, outcome) = fixture.pump();
            assert!(matches!(outcome, Pumped::Waiting | Pumped::More), "{outcome:?}");
            assert!(
                fixture.direction.queued_bytes() <= (1 << 20)
                    && fixture.direction.spill.len() <= BUFFER_BYTES
            );
            assert_eq!(fixture.direction.is_empty(), fixture.direction.queued_bytes() == 0);
            blocked += u32::from(!fixture.direction.writable);
            let mut piece = [0; 50_000];
            let count = fixture.receiver.read(&mut piece).unwrap();
            got.extend_from_slice(&piece[..count]);
            fixture.direction.writable = true;
        }
        assert!(blocked > 0, "the sink blocks at least once");
        assert!(got == sent, "every byte arrived, in order");
    }

    #[test]
    fn a_read_that_fills_the_buffer_begins_the_bulk_mode_and_a_small_splice_ends_it() {
        let mut fixture = Fixture::new();
        let sent = pattern(BUFFER_BYTES + 2 * SPLICE_BYTES_MIN);
        fixture.send(&sent);
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let (count, outcome) = fixture.pump();
            assert!(matches!(outcome, Pumped::Waiting | Pumped::More), "{outcome:?}");
            got.extend(fixture.received(count as usize));
            fixture.direction.writable = true;
        }
        assert!(got == sent, "every byte arrived, in order");
        assert!(fixture.direction.bulk && fixture.direction.is_empty());
        fixture.send(b"small");
        assert_eq!(fixture.pump(), (5, Pumped::Waiting));
        assert_eq!((fixture.received(5), fixture.direction.bulk), (b"small".to_vec(), false));
    }

    #[test]
    fn a_reset_of_the_source_is_not_an_orderly_end() {
        let mut fixture = Fixture::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (source, _) = listener.accept().unwrap();
        source.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&sender).set_linger(Some(Duration::ZERO)).unwrap();
        drop(sender);
        fixture.source = source.into();
        assert_eq!(fixture.pump(), (0, Pumped::Ended(End::Error(Errno::CONNRESET))));
    }

    #[test]
    fn a_source_is_read_to_its_end_after_the_sink_closed() {
        let mut fixture = Fixture::new();
        drop(std::mem::replace(&mut fixture.receiver, pair().0));
        fixture.send(b"for the sink");
        let (_, outcome) = fixture.pump();
        assert_eq!(outcome, Pumped::SinkClosed(Errno::PIPE));
        assert!(!fixture.direction.is_discarding());
        fixture.direction.discard(&mut fixture.scratch);
        assert!(fixture.direction.is_discarding() && fixture.direction.is_empty());
        fixture.send(b"discarded");
        assert_eq!(fixture.pump().1, Pumped::Waiting);
        fixture.sender.shutdown(std::net::Shutdown::Write).unwrap();
        fixture.direction.readable = true;
        assert_eq!(fixture.pump().1, Pumped::Ended(End::Fin));
    }

    #[test]
    fn prepended_bytes_are_sent_before_the_bytes_of_the_source() {
        let mut fixture = Fixture::new();
        fixture.send(b" and body");
        fixture.direction.prepend(b"header".to_vec());
        assert_eq!(fixture.direction.queued_bytes(), 6);
        assert_eq!(fixture.pump(), (15, Pumped::Waiting));
        assert_eq!(fixture.received(15), b"header and body");
    }

    #[test]
    fn a_stopped_direction_sends_queued_bytes_and_reads_no_more() {
        let mut fixture = Fixture::new();
        fixture.send(b"unread");
        fixture.direction.prepend(b"rest".to_vec());
        fixture.direction.stop();
        assert_eq!(fixture.pump(), (4, Pumped::Ended(End::Fin)));
        assert_eq!(fixture.received(4), b"rest");
        // When the source is read to its end later, its bytes are discarded.
        fixture.sender.shutdown(std::net::Shutdown::Write).unwrap();
        fixture.direction.discard_until_end(&mut fixture.scratch);
        fixture.direction.hung_up = true;
        assert_eq!(fixture.pump().1, Pumped::Ended(End::Fin));
        assert_eq!(rustix::io::ioctl_fionread(&fixture.source), Ok(0));
        assert_eq!(rustix::io::ioctl_fionread(&fixture.receiver), Ok(0));
    }

    #[test]
    fn a_direction_continues_where_another_relay_stopped() {
        let mut fixture = Fixture::new();
        (fixture.direction.readable, fixture.direction.writable) = (false, false);
        assert_eq!(fixture.pump(), (0, Pumped::Waiting));
        fixture.direction.resume(b"rest".to_vec(), Some(End::Fin));
        assert_eq!(fixture.pump(), (4, Pumped::Ended(End::Fin)));
        assert_eq!(fixture.received(4), b"rest");
    }

    #[test]
    fn a_socket_is_emptied_before_it_is_closed() {
        let mut fixture = Fixture::new();
        fixture.send(&[1; 100_000]);
        drain(&fixture.source);
        assert_eq!(rustix::io::ioctl_fionread(&fixture.source), Ok(0));
    }
}
