//! One socket of a layered connection, with TLS or without. It takes a buffer from the worker when there are bytes to
//! read, and holds what the socket does not take. Empty buffers are given back, so an idle connection has none.

use crate::io::relay::End;
use crate::io::sys;
use crate::io::tls::{Opened, Tls};
use evener_core::pace::Progress;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// The most that one receive reads.
const BUFFER_BYTES: usize = 64 * 1024;
/// Number of empty buffers that a worker pools.
const BUFFERS_POOLED_MAX: usize = 64;
/// With so many bytes waiting for a socket, its sender waits until they are taken.
pub(crate) const PENDING_BYTES_MAX: usize = 64 * 1024;

/// The buffers that the transports of a worker use in turn.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Vec<Vec<u8>>,
    sealed: Vec<u8>,
}

impl Buffers {
    fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        // A buffer that grew would make the pool large.
        let usual = (BUFFER_BYTES..=2 * BUFFER_BYTES).contains(&buffer.capacity());
        if usual && self.free.len() < BUFFERS_POOLED_MAX {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

/// Bytes that are consumed from the front.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// The bytes that are left.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Consumes `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
    }

    /// Moves the bytes that are left to the front, when many were consumed.
    fn compact(&mut self) {
        if self.start >= PENDING_BYTES_MAX {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Makes room for another receive behind the bytes that are left.
    fn room(&mut self, buffers: &mut Buffers) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = buffers.take();
        }
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        if self.bytes.capacity() - self.bytes.len() < 4096 {
            self.bytes.reserve(BUFFER_BYTES);
        }
        &mut self.bytes
    }

    /// Gives the memory back when no byte is left.
    fn settle(&mut self, buffers: &mut Buffers) {
        if self.is_empty() && self.bytes.capacity() > 0 {
            buffers.give(std::mem::take(&mut self.bytes));
            self.start = 0;
        }
    }
}

/// The result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// There is more input, or the handshake went on.
    Some,
    /// There is nothing now, or the source ended.
    Nothing,
}

/// The state of the sending direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Open,
    /// The end follows when the socket has taken everything.
    Ending,
    Ended,
}

/// A transport.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) socket: OwnedFd,
    tls: Option<Box<Tls>>,
    /// The handshake is complete; without TLS from the beginning.
    established: bool,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) hung_up: bool,
    /// Bytes that were received and not consumed yet.
    pub(crate) input: Buffer,
    /// Records that are not complete yet.
    records: Buffer,
    /// Bytes that the socket has not taken yet.
    output: Buffer,
    /// Bytes that are sealed when the handshake is complete.
    early: Vec<u8>,
    /// Number of bytes that the socket has taken so far.
    taken: u64,
    /// The end of the receiving direction.
    pub(crate) end: Option<End>,
    /// TLS ended without close_notify: the input may be incomplete (RFC 8446, section 6.1).
    pub(crate) cut: bool,
    /// The socket is broken: sending is impossible.
    pub(crate) broken: bool,
    ours: Ours,
    /// The reason why TLS failed.
    pub(crate) failure: Option<rustls::Error>,
}

