//! Wire in memory: `h2` reads the bytes that [`Wire::add_input`] adds, and [`Wire::take_output`] takes the
//! bytes that `h2` writes. The wire never wakes a task; the caller polls `h2` after each of these calls.

use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most output bytes that wait to be taken.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// Wire in memory; its clones share the same buffers. The lock is never contended, because one thread owns all
/// clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire(Arc<Mutex<WireBuffers>>);

#[derive(Debug, Default)]
struct WireBuffers {
    input: BytesMut,
    output: Vec<u8>,
    has_ended: bool,
}

impl Wire {
    fn buffers(&self) -> MutexGuard<'_, WireBuffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes that the client sent.
    pub(super) fn add_input(&self, bytes: &[u8]) {
        self.buffers().input.extend_from_slice(bytes);
    }

    /// Records that the client sends nothing more.
    pub(super) fn end(&self) {
        self.buffers().has_ended = true;
    }

    /// Takes the bytes for the client.
    pub(super) fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut self.buffers().output)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut buffers = self.buffers();
        if buffers.input.is_empty() {
            return if buffers.has_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let length = buffers.input.len().min(into.remaining());
        into.put_slice(&buffers.input[..length]);
        buffers.input.advance(length);
        if buffers.input.is_empty() {
            // An idle connection has no buffer.
            buffers.input = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut buffers = self.buffers();
        let room = OUTPUT_BYTES_MAX.saturating_sub(buffers.output.len());
        if room == 0 {
            return Poll::Pending;
        }
        let length = room.min(bytes.len());
        buffers.output.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
