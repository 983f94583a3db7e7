//! Bodies that still come after the response to their request is out. They are taken and thrown away for a time, so that
//! their clients read the response: some (curl 7.88) lose one that a reset follows at once.

use crate::http::client::{LINGER, LINGER_BYTES_MAX};
use evener_core::Time;
use h2::RecvStream;
use std::task::{self, Poll, Waker};

/// Rest of the body of one request.
struct Rest {
    body: RecvStream,
    /// Until when it is taken.
    until: Time,
    bytes: usize,
}

/// The rests of a connection; its streams are their bound.
#[derive(Default)]
pub(super) struct Rests(Vec<Rest>);

impl Rests {
    /// Takes a body in whose response is out.
    pub(super) fn add(&mut self, body: RecvStream, now: Time) {
        if !body.is_end_stream() {
            self.0.push(Rest { body, until: now + LINGER, bytes: 0 });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what came. A body that does not end within its bounds is dropped, which resets its stream without an error
    /// (RFC 9113, section 8.1).
    pub(super) fn take(&mut self, now: Time) {
        self.0.retain_mut(|rest| rest.until > now && rest.goes_on());
    }
}

impl Rest {
    fn goes_on(&mut self) -> bool {
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
