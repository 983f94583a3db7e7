//! Draining of request bodies after the response was sent. The bytes of the bodies are discarded for a limited
//! time, so that clients read the response: some clients (curl 7.88) lose a response if a reset follows
//! immediately.

use crate::http::client::{LINGER, LINGER_BYTES_MAX};
use evener_core::Time;
use h2::RecvStream;
use std::task::{self, Poll, Waker};

/// Body that is drained.
struct DrainedBody {
    body: RecvStream,
    /// Time at which draining ends.
    until: Time,
    bytes: usize,
}

/// Drained bodies of a connection. The limit for streams also limits the number of drained bodies.
#[derive(Default)]
pub(super) struct DrainedBodies(Vec<DrainedBody>);

impl DrainedBodies {
    /// Drains the body of a request whose response was sent.
    pub(super) fn add(&mut self, body: RecvStream, now: Time) {
        if !body.is_end_stream() {
            self.0.push(DrainedBody { body, until: now + LINGER, bytes: 0 });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Discards the bytes that came. A body that does not end within its limits is dropped, which resets its
    /// stream without an error (RFC 9113, section 8.1).
    pub(super) fn discard_received(&mut self, now: Time) {
        self.0.retain_mut(|body| body.until > now && body.discard_received());
    }
}

impl DrainedBody {
    fn discard_received(&mut self) -> bool {
        let mut context = task::Context::from_waker(Waker::noop());
        loop {
            match self.body.poll_data(&mut context) {
                Poll::Pending => return true,
                Poll::Ready(Some(Ok(data))) => {
                    self.bytes += data.len();
                    let _ = self.body.flow_control().release_capacity(data.len());
                    if self.bytes > LINGER_BYTES_MAX {
                        return false;
                    }
                }
                Poll::Ready(Some(Err(_)) | None) => return false,
            }
        }
    }
}
