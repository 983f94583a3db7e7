//! Buffers for received and queued bytes. A worker pools empty buffers and pipes, so that an idle connection has none.

use crate::io::pipe::{Pipe, PipePool};
use rustix::io::Errno;

/// Most bytes that one receive reads.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;
/// Number of empty buffers that a worker pools.
const BUFFERS_POOLED_MAX: usize = 64;
/// Number of consumed bytes at the front of a queue at which the remaining bytes are moved to the front.
const CONSUMED_BYTES_MAX: usize = 64 * 1024;

/// Memory that all transports of a worker share.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Empty buffers.
    free: Vec<Vec<u8>>,
    /// Output buffer for sealed records; empty between two sends.
    sealed: Vec<u8>,
    pipes: PipePool,
}

impl Buffers {
    /// Takes an empty pipe.
    pub(super) fn take_pipe(&mut self) -> Result<Box<Pipe>, Errno> {
        self.pipes.take()
    }

    /// Gives a pipe back; a pipe with bytes in it is closed.
    pub(super) fn give_pipe(&mut self, pipe: Box<Pipe>) {
        self.pipes.give(pipe);
    }

    /// Closes all empty pipes; returns the number of their descriptors.
    pub(crate) fn shed_pipes(&mut self) -> u32 {
        self.pipes.shed()
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    /// Takes the buffer for sealed records, empty.
    pub(super) fn take_sealed(&mut self) -> Buffer {
        let mut bytes = std::mem::take(&mut self.sealed);
        bytes.clear();
        Buffer { bytes, start: 0 }
    }

    /// Gives the buffer for sealed records back, and returns a copy of the bytes that were not consumed.
    pub(super) fn give_sealed(&mut self, sealed: Buffer) -> Buffer {
        let rest = Buffer { bytes: sealed.unread().to_vec(), start: 0 };
        self.sealed = sealed.bytes;
        rest
    }

    pub(super) fn give(&mut self, mut buffer: Vec<u8>) {
        // A buffer that grew would make the pool large.
        let usual = (BUFFER_BYTES..=2 * BUFFER_BYTES).contains(&buffer.capacity());
        if usual && self.free.len() < BUFFERS_POOLED_MAX {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

/// Queue of bytes: they are appended at the end and consumed from the front.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Returns the bytes that were not consumed yet.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Consumes `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
    }

    /// Returns the bytes that were not consumed yet, for changes.
    pub(super) fn unread_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// Returns the bytes, for appending more.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Returns whether the queue has no memory.
    pub(super) fn has_no_memory(&self) -> bool {
        self.bytes.capacity() == 0
    }

    /// Moves the remaining bytes to the front, once many were consumed.
    pub(super) fn compact(&mut self) {
        if self.start >= CONSUMED_BYTES_MAX {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Makes room for another receive behind the remaining bytes.
    pub(super) fn room(&mut self, buffers: &mut Buffers) -> &mut Vec<u8> {
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
    pub(super) fn settle(&mut self, buffers: &mut Buffers) {
        if self.is_empty() && self.bytes.capacity() > 0 {
            buffers.give(std::mem::take(&mut self.bytes));
            self.start = 0;
        }
    }
}

#[cfg(test)]
impl Buffers {
    /// Returns the number of pooled buffers.
    pub(super) fn pooled(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), start: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
