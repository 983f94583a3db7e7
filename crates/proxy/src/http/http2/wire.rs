//! A wire in memory: what `h2` reads was put there, what it writes is taken from there. It never wakes anybody; who puts
//! or takes polls afterwards.

use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much may wait to be taken.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The wire; clones are the same one. The lock is never waited for: one thread has all clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire(Arc<Mutex<Ends>>);

#[derive(Debug, Default)]
struct Ends {
    input: BytesMut,
    output: Vec<u8>,
    over: bool,
}

impl Wire {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the client sent.
    pub(super) fn put(&self, bytes: &[u8]) {
        self.ends().input.extend_from_slice(bytes);
    }

    /// The client sends nothing more.
    pub(super) fn end(&self) {
        self.ends().over = true;
    }

    /// Takes the bytes to be sent.
    pub(super) fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut self.ends().output)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.ends();
        if ends.input.is_empty() {
            return if ends.over { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let length = ends.input.len().min(into.remaining());
        into.put_slice(&ends.input[..length]);
        ends.input.advance(length);
        if ends.input.is_empty() {
            // An idle connection holds no buffer.
            ends.input = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut ends = self.ends();
        let room = OUTPUT_BYTES_MAX.saturating_sub(ends.output.len());
        if room == 0 {
            return Poll::Pending;
        }
        let length = room.min(bytes.len());
        ends.output.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
