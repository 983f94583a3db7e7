//! The quorum of a pool: the weight of its usable servers against the configured sum.

use super::{Pool, Server};
use crate::snapshot::{Admission, Quorum};
use crate::spec::QuorumSpec;

impl Pool {
    /// Weighs the usable servers and decides whether the pool has its quorum. Returns `None` if it needs none.
    pub(super) fn count_quorum(&mut self) -> Option<Quorum> {
        self.quorum = self.weigh();
        self.quorum
    }

    /// Returns the quorum at the last snapshot, if the pool needs one.
    #[must_use]
    pub fn quorum(&self) -> Option<&Quorum> {
        self.quorum.as_ref()
    }

    fn weigh(&self) -> Option<Quorum> {
        let has_sorry = self.servers.iter().any(|server| server.spec.is_sorry);
        let spec = self.spec.quorum.or_else(|| has_sorry.then_some(QuorumSpec::ANY))?;
        let had_quorum = self.quorum.map(|quorum| quorum.is_met);
        // Servers that are added while the quorum is lost have to pass a check before they count.
        let counts_unchecked = had_quorum != Some(false);
        let is_usable = |server: &&Server| match server.admission() {
            Admission::Open => !server.spec.is_sorry,
            Admission::Unchecked => counts_unchecked && !server.spec.is_sorry,
            _ => false,
        };
        let usable = self.servers.iter().filter(is_usable);
        let weight = usable.fold(0_u32, |sum, server| sum.saturating_add(server.spec.weight));
        // A new pool begins without hysteresis.
        let is_met = match had_quorum {
            Some(had_quorum) => spec.is_met(weight, had_quorum),
            None => weight >= spec.weight,
        };
        Some(Quorum { spec, weight, is_met })
    }
}