impl Transport {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            tls: None,
            established: true,
            readable: false,
            writable: true,
            hung_up: false,
            input: Buffer::default(),
            records: Buffer::default(),
            output: Buffer::default(),
            early: Vec::new(),
            taken: 0,
            end: None,
            cut: false,
            broken: false,
            ours: Ours::Open,
            failure: None,
        }
    }

    /// Begins TLS; the bytes that came already are part of it.
    pub(crate) fn begin_tls(&mut self, tls: Tls, buffers: &mut Buffers) {
        self.tls = Some(Box::new(tls));
        self.established = false;
        std::mem::swap(&mut self.records, &mut self.input);
        self.open(buffers);
        self.flush(buffers);
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// Number of bytes that wait for the socket.
    pub(crate) fn pending(&self) -> usize {
        self.output.len() + self.early.len()
    }

    /// Number of bytes that the peer has not received, those in the kernel included.
    pub(crate) fn left(&self) -> usize {
        self.pending() + sys::undelivered(self.socket.as_fd())
    }

    /// The progress of the peer with what is sent to it.
    pub(crate) fn progress(&self) -> Progress {
        let (pending, held) = (self.pending() as u64, sys::undelivered(self.socket.as_fd()) as u64);
        Progress {
            moved: self.taken.saturating_sub(held),
            due: (pending + held > 0).then_some(self.taken + pending),
        }
    }

    /// Returns whether the receiving direction ended and all input is consumed.
    pub(crate) fn is_at_end(&self) -> bool {
        self.end.is_some() && self.input.is_empty()
    }

    /// Receives once, if there may be something.
    pub(crate) fn receive(&mut self, buffers: &mut Buffers) -> Received {
        if !self.readable || self.end.is_some() {
            return Received::Nothing;
        }
        let target = if self.tls.is_some() { &mut self.records } else { &mut self.input };
        let room = target.room(buffers);
        let wanted = room.capacity() - room.len();
        match recv(&self.socket, rustix::buffer::spare_capacity(room), RecvFlags::empty()) {
            Ok((0, _)) => {
                self.readable = false;
                // The error was reported to the sending side: what looks like an orderly end is none.
                let reset = self.broken && self.end.is_none();
                self.end = Some(if reset { End::Error(Errno::CONNRESET) } else { End::Fin });
                self.cut = self.tls.is_some();
            }
            Ok((read, _)) => {
                // A short read emptied the socket: the next edge reports more, unless the end was reported before.
                self.readable = read == wanted || self.hung_up;
                if self.tls.is_some() {
                    self.open(buffers);
                    self.flush(buffers);
                }
                return Received::Some;
            }
            Err(Errno::AGAIN) => self.readable = false,
            Err(Errno::INTR) => return self.receive(buffers),
            Err(error) => {
                self.readable = false;
                self.end = Some(End::Error(error));
            }
        }
        self.settle(buffers);
        Received::Nothing
    }

    /// Opens the records that came.
    fn open(&mut self, buffers: &mut Buffers) {
        let Some(tls) = &mut self.tls else { return };
        let output = &mut self.output;
        let plain = self.input.room(buffers);
        let start = self.records.start;
        let opened = tls.open(&mut self.records.bytes[start..], plain, &mut output.bytes);
        self.records.consume(opened.used);
        self.records.settle(buffers);
        self.input.settle(buffers);
        self.take_opened(opened);
    }

    fn take_opened(&mut self, opened: Opened) {
        if opened.closed {
            self.end = self.end.or(Some(End::Fin));
        }
        if let Some(error) = opened.failed {
            self.end = self.end.or(Some(End::Error(Errno::PROTO)));
            self.failure = self.failure.take().or(Some(error));
        } else if opened.established && !self.established {
            self.established = true;
            let early = std::mem::take(&mut self.early);
            self.seal(&early);
        }
    }

    fn seal(&mut self, bytes: &[u8]) {
        let start = self.records.start;
        if let Some(tls) = &mut self.tls
            && tls.seal(bytes, &mut self.records.bytes[start..], &mut self.output.bytes).is_err()
        {
            self.broken = true;
        }
    }

    /// Sends what the socket takes now, and holds the rest. The caller has to consult [`Transport::pending`] before it
    /// sends more.
    pub(crate) fn send(&mut self, bytes: &[u8], buffers: &mut Buffers) {
        if self.broken || bytes.is_empty() {
            return;
        }
        if self.tls.is_none() {
            return self.send_plain(bytes);
        }
        if !self.established {
            return self.early.extend_from_slice(bytes);
        }
        if self.output.is_empty() && self.output.bytes.capacity() == 0 {
            // The buffer for sealed bytes is shared; only what the socket does not take is copied.
            self.output.bytes = std::mem::take(&mut buffers.sealed);
            self.output.bytes.clear();
            self.seal(bytes);
            self.flush_output();
            let sealed = std::mem::take(&mut self.output);
            self.output.bytes.extend_from_slice(sealed.unread());
            buffers.sealed = sealed.bytes;
        } else {
            self.seal(bytes);
            self.flush(buffers);
        }
    }

    fn send_plain(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.output.is_empty() && self.writable {
            match self.push(bytes) {
                Some(taken) => rest = &bytes[taken..],
                None => return,
            }
        }
        self.output.bytes.extend_from_slice(rest);
        // Only EAGAIN promises an edge.
        self.flush_output();
    }

    /// Puts bytes before everything else, TLS included.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        debug_assert!(self.tls.is_none(), "nothing raw goes into TLS");
        self.send_plain(bytes);
    }

    /// Sends bytes as far as the socket takes them; `None` when it is broken.
    fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
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
                self.broken = true;
                // The input of the peer from before is still there.
                self.readable = true;
                None
            }
        }
    }

    fn flush_output(&mut self) {
        while !self.output.is_empty() && self.writable && !self.broken {
            let output = std::mem::take(&mut self.output);
            let taken = self.push(output.unread());
            self.output = output;
            match taken {
                Some(taken) => self.output.consume(taken),
                None => break,
            }
        }
        self.output.compact();
    }

    /// Sends waiting bytes, and then the end if it is due.
    pub(crate) fn flush(&mut self, buffers: &mut Buffers) {
        self.flush_output();
        if self.output.is_empty() || self.broken {
            self.output = Buffer::default();
            if self.ours == Ours::Ending && self.early.is_empty() {
                self.ours = Ours::Ended;
                let _ = shutdown(&self.socket, Shutdown::Write);
            }
        }
        self.settle(buffers);
    }

    /// Sends nothing more after the waiting bytes.
    pub(crate) fn finish(&mut self, buffers: &mut Buffers) {
        if self.ours != Ours::Open {
            return;
        }
        self.ours = Ours::Ending;
        if let Some(tls) = self.tls.as_mut().filter(|_| self.established) {
            let start = self.records.start;
            tls.close(&mut self.records.bytes[start..], &mut self.output.bytes);
        }
        self.flush(buffers);
    }

    /// Returns whether the end was sent, and taken by the socket.
    pub(crate) fn is_finished(&self) -> bool {
        self.ours == Ours::Ended || self.broken
    }

    /// Has the receiving direction discarded until the peer has received everything; returns whether that is
    /// necessary. A closed socket would respond to its bytes with a reset, which destroys what is under way to it.
    pub(crate) fn hear_out(&mut self) -> bool {
        let needs = self.left() > 0 || !sys::is_all_read(self.socket.as_fd());
        if needs {
            (self.end, self.readable) = (None, true);
        }
        needs
    }

    /// Gives empty buffers back.
    pub(crate) fn settle(&mut self, buffers: &mut Buffers) {
        self.input.settle(buffers);
        self.records.settle(buffers);
    }

    /// Gives all buffers back at the end of the connection.
    pub(crate) fn release(&mut self, buffers: &mut Buffers) {
        for buffer in [&mut self.input, &mut self.records] {
            buffer.consume(usize::MAX);
            buffer.settle(buffers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_waits_takes_no_more_memory_than_that_however_long_it_goes_on() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&ours).set_send_buffer_size(4096).unwrap();
        let (mut transport, mut buffers) = (Transport::new(ours.into()), Buffers::default());
        let (mut sent, mut piece) = (0, [0; 4096]);
        for _ in 0..4000 {
            // It is never taken completely.
            while transport.pending() < PENDING_BYTES_MAX {
                transport.send(&[0; 10_000], &mut buffers);
                sent += 10_000;
            }
            theirs.read_exact(&mut piece).unwrap();
            transport.writable = true;
            transport.flush(&mut buffers);
        }
        assert!(sent > 100 * PENDING_BYTES_MAX, "{sent}");
        assert!(
            transport.output.bytes.capacity() <= 8 * PENDING_BYTES_MAX,
            "{}",
            transport.output.bytes.capacity()
        );
    }

    /// A transport without TLS, its peer, and the buffers of the worker.
    fn fixture() -> (Transport, UnixStream, Buffers) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Transport::new(ours.into()), theirs, Buffers::default())
    }

    /// Receives after an event.
    fn receive(transport: &mut Transport, buffers: &mut Buffers) -> Received {
        transport.readable = true;
        transport.receive(buffers)
    }

    #[test]
    fn an_idle_connection_has_no_buffer() {
        let (mut transport, mut peer, mut buffers) = fixture();
        peer.write_all(b"request").unwrap();
        assert_eq!(receive(&mut transport, &mut buffers), Received::Some);
        assert_eq!((transport.input.unread(), transport.readable), (&b"request"[..], false));
        transport.input.consume(3);
        transport.settle(&mut buffers);
        assert_eq!((transport.input.unread(), buffers.free.len()), (&b"uest"[..], 0));
        transport.input.consume(usize::MAX);
        transport.settle(&mut buffers);
        assert_eq!((transport.input.bytes.capacity(), buffers.free.len()), (0, 1));
        assert_eq!(receive(&mut transport, &mut buffers), Received::Nothing);
        assert_eq!(buffers.free.len(), 1, "nothing came, so the buffer is given back");
    }

    #[test]
    fn input_grows_behind_what_is_left() {
        let (mut transport, mut peer, mut buffers) = fixture();
        for piece in [&b"first"[..], b"second"] {
            peer.write_all(piece).unwrap();
            receive(&mut transport, &mut buffers);
        }
        assert_eq!((transport.input.unread(), transport.input.len()), (&b"firstsecond"[..], 11));
        transport.input.consume(5);
        peer.write_all(b"!").unwrap();
        receive(&mut transport, &mut buffers);
        assert_eq!(transport.input.unread(), b"second!");
    }

    #[test]
    fn a_large_buffer_does_not_enter_the_pool_and_the_pool_is_bounded() {
        let mut buffers = Buffers::default();
        buffers.give(Vec::with_capacity(3 * BUFFER_BYTES));
        buffers.give(Vec::new());
        assert!(buffers.free.is_empty());
        (0..=BUFFERS_POOLED_MAX).for_each(|_| buffers.give(vec![1; BUFFER_BYTES]));
        assert_eq!(buffers.free.len(), BUFFERS_POOLED_MAX);
        assert!(buffers.take().is_empty(), "no byte of one client is left for another one");
    }

    #[test]
    fn the_end_of_the_peer_comes_after_its_bytes() {
        let (mut transport, mut peer, mut buffers) = fixture();
        peer.write_all(b"last").unwrap();
        drop(peer);
        transport.hung_up = true;
        assert_eq!(receive(&mut transport, &mut buffers), Received::Some);
        assert!(transport.readable && !transport.is_at_end(), "more may follow a short read");
        assert_eq!(transport.receive(&mut buffers), Received::Nothing);
        assert_eq!((transport.end, transport.is_at_end(), transport.cut), (Some(End::Fin), false, false));
        transport.input.consume(4);
        assert!(transport.is_at_end());
        assert_eq!(receive(&mut transport, &mut buffers), Received::Nothing, "it stays at its end");
    }

    #[test]
    fn the_end_is_sent_when_the_socket_has_taken_everything() {
        let (mut transport, mut peer, mut buffers) = fixture();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| (number % 251) as u8).collect();
        transport.send(&sent, &mut buffers);
        transport.finish(&mut buffers);
        assert!(!transport.is_finished() && transport.pending() > 0 && !transport.writable);
        assert!(transport.left() >= transport.pending());
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).map(|_| got)
        });
        while !transport.is_finished() {
            let timeout = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            let mut writable = [rustix::event::PollFd::new(&transport.socket, rustix::event::PollFlags::OUT)];
            assert_eq!(rustix::event::poll(&mut writable, Some(&timeout)), Ok(1));
            transport.writable = true;
            transport.flush(&mut buffers);
        }
        assert!(reader.join().unwrap().unwrap() == sent, "every byte, in order");
        assert_eq!(transport.pending(), 0);
    }

    #[test]
    fn a_broken_socket_takes_nothing_and_its_end_is_no_orderly_one() {
        let (mut transport, peer, mut buffers) = fixture();
        drop(peer);
        transport.send(b"response", &mut buffers);
        assert!(transport.broken && transport.is_finished() && transport.readable);
        assert_eq!(transport.receive(&mut buffers), Received::Nothing);
        assert_eq!(transport.end, Some(End::Error(Errno::CONNRESET)));
        transport.send(b"more", &mut buffers);
        transport.flush(&mut buffers);
        assert_eq!(transport.pending(), 0);
    }

    #[test]
    fn a_peer_with_unread_bytes_is_waited_for() {
        let (mut transport, mut peer, mut buffers) = fixture();
        transport.finish(&mut buffers);
        assert!(!transport.hear_out(), "both sides have everything");
        peer.write_all(b"late").unwrap();
        assert!(transport.hear_out() && transport.readable && transport.end.is_none());
    }
}
