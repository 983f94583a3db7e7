//! Reactions of the supervisor to signals.

use super::{Supervisor, UpgradeRequest};
use crate::signals::Caught;
use evener_core::event::Event;

impl Supervisor {
    pub(super) fn on_signal(&mut self, caught: Caught) {
        match caught {
            Caught::HangUp => self.begin_reload(None),
            Caught::End(signal) => self.on_stop(signal),
            // A front end handles these signals itself.
            Caught::User1 | Caught::User2 if self.reloads.has_front() => {}
            Caught::User1 => {
                self.request_logs.reopen();
                self.log(&Event::LogsReopened {});
            }
            Caught::User2 => self.begin_upgrade(&UpgradeRequest::default(), None),
        }
    }
}
