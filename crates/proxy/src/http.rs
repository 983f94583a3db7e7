//! HTTP and TLS: sessions with clients, exchanges with servers.
//!
//! Each part uses only the parts after it:
//!
//! ```text
//! session -> http1, http2, tunnel -> judge -> exchange -> pooled, client, local_response, message
//! ```
//!
//! A session owns its exchanges. An exchange returns the progress that an event made, and a protocol returns
//! its decision about the session; the session handles both.

mod client;
mod exchange;
mod http1;
mod http2;
mod judge;
mod local_response;
mod log_entry;
mod message;
mod pooled;
mod session;
#[cfg(test)]
mod tests;
mod tunnel;

use self::exchange::Shared;
use self::session::Session;
use crate::context::Context;
use crate::context::keys::{SessionKey, Table, of};
use evener_core::Time;
use std::time::Duration;

/// The clients of one worker that use HTTP or TLS.
pub(crate) struct Http {
    sessions: Table<of::Session, Box<Session>>,
    /// Sessions that ended while the present events were handled.
    ended: Vec<SessionKey>,
    shared: Shared,
}

impl Http {
    pub(crate) fn new(seed: u64) -> Self {
        Self { sessions: Table::default(), ended: Vec::new(), shared: Shared::new(seed) }
    }

    /// Returns the time until the next deadline may be due; `None` when there is no deadline.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        self.shared.wait(now)
    }

    /// Handles the deadlines that are due.
    pub(crate) fn on_deadlines(&mut self, cx: &mut Context) {
        let mut due = Vec::new();
        self.shared.session_timers.expire(cx.now, &mut due);
        due.into_iter().for_each(|key| self.on_session_deadline(cx, key));
        let mut due = Vec::new();
        self.shared.exchange_timers.expire(cx.now, &mut due);
        due.into_iter().for_each(|key| self.on_exchange_deadline(cx, key));
        self.shared.on_unused_deadlines(cx);
    }

    /// Closes unused pipes, and pooled connections to servers, the longest idle first, until `wanted`
    /// descriptors are freed; returns the number of freed descriptors.
    pub(crate) fn shed_pooled(&mut self, cx: &mut Context, wanted: u32) -> u32 {
        let of_pipes = self.shared.buffers.shed_pipes();
        of_pipes + self.shared.shed_pooled(cx, wanted.saturating_sub(of_pipes))
    }
}
