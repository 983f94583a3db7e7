//! Transport: one socket of a layered connection, with TLS or without. A transport takes a buffer from the
//! worker when there are bytes to read, and queues the bytes that the socket does not take. It gives empty
//! buffers back, so an idle connection has none.

mod sending;
mod splice;

use crate::context::registry::Readiness;
pub(crate) use crate::io::buffer::Buffers;
use crate::io::buffer::{BUFFER_BYTES, Buffer};
use crate::io::pipe::Pipe;
use crate::io::relay::End;
use crate::io::sys;
use crate::io::tls::Tls;
use evener_core::pace::Progress;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

/// Number of bytes queued for a socket at which its sender has to wait until the socket has taken them.
pub(crate) const PENDING_BYTES_MAX: usize = 64 * 1024;

/// Result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// There is more input, or the handshake made progress.
    Some,
    /// There is no input now, or the peer ended.
    Nothing,
}

/// State of the sending direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Open,
    /// The end follows when the socket has taken all queued bytes.
    Ending,
    Ended,
}

/// Socket with its optional TLS layer, received input, and queued output.
#[derive(Debug)]
pub(crate) struct Transport {
    socket: OwnedFd,
    tls: Option<Box<Tls>>,
    /// The handshake is complete; without TLS from the beginning.
    is_established: bool,
    /// The socket may have something to read.
    readable: bool,
    /// The socket may take bytes.
    writable: bool,
    /// An event announced the end of the peer, so reading continues even after a short read.
    hung_up: bool,
    /// The last receive filled a whole buffer, or the last splice moved many bytes.
    is_bulk: bool,
    /// The last splice moved nothing, so a receive must follow: see [`crate::io::relay`].
    must_confirm_by_recv: bool,
    /// Bytes that were received and not consumed yet.
    input: Buffer,
    /// TLS records that are not complete yet.
    records: Buffer,
    /// Bytes that the socket has not taken yet.
    output: Buffer,
    /// Pipe with bytes that the socket has not taken yet. They follow the first `before_pipe` bytes of `output`.
    pipe: Option<Box<Pipe>>,
    before_pipe: usize,
    /// Plaintext that is sealed when the handshake is complete.
    early: Vec<u8>,
    /// Number of bytes that the socket has taken so far.
    taken: u64,
    /// End of the receiving direction.
    end: Option<End>,
    /// TLS ended without close_notify: the input may be incomplete (RFC 8446, section 6.1).
    is_cut: bool,
    /// The socket is broken: sending is impossible.
    is_broken: bool,
    sending: Sending,
    /// Reason why TLS failed.
    tls_failure: Option<rustls::Error>,
}

