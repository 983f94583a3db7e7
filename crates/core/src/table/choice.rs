//! Tables of choices: the policy of a pool as a list of slots, for planes that can only look up. A new client gets
//! the server of one slot. The tables are derived from the candidates of a [`PoolTable`].

use super::{PoolTable, Row};
use crate::ServerId;
use crate::hash::mix;
use crate::policy::{Contender, Latency, Table, WEIGHT_UNIT, rendezvous_slots};
use crate::spec::{Failover, Policy};

/// Number of slots of a table for the policy `hash`; a prime, so that every bit of a hash counts.
const HASH_SLOTS: u32 = 65_537;
/// Maximum number of slots that are tried in place of a slot whose server takes no new clients.
const SUBSTITUTES_MAX: u64 = 128;

/// A table of choices.
///
/// ```
/// use evener_core::pool::{Pool, PoolSetting};
/// use evener_core::spec::{PoolSpec, ServerSpec};
/// use evener_core::table::{ChoiceTable, ChooseBy, PoolTable};
/// use evener_core::{Endpoint, ServerId, Time};
///
/// let endpoints: Vec<Endpoint> = vec!["10.0.0.1:80".parse()?, "10.0.0.2:80".parse()?];
/// let targets: Vec<_> = endpoints.iter().filter_map(Endpoint::target).collect();
/// let spec = PoolSpec::new("web", endpoints.into_iter().map(ServerSpec::new).collect());
/// let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
/// let snapshot = Pool::new(&spec, &targets, setting, Time::ZERO).snapshot().unwrap();
///
/// let choices = ChoiceTable::derive(&PoolTable::derive(&spec, &snapshot));
/// assert_eq!(choices.by(), ChooseBy::Turn);
/// assert_eq!([0, 1, 2].map(|turn| choices.slot(turn)), [0, 1, 0].map(|id| Some(ServerId(id))));
/// # Ok::<(), evener_core::address::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceTable {
    by: ChooseBy,
    slots: Box<[ServerId]>,
}

/// The number that names the slot of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChooseBy {
    /// The number of the choice: slots in turn.
    Turn,
    /// The hash of the client's address ([`of_client`](crate::hash::of_client)).
    Client,
}

impl ChoiceTable {
    /// Derives the table of a pool. It has no slots if the pool has no candidates.
    ///
    /// The policies `round_robin` and `weighted` take the slots in turn. With `maglev` the slots are the Maglev table.
    /// With `hash` every slot belongs to the server with the best score for it, so the clients of a server that
    /// leaves are the only clients that move. Each other policy needs counts that a kernel plane does not have, and is
    /// treated as `round_robin`; the configuration refuses it.
    #[must_use]
    pub fn derive(pool: &PoolTable) -> Self {
        let policy = pool.traits().policy;
        let by = match policy {
            Policy::Hash | Policy::Maglev { .. } => ChooseBy::Client,
            _ => ChooseBy::Turn,
        };
        let is_strict = pool.traits().failover == Failover::Never;
        let candidates = match by {
            ChooseBy::Client => pool.candidates(),
            // Only servers that take new clients have turns, unless there is no failover.
            ChooseBy::Turn => pool
                .rows()
                .filter(|(_, row)| row.role.is_candidate && (is_strict || row.takes_new()))
                .collect(),
        };
        let contenders: Vec<Candidate<'_>> =
            candidates.iter().map(|(_, row)| Candidate { row, latency: Latency::default() }).collect();
        let mut positions = positions(policy, &contenders);
        if by == ChooseBy::Client && !is_strict {
            substitute(&mut positions, |at| candidates[at as usize].1.takes_new());
        }
        Self { by, slots: positions.iter().map(|&at| candidates[at as usize].0).collect() }
    }

    /// Returns the number that names the slot of a client.
    #[must_use]
    pub fn by(&self) -> ChooseBy {
        self.by
    }

    /// Returns the servers of the slots.
    #[must_use]
    pub fn slots(&self) -> &[ServerId] {
        &self.slots
    }

    /// Returns the server of the slot for a number, a turn or the hash of a client.
    #[must_use]
    pub fn slot(&self, number: u64) -> Option<ServerId> {
        let count = self.slots.len() as u64;
        (count > 0).then(|| self.slots[(number % count) as usize])
    }

    /// Picks the server of a new client: the server of the slot, or none if the server takes no new clients. Without
    /// failover a slot may have such a server.
    #[must_use]
    pub fn pick(&self, pool: &PoolTable, number: u64) -> Option<ServerId> {
        self.slot(number).filter(|id| pool.row(*id).is_some_and(Row::takes_new))
    }
}

/// Returns the position of a contender for each slot.
fn positions(policy: Policy, contenders: &[Candidate<'_>]) -> Box<[u32]> {
    match Table::prepare(policy, contenders) {
        Table::Cycle(slots) | Table::Maglev(slots) => slots,
        Table::Names(names) => rendezvous_slots(HASH_SLOTS, contenders, &names),
        Table::None => (0..contenders.len() as u32).collect(),
    }
}

/// Gives the slots of servers that take no new clients to servers that do. The other slots stay.
fn substitute(slots: &mut [u32], takes_new: impl Fn(u32) -> bool) {
    let count = slots.len() as u64;
    let missing: Vec<usize> = (0..slots.len()).filter(|&slot| !takes_new(slots[slot])).collect();
    if missing.is_empty() {
        return;
    }
    let Some(first) = slots.iter().copied().find(|&at| takes_new(at)) else { return };
    let substitutes: Vec<u32> = missing
        .iter()
        .map(|&slot| {
            let probed = (1..=SUBSTITUTES_MAX).map(|probe| slots[(mix(slot as u64, probe) % count) as usize]);
            probed.into_iter().find(|&at| takes_new(at)).unwrap_or(first)
        })
        .collect();
    missing.into_iter().zip(substitutes).for_each(|(slot, at)| slots[slot] = at);
}

/// A row as policies see it. The policies of tables of choices read no loads.
struct Candidate<'a> {
    row: &'a Row,
    latency: Latency,
}

impl Contender for Candidate<'_> {
    fn placement_name(&self) -> &str {
        &self.row.placement_name
    }
    fn share(&self) -> u32 {
        self.row.share
    }
    fn full_share(&self) -> u32 {
        self.row.weight * WEIGHT_UNIT
    }
    fn active(&self) -> u32 {
        0
    }
    fn latency(&self) -> &Latency {
        &self.latency
    }
}

#[cfg(test)]
mod tests;
