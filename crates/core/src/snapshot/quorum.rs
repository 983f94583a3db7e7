//! The quorum of a pool at one moment.

use super::Snapshot;
use crate::spec::QuorumSpec;

/// The quorum of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// The demanded weight.
    pub spec: QuorumSpec,
    /// The weight of the usable servers.
    pub weight: u32,
    /// The pool has its quorum.
    pub is_met: bool,
}

impl Snapshot {
    /// Returns the quorum, if the pool needs one.
    #[must_use]
    pub fn quorum(&self) -> Option<&Quorum> {
        self.quorum.as_ref()
    }

    /// Returns true if the pool needs a quorum and has less.
    #[must_use]
    pub fn lacks_quorum(&self) -> bool {
        self.quorum.is_some_and(|quorum| !quorum.is_met)
    }
}
