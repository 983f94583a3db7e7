//! Tries each operation that workers use on a ring, because kernels, containers and policies forbid single operations,
//! which no version tells.

use super::{Completion, Mark, Piece, Received, Ring};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socketpair};
use std::io;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

/// Time limit of an operation, which takes microseconds.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Marks of the operations; each kind differs from the others.
const POLL: u32 = 1;
const RECEIVE: u32 = 2;
const SEND: u32 = 3;
const CONNECT: u32 = 4;

impl Ring {
    /// Creates a ring and tries its operations. `Err` names the first operation that fails.
    pub(crate) fn probe() -> io::Result<()> {
        let mut ring = Self::new()?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let received = ring.probe_receive(&near, &far).map_err(|error| named("multishot receive", &error))?;
        ring.probe_send(&near, &far, received).map_err(|error| named("send", &error))?;
        ring.probe_cancel().map_err(|error| named("cancel", &error))?;
        ring.probe_connect().map_err(|error| named("connect", &error))?;
        ring.probe_close().map_err(|error| named("close", &error))
    }

    /// Waits with a poll for a byte, and receives it into a buffer of the ring. The receive goes on.
    fn probe_receive(&mut self, near: &OwnedFd, far: &OwnedFd) -> io::Result<Piece> {
        self.poll(near.as_raw_fd(), libc::POLLIN, mark(POLL));
        rustix::io::write(far, b"1")?;
        self.completion_of(POLL)?.result()?;
        self.receive(near, mark(RECEIVE));
        let completion = self.completion_of(RECEIVE)?;
        match self.take_received(&completion) {
            Received::Bytes(piece) if completion.continues() => Ok(piece),
            Received::Failed(error) => Err(error.into()),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    /// Sends the bytes of a buffer.
    fn probe_send(&mut self, near: &OwnedFd, far: &OwnedFd, piece: Piece) -> io::Result<()> {
        self.send(near, piece, mark(SEND));
        self.completion_of(SEND)?.result()?;
        let mut byte = [0];
        rustix::io::read(far, &mut byte)?;
        self.give_back(piece);
        Ok(())
    }

    /// Cancels the receive.
    fn probe_cancel(&mut self) -> io::Result<()> {
        self.cancel(mark(RECEIVE));
        let completion = self.completion_of(RECEIVE)?;
        match self.take_received(&completion) {
            Received::Cancelled => Ok(()),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    /// Connects a socket for datagrams, which succeeds without a network.
    fn probe_connect(&mut self) -> io::Result<()> {
        let [near, far] = [UnixDatagram::unbound()?, UnixDatagram::unbound()?];
        // Without a path, the kernel chooses an abstract name (unix(7)).
        rustix::net::bind(&far, &SocketAddrUnix::new_unnamed())?;
        let far = socket2::Socket::from(OwnedFd::from(far));
        let near = OwnedFd::from(near);
        self.connect(&near, far.local_addr()?, mark(CONNECT));
        self.completion_of(CONNECT)?.result()?;
        Ok(())
    }

    /// Closes one side of a pair, which the other side notices.
    fn probe_close(&mut self) -> io::Result<()> {
        let (near, far) = UnixStream::pair()?;
        self.close(near.into());
        self.poll(far.as_raw_fd(), libc::POLLIN, mark(POLL));
        self.completion_of(POLL)?.result()?;
        Ok(())
    }

    /// Waits for the completion of an operation. An operation without a mark completes only if it fails, or if it
    /// cancelled another one.
    fn completion_of(&mut self, number: u32) -> io::Result<Completion> {
        let until = Instant::now() + TIMEOUT;
        loop {
            while let Some(completion) = self.next() {
                match completion.mark() {
                    Mark::Nothing => drop(completion.result()?),
                    found if found == mark(number) => return Ok(completion),
                    _ => {}
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wait(Some(left));
        }
    }
}

fn mark(number: u32) -> Mark {
    Mark::Connect(super::ConnectId { slot: number, generation: 0 })
}

fn named(operation: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{operation}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_passes_where_it_can_be_made() {
        match (Ring::new(), Ring::probe()) {
            (Ok(_), probed) => assert!(probed.is_ok(), "{probed:?}"),
            (Err(_), probed) => assert!(probed.is_err()),
        }
    }
}
