//! The entry of a connection in the log of its service.

use super::{Connection, Stage};
use crate::context::Context;
use crate::service::access_entry::AccessEntry;
use evener_core::Time;
use evener_core::reason::{Cause, Reason};
use evener_core::request_log::RequestText;
use std::net::SocketAddr;

impl Connection {
    /// Begins the entry of the connection in the log of the service, if it has one. `peer` is the other side of the
    /// socket.
    pub(in crate::tcp) fn begin_entry(&mut self, cx: &Context, peer: SocketAddr) {
        let entry = AccessEntry::begin(cx, &self.service, &self.settings, peer, RequestText::default);
        if let Some(entry) = entry {
            self.admitted.get_or_insert_default().entry = Some(entry);
        }
    }

    /// The entry of the connection in the log, if there is one.
    pub(super) fn entry(&self) -> Option<&AccessEntry> {
        self.admitted.as_deref()?.entry.as_deref()
    }

    /// Sets the reason of the end of the connection for the log.
    pub(in crate::tcp) fn set_end(&self, cause: impl Into<Cause>) {
        if let Some(entry) = self.entry() {
            entry.set_cause(cause);
        }
    }

    /// Records the end of the connection for the log.
    pub(in crate::tcp) fn end_entry(&self, now: Time) {
        let Some(entry) = self.entry() else { return };
        if matches!(self.stage, Stage::Preamble | Stage::Connecting | Stage::Queued) {
            entry.set_cause(Reason::ClientClosed);
        }
        entry.ended(self.address, now);
    }
}
