//! The quorum of a pool: the weight of its usable servers against the configured sum.

use super::Pool;
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
        let is_usable = |admission| matches!(admission, Admission::Open | Admission::Unchecked);
        let usable =
            self.servers.iter().filter(|server| !server.spec.is_sorry && is_usable(server.admission()));
        let weight = usable.fold(0_u32, |sum, server| sum.saturating_add(server.spec.weight));
        let had_quorum = self.quorum.map(|quorum| quorum.is_met);
        // A new pool begins without hysteresis.
        let is_met = match had_quorum {
            Some(had_quorum) => spec.is_met(weight, had_quorum),
            None => weight >= spec.weight,
        };
        Some(Quorum { spec, weight, is_met })
    }
}