impl Transport {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            tls: None,
            is_established: true,
            readable: false,
            writable: true,
            hung_up: false,
            is_bulk: false,
            must_confirm_by_recv: false,
            input: Buffer::default(),
            records: Buffer::default(),
            output: Buffer::default(),
            pipe: None,
            before_pipe: 0,
            early: Vec::new(),
            taken: 0,
            end: None,
            is_cut: false,
            is_broken: false,
            sending: Sending::Open,
            tls_failure: None,
        }
    }

    /// Transport of a socket that is still connecting: it takes no bytes yet.
    pub(crate) fn connecting(socket: OwnedFd) -> Self {
        Self { writable: false, ..Self::new(socket) }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Records that the connection was established: the socket takes bytes.
    pub(crate) fn on_connected(&mut self) {
        self.writable = true;
    }

    /// Records that the socket may have something to read, or its end.
    pub(crate) fn on_readable(&mut self, ready: Readiness) {
        self.readable |= ready.readable || ready.ended;
        self.hung_up |= ready.ended;
    }

    /// Records that the socket may take bytes, or report an error.
    pub(crate) fn on_writable(&mut self, ready: Readiness) {
        self.writable |= ready.writable || ready.error;
    }

    /// Records an event of the socket. An error breaks the transport.
    pub(crate) fn on_event(&mut self, ready: Readiness) {
        self.on_readable(ready);
        self.on_writable(ready);
        self.is_broken |= ready.error;
    }

    /// Returns whether the socket may have something to read.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Returns whether sending is impossible.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Returns whether the peer closed, or ended its sending direction. The end need not have been read yet.
    pub(crate) fn has_peer_closed(&self) -> bool {
        self.hung_up || self.end.is_some()
    }

    /// Returns the end of the receiving direction.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// Returns whether TLS ended without close_notify, so that the input may be incomplete (RFC 8446, section
    /// 6.1).
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Returns the reason why TLS failed.
    pub(crate) fn tls_failure(&self) -> Option<&rustls::Error> {
        self.tls_failure.as_ref()
    }

    /// Stops receiving, as if the peer had sent an orderly end.
    pub(crate) fn stop_receiving(&mut self) {
        self.end.get_or_insert(End::Fin);
    }

    /// Ends both directions as if the peer had reset the connection.
    pub(crate) fn break_off(&mut self) {
        self.is_broken = true;
        self.end = Some(End::Error(Errno::CONNRESET));
    }

    /// Returns the received bytes that were not consumed yet.
    pub(crate) fn unread(&self) -> &[u8] {
        self.input.unread()
    }

    /// Consumes `count` received bytes, or all if there are fewer.
    pub(crate) fn consume(&mut self, count: usize) {
        self.input.consume(count);
    }

    /// Begins TLS; the received bytes belong to its handshake.
    pub(crate) fn begin_tls(&mut self, tls: Tls, buffers: &mut Buffers) {
        self.tls = Some(Box::new(tls));
        self.is_established = false;
        std::mem::swap(&mut self.records, &mut self.input);
        self.open(buffers);
        self.flush(buffers);
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    pub(crate) fn is_established(&self) -> bool {
        self.is_established
    }

    /// Returns the number of bytes queued for the socket.
    pub(crate) fn pending(&self) -> usize {
        self.output.len() + self.spliced_bytes() + self.early.len()
    }

    /// Returns whether the sender has to wait until the socket has taken bytes.
    pub(crate) fn is_full(&self) -> bool {
        self.pending() >= PENDING_BYTES_MAX || self.pipe.is_some()
    }

    /// Returns the number of bytes that the peer has not acknowledged, including those in the kernel.
    pub(crate) fn left(&self) -> usize {
        self.pending() + sys::undelivered(self.socket.as_fd())
    }

    /// Returns the progress of the peer in receiving.
    pub(crate) fn progress(&self) -> Progress {
        let (pending, in_kernel) = (self.pending() as u64, sys::undelivered(self.socket.as_fd()) as u64);
        Progress {
            moved: self.taken.saturating_sub(in_kernel),
            due: (pending + in_kernel > 0).then_some(self.taken + pending),
        }
    }

    /// Returns whether the receiving direction ended and all input is consumed.
    pub(crate) fn is_at_end(&self) -> bool {
        self.end.is_some() && self.input.is_empty()
    }

    /// Receives once, if the socket may have something to read.
    pub(crate) fn receive(&mut self, buffers: &mut Buffers) -> Received {
        if !self.readable || self.end.is_some() {
            return Received::Nothing;
        }
        let target = if self.tls.is_some() { &mut self.records } else { &mut self.input };
        let room = target.room(buffers);
        let wanted = room.capacity() - room.len();
        self.must_confirm_by_recv = false;
        match recv(&self.socket, rustix::buffer::spare_capacity(room), RecvFlags::empty()) {
            Ok((0, _)) => {
                self.readable = false;
                // The kernel reported the error to an earlier send. So a receive returns no bytes and no error
                // after a reset, as after an orderly end.
                let reset = self.is_broken && self.end.is_none();
                self.end = Some(if reset { End::Error(Errno::CONNRESET) } else { End::Fin });
                self.is_cut = self.tls.is_some();
            }
            Ok((read, _)) => {
                // A short read emptied the socket: the kernel reports more bytes, unless it has reported the
                // end.
                self.readable = read == wanted || self.hung_up;
                self.is_bulk = read == wanted && wanted >= BUFFER_BYTES;
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

    /// Opens the complete records that were received.
    fn open(&mut self, buffers: &mut Buffers) {
        let Some(tls) = &mut self.tls else { return };
        let plain = self.input.room(buffers);
        let opened = tls.open(&mut self.records, plain, self.output.tail());
        self.records.settle(buffers);
        self.input.settle(buffers);
        self.end = self.end.or(opened.end());
        let was_established = self.is_established;
        match opened.established() {
            Ok(established) => self.is_established |= established,
            Err(error) => self.tls_failure = self.tls_failure.take().or(Some(error)),
        }
        if self.is_established && !was_established {
            let early = std::mem::take(&mut self.early);
            self.seal(&early);
        }
    }

    fn seal(&mut self, bytes: &[u8]) {
        if let Some(tls) = &mut self.tls
            && tls.seal(bytes, &mut self.records, self.output.tail()).is_err()
        {
            self.is_broken = true;
        }
    }

    /// Sends queued bytes, and then the end if it is due.
    pub(crate) fn flush(&mut self, buffers: &mut Buffers) {
        self.flush_output(buffers);
        if self.is_broken {
            self.drop_pipe();
        }
        if (self.output.is_empty() && self.pipe.is_none()) || self.is_broken {
            self.output = Buffer::default();
            if self.sending == Sending::Ending && self.early.is_empty() {
                self.sending = Sending::Ended;
                let _ = shutdown(&self.socket, Shutdown::Write);
            }
        }
        self.settle(buffers);
    }

    /// Ends the sending direction after the queued bytes.
    pub(crate) fn finish(&mut self, buffers: &mut Buffers) {
        if self.sending != Sending::Open {
            return;
        }
        self.sending = Sending::Ending;
        if let Some(tls) = self.tls.as_mut().filter(|_| self.is_established) {
            tls.close(&mut self.records, self.output.tail());
        }
        self.flush(buffers);
    }

    /// Returns whether the socket has taken all bytes and the end, or is broken.
    pub(crate) fn is_finished(&self) -> bool {
        self.sending == Sending::Ended || self.is_broken
    }

    /// Begins to receive again after the end, so that the caller can discard input until the peer has received
    /// everything. Returns false if that is not necessary. A closed socket would respond to input with a reset,
    /// which destroys the bytes that the peer has not received yet.
    pub(crate) fn begin_draining(&mut self) -> bool {
        let is_necessary = self.left() > 0 || !sys::is_all_read(self.socket.as_fd());
        if is_necessary {
            (self.end, self.readable) = (None, true);
        }
        is_necessary
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
        self.drop_pipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn queued_bytes_take_a_bounded_amount_of_memory() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&near).set_send_buffer_size(4096).unwrap();
        let (mut transport, mut buffers) = (Transport::new(near.into()), Buffers::default());
        let (mut sent, mut piece) = (0, [0; 4096]);
        for _ in 0..4000 {
            // The output never becomes empty.
            while transport.pending() < PENDING_BYTES_MAX {
                transport.send(&[0; 10_000], &mut buffers);
                sent += 10_000;
            }
            far.read_exact(&mut piece).unwrap();
            transport.writable = true;
            transport.flush(&mut buffers);
        }
        assert!(sent > 100 * PENDING_BYTES_MAX, "{sent}");
        assert!(
            transport.output.tail().capacity() <= 8 * PENDING_BYTES_MAX,
            "{}",
            transport.output.tail().capacity()
        );
    }

    /// A transport without TLS, its peer, and the buffers of the worker.
    fn fixture() -> (Transport, UnixStream, Buffers) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (Transport::new(near.into()), far, Buffers::default())
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
        assert_eq!((transport.input.unread(), buffers.pooled()), (&b"uest"[..], 0));
        transport.input.consume(usize::MAX);
        transport.settle(&mut buffers);
        assert_eq!((transport.input.has_no_memory(), buffers.pooled()), (true, 1));
        assert_eq!(receive(&mut transport, &mut buffers), Received::Nothing);
        assert_eq!(buffers.pooled(), 1, "a receive without bytes gives its buffer back");
    }

    #[test]
    fn input_grows_behind_unread_bytes() {
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
    fn the_end_of_the_peer_comes_after_its_bytes() {
        let (mut transport, mut peer, mut buffers) = fixture();
        peer.write_all(b"last").unwrap();
        drop(peer);
        transport.hung_up = true;
        assert_eq!(receive(&mut transport, &mut buffers), Received::Some);
        assert!(transport.readable && !transport.is_at_end(), "more may follow a short read");
        assert_eq!(transport.receive(&mut buffers), Received::Nothing);
        assert_eq!((transport.end, transport.is_at_end(), transport.is_cut), (Some(End::Fin), false, false));
        transport.input.consume(4);
        assert!(transport.is_at_end());
        assert_eq!(
            receive(&mut transport, &mut buffers),
            Received::Nothing,
            "the transport stays at its end"
        );
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
    fn a_broken_socket_takes_nothing_and_has_no_orderly_end() {
        let (mut transport, peer, mut buffers) = fixture();
        drop(peer);
        transport.send(b"response", &mut buffers);
        assert!(transport.is_broken && transport.is_finished() && transport.readable);
        assert_eq!(transport.receive(&mut buffers), Received::Nothing);
        assert_eq!(transport.end, Some(End::Error(Errno::CONNRESET)));
        transport.send(b"more", &mut buffers);
        transport.flush(&mut buffers);
        assert_eq!(transport.pending(), 0);
    }

    #[test]
    fn a_peer_that_sent_unread_bytes_is_drained() {
        let (mut transport, mut peer, mut buffers) = fixture();
        transport.finish(&mut buffers);
        assert!(!transport.begin_draining(), "both sides have everything");
        peer.write_all(b"late").unwrap();
        assert!(transport.begin_draining() && transport.readable && transport.end.is_none());
    }
}
