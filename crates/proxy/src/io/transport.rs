//! A link: one socket of a layered connection, with TLS or without. It receives into a buffer that it takes when there
//! is something to read, and keeps what the socket does not take; both are given back when they are empty, so an idle
//! link holds none.

use crate::io::relay::End;
use crate::io::sys;
use crate::io::tls::{Opened, Tls};
use evener_core::pace::Progress;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// What one receive brings at most.
const BUFFER_BYTES: usize = 64 * 1024;
/// So many empty buffers are kept by a worker.
const BUFFERS_KEPT: usize = 64;
/// Whoever has so much waiting for its socket gets nothing more until that is taken.
pub(crate) const PENDING_BYTES_MAX: usize = 64 * 1024;

/// The buffers that the links of a worker use in turn.
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
        // One that grew would make the kept ones large.
        let usual = (BUFFER_BYTES..=2 * BUFFER_BYTES).contains(&buffer.capacity());
        if usual && self.free.len() < BUFFERS_KEPT {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

/// Bytes that are used up from the front.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// What is left.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Uses up `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
    }

    /// Forgets what is used up, when that is much.
    fn compact(&mut self) {
        if self.start >= PENDING_BYTES_MAX {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Room behind what is left, for another receive.
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

    /// Gives the memory back when nothing is left in it.
    fn settle(&mut self, buffers: &mut Buffers) {
        if self.is_empty() && self.bytes.capacity() > 0 {
            buffers.give(std::mem::take(&mut self.bytes));
            self.start = 0;
        }
    }
}

/// What became of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// There is more in the input, or a handshake went on.
    Some,
    /// There is nothing now, or the source ended.
    Nothing,
}

/// How far the end of our side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Open,
    /// To be said when everything is taken.
    Ending,
    Ended,
}

/// A link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: OwnedFd,
    tls: Option<Box<Tls>>,
    /// The handshake is complete; without TLS from the beginning.
    established: bool,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) hung_up: bool,
    /// What was received and not used yet.
    pub(crate) input: Buffer,
    /// Records that are not whole yet.
    records: Buffer,
    /// What the socket has not taken yet.
    output: Buffer,
    /// What is to be sealed when the handshake is complete.
    early: Vec<u8>,
    /// How many bytes the socket took so far.
    taken: u64,
    /// How the other side's sending ended.
    pub(crate) end: Option<End>,
    /// TLS ended without saying so: what came may be a part (RFC 8446, section 6.1).
    pub(crate) cut: bool,
    /// Nothing can be sent any more.
    pub(crate) broken: bool,
    ours: Ours,
    /// Why TLS failed.
    pub(crate) failure: Option<rustls::Error>,
}

impl Link {
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

    /// From now on TLS is spoken; what came already is part of it.
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

    /// How many bytes wait for the socket.
    pub(crate) fn pending(&self) -> usize {
        self.output.len() + self.early.len()
    }

    /// How many bytes the other side has not received, what the kernel holds for it included.
    pub(crate) fn left(&self) -> usize {
        self.pending() + sys::undelivered(self.socket.as_fd())
    }

    /// How far the other side is with what it is sent.
    pub(crate) fn progress(&self) -> Progress {
        let (pending, held) = (self.pending() as u64, sys::undelivered(self.socket.as_fd()) as u64);
        Progress {
            moved: self.taken.saturating_sub(held),
            owed: (pending + held > 0).then_some(self.taken + pending),
        }
    }

    /// Whether nothing more will come and nothing is left of what came.
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
                // The error was told to whoever sent: what looks like the end is none.
                let reset = self.broken && self.end.is_none();
                self.end = Some(if reset { End::Error(Errno::CONNRESET) } else { End::Fin });
                self.cut = self.tls.is_some();
            }
            Ok((read, _)) => {
                // A short read emptied the socket: the next edge tells of more, unless the end was told already.
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

    /// Sends what the socket takes now, and keeps the rest. Whoever calls looks at [`Link::pending`] before giving more.
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
            // Sealed in a buffer that all links share; only what the socket leaves over is kept.
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
        // Only the kernel's refusal promises an edge.
        self.flush_output();
    }

    /// What goes before everything, TLS included.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        debug_assert!(self.tls.is_none(), "nothing raw goes into TLS");
        self.send_plain(bytes);
    }

    /// How many bytes the socket takes; `None` when it is broken.
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
                // What the other side said before is still there.
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

    /// Sends what waits; then the end, if that is due.
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

    /// Nothing more is sent after what waits.
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

    /// Whether our end was said, and taken by the socket.
    pub(crate) fn is_finished(&self) -> bool {
        self.ours == Ours::Ended || self.broken
    }

    /// The other side is to be heard after all, though it is for nobody, until it has received everything; whether that is
    /// so. A reset, for what it says to a closed socket, would take from it what is on its way.
    pub(crate) fn hear_out(&mut self) -> bool {
        let needs = self.left() > 0 || !sys::is_all_read(self.socket.as_fd());
        if needs {
            (self.end, self.readable) = (None, true);
        }
        needs
    }

    /// Gives back what is empty.
    pub(crate) fn settle(&mut self, buffers: &mut Buffers) {
        self.input.settle(buffers);
        self.records.settle(buffers);
    }

    /// Gives everything back; the link is over.
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
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_waits_takes_no_more_memory_than_that_however_long_it_goes_on() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        socket2::SockRef::from(&ours).set_send_buffer_size(4096).unwrap();
        let (mut link, mut buffers) = (Link::new(ours.into()), Buffers::default());
        let (mut sent, mut piece) = (0, [0; 4096]);
        for _ in 0..4000 {
            // It is never all taken.
            while link.pending() < PENDING_BYTES_MAX {
                link.send(&[0; 10_000], &mut buffers);
                sent += 10_000;
            }
            theirs.read_exact(&mut piece).unwrap();
            link.writable = true;
            link.flush(&mut buffers);
        }
        assert!(sent > 100 * PENDING_BYTES_MAX, "{sent}");
        assert!(link.output.bytes.capacity() <= 8 * PENDING_BYTES_MAX, "{}", link.output.bytes.capacity());
    }
}
