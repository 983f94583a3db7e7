//! What the supervisor says when the program itself is short of something: descriptors, ports, memory. None of it is a
//! verdict on a server.

use super::{Probed, Supervisor};
use evener_core::event::Event;
use evener_core::{ServerId, Time};
use std::sync::Arc;
use std::time::Duration;

/// A shortage that lasts is told this often.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What was said last of shortages.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    told_at: Option<Time>,
}

impl Shortage {
    /// Whether it is to be told again.
    fn is_due(&mut self, now: Time) -> bool {
        let due = self.told_at.is_none_or(|at| now.since(at) >= TOLD_EVERY);
        if due {
            self.told_at = Some(now);
        }
        due
    }
}

impl Supervisor {
    /// A connect failed for a reason of our own. Workers report one now and then.
    pub(super) fn local_error(
        &self,
        pool: Arc<str>,
        server: ServerId,
        error: &std::io::Error,
    ) -> Option<Event> {
        let server = self.pools.get(&pool)?.pool.server(server)?.spec.name.clone();
        Some(Event::LocalError { pool, server, error: error.to_string() })
    }

    /// A check could not be made: the verdict stays, and it is made again when the next one is due.
    pub(super) fn on_unmade(&mut self, who: &Probed, server: Arc<str>, error: &str) {
        let now = self.now();
        let Some(running) = self.pools.get(&who.pool) else { return };
        if let Some(of) = running.pool.server(who.server) {
            of.live.counters.of(0).local_errors.one_shared();
        }
        if self.shortage.is_due(now) {
            self.tell(&Event::LocalError { pool: who.pool.clone(), server, error: error.to_owned() });
        }
    }
}
