//! Pool of pipes for splice(2). A direction of a relay borrows a pipe while there are bytes in it.

use crate::context::descriptors::Unit;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Requested capacity of a pipe. Unprivileged processes may get less once they have many pipes (pipe(7)).
pub(crate) const PIPE_BYTES: usize = 256 * 1024;
/// Number of empty pipes that a worker pools; more are closed.
const IDLE_PIPES_MAX: usize = 64;

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Bytes for the same socket that follow the present ones at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Following {
    Nothing,
    Bytes,
}

/// Pipe between two sockets.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Number of bytes in the pipe.
    length: usize,
    _units: [Unit; 2],
}

impl Pipe {
    fn new() -> Result<Self, Errno> {
        // Pipes only serve speed: they take no descriptor that a client needs.
        let units = Unit::take_two().ok_or(Errno::MFILE)?;
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // A smaller pipe works as well.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Self { read, write, length: 0, _units: units })
    }

    /// Continues a pipe of another process, with `length` bytes in it.
    pub(super) fn of_ends([read, write]: [OwnedFd; 2], length: usize) -> Self {
        Self { read, write, length, _units: Unit::take_two_beyond() }
    }

    /// Takes the pipe apart, with the bytes in it.
    pub(super) fn into_ends(self) -> [OwnedFd; 2] {
        [self.read, self.write]
    }

    /// Puts bytes into an empty pipe. Returns false if they do not fit; then the pipe must not be used.
    pub(super) fn put(&mut self, bytes: &[u8]) -> bool {
        let written = rustix::io::write(&self.write, bytes);
        self.length = written.unwrap_or(0);
        written == Ok(bytes.len())
    }

    /// Returns the number of bytes in the pipe.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Moves bytes in from a socket, at most [`PIPE_BYTES`]; returns 0 at the end of the source.
    pub(crate) fn fill(&mut self, source: &OwnedFd) -> Result<usize, Errno> {
        self.fill_up_to(source, PIPE_BYTES)
    }

    /// Moves at most `limit` bytes in from a socket; returns 0 at the end of the source.
    pub(crate) fn fill_up_to(&mut self, source: &OwnedFd, limit: usize) -> Result<usize, Errno> {
        let moved = splice(source, None, &self.write, None, limit.min(PIPE_BYTES), FLAGS)?;
        self.length += moved;
        Ok(moved)
    }

    /// Moves bytes out to a socket.
    pub(crate) fn drain(&mut self, sink: &OwnedFd) -> Result<usize, Errno> {
        self.drain_before(sink, Following::Nothing)
    }

    /// Moves bytes out to a socket. If other bytes follow, the kernel may send these bytes together with them.
    pub(crate) fn drain_before(&mut self, sink: &OwnedFd, following: Following) -> Result<usize, Errno> {
        let more = if following == Following::Bytes { SpliceFlags::MORE } else { SpliceFlags::empty() };
        let moved = splice(&self.read, None, sink, None, self.length, FLAGS | more)?;
        self.length -= moved;
        Ok(moved)
    }
}

/// Empty pipes of a worker.
#[derive(Debug, Default)]
#[allow(clippy::vec_box, reason = "directions and the pool exchange boxed pipes, without moving a pipe")]
pub(crate) struct PipePool(Vec<Box<Pipe>>);

impl PipePool {
    /// Takes an empty pipe.
    pub(crate) fn take(&mut self) -> Result<Box<Pipe>, Errno> {
        self.0.pop().map_or_else(|| Pipe::new().map(Box::new), Ok)
    }

    /// Closes all empty pipes; returns the number of their descriptors.
    pub(crate) fn shed(&mut self) -> u32 {
        2 * self.0.drain(..).count() as u32
    }

    /// Gives a pipe back. A pipe with bytes in it is closed, because they must never reach another connection.
    pub(crate) fn give(&mut self, pipe: Box<Pipe>) {
        if pipe.is_empty() && self.0.len() < IDLE_PIPES_MAX {
            self.0.push(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_pass_through_a_pipe() {
        let ((mut sender, source), (sink, mut receiver)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let (source, sink) = (OwnedFd::from(source), OwnedFd::from(sink));
        let mut pipe = PipePool::default().take().unwrap();
        sender.write_all(b"bytes").unwrap();
        assert_eq!((pipe.fill(&source), pipe.len()), (Ok(5), 5));
        assert_eq!((pipe.drain(&sink), pipe.len()), (Ok(5), 0));
        let mut got = [0; 5];
        receiver.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"bytes");
        drop(sender);
        assert_eq!(pipe.fill(&source), Ok(0), "the source has ended");
    }

    #[test]
    fn a_pipe_with_bytes_in_it_does_not_return_to_the_pool() {
        let (mut sender, source) = UnixStream::pair().unwrap();
        let mut pool = PipePool::default();
        let (empty, mut filled) = (pool.take().unwrap(), pool.take().unwrap());
        sender.write_all(b"secret").unwrap();
        filled.fill(&source.into()).unwrap();
        pool.give(filled);
        assert_eq!(pool.0.len(), 0);
        pool.give(empty);
        assert_eq!((pool.0.len(), pool.shed(), pool.shed()), (1, 2, 0));
    }

    #[test]
    fn a_pool_is_bounded() {
        let mut pool = PipePool::default();
        let pipes: Vec<_> = (0..=IDLE_PIPES_MAX).map(|_| pool.take().unwrap()).collect();
        pipes.into_iter().for_each(|pipe| pool.give(pipe));
        assert_eq!(pool.0.len(), IDLE_PIPES_MAX);
    }
}
