//! Policies: the choice of a server among the servers of a tier, one file for each policy.
//!
//! A snapshot prepares the data of a policy once ([`Table`]); a choice then only reads. A policy sees a
//! server as a [`Contender`]. The caller decides which servers are eligible (limits, access, already tried).

mod ewma;
mod hash;
mod least_conn;
mod maglev;
mod p2c;
mod weighted;

pub use ewma::Latency;
pub(crate) use hash::slots as rendezvous_slots;
pub use maglev::is_prime;

use crate::random::Random;
use crate::spec::Policy;
use crate::time::Time;

/// One weight unit of a contender. Shares are in these units, so that a slow start can give part of a weight.
pub const WEIGHT_UNIT: u32 = 256;

/// A server as policies see it.
pub trait Contender {
    /// Returns the name that is hashed for the placement.
    fn placement_name(&self) -> &str;
    /// Returns the share in [`WEIGHT_UNIT`]s, with slow start; a contender with the share 0 gets no clients.
    fn share(&self) -> u32;
    /// Returns the share in [`WEIGHT_UNIT`]s without slow start, for placements that must not change with
    /// time.
    fn full_share(&self) -> u32;
    /// Returns the present number of connections or flows.
    fn active(&self) -> u32;
    /// Returns the response latency.
    fn latency(&self) -> &Latency;
}

impl<C: Contender> Contender for std::sync::Arc<C> {
    fn placement_name(&self) -> &str {
        (**self).placement_name()
    }
    fn share(&self) -> u32 {
        (**self).share()
    }
    fn full_share(&self) -> u32 {
        (**self).full_share()
    }
    fn active(&self) -> u32 {
        (**self).active()
    }
    fn latency(&self) -> &Latency {
        (**self).latency()
    }
}

/// Data of a policy, prepared once for a tier.
#[derive(Clone, Debug)]
pub enum Table {
    /// None: the policy reads the contenders.
    None,
    /// Positions in the order of their turns.
    Cycle(Box<[u32]>),
    /// The Maglev table: positions by hash.
    Maglev(Box<[u32]>),
    /// Hashes of the names for rendezvous.
    Names(Box<[u64]>),
}

impl Table {
    /// Prepares `policy` for the contenders of a tier.
    #[must_use]
    pub fn prepare<C: Contender>(policy: Policy, contenders: &[C]) -> Self {
        match policy {
            Policy::RoundRobin if contenders.iter().all(|c| c.share() == c.full_share()) => Self::None,
            Policy::RoundRobin => {
                // A server is in slow start: it takes turns according to the part of its share that it has
                // reached.
                let parts =
                    |c: &C| (u64::from(c.share()) * 16).div_ceil(u64::from(c.full_share().max(1))) as u32;
                Self::Cycle(weighted::cycle(&contenders.iter().map(parts).collect::<Vec<_>>()))
            }
            Policy::Weighted => {
                Self::Cycle(weighted::cycle(&contenders.iter().map(Contender::share).collect::<Vec<_>>()))
            }
            Policy::Maglev { table } => Self::Maglev(maglev::table(table, contenders)),
            Policy::Hash => {
                Self::Names(contenders.iter().map(|c| crate::hash::of_name(c.placement_name(), 0)).collect())
            }
            Policy::First
            | Policy::LeastConn
            | Policy::LeastOutstanding
            | Policy::P2c
            | Policy::Ewma { .. } => Self::None,
        }
    }
}

/// Input of a choice besides the contenders.
#[derive(Debug)]
pub struct Draw<'a> {
    /// The client's placement hash.
    pub client: u64,
    /// The number of this choice, for policies that take turns.
    pub turn: u64,
    /// Time of the choice.
    pub now: Time,
    /// Source of randomness.
    pub random: &'a mut Random,
}

/// Returns the position of an eligible contender, if there is one.
pub fn choose<C: Contender>(
    policy: Policy,
    table: &Table,
    contenders: &[C],
    draw: &mut Draw<'_>,
    eligible: impl Fn(usize) -> bool,
) -> Option<usize> {
    let count = contenders.len();
    match (policy, table) {
        (_, Table::Cycle(cycle)) => in_turn(cycle.len(), draw.turn, |at| cycle[at] as usize, eligible),
        (_, Table::Maglev(table)) => maglev::choose(table, draw.client, count, eligible),
        (_, Table::Names(names)) => hash::choose(contenders, names, draw.client, eligible),
        (Policy::First, _) => (0..count).find(|&at| eligible(at)),
        (Policy::LeastOutstanding, _) => {
            let now = draw.now;
            least_conn::choose_soonest(contenders, now, eligible)
        }
        (Policy::LeastConn, _) => least_conn::choose(contenders, draw.turn, eligible),
        (Policy::P2c, _) => p2c::choose(count, draw.random, eligible, |at| least_conn::load(&contenders[at])),
        (Policy::Ewma { decay }, _) => {
            let now = draw.now;
            p2c::choose(count, draw.random, eligible, |at| ewma::cost(&contenders[at], now, decay))
        }
        _ => in_turn(count, draw.turn, |at| at, eligible),
    }
}

/// Returns the number by which the policy compares a contender with others: the load or cost, of which the lowest wins,
/// or for [`Policy::Hash`] the score for the client, of which the highest wins. Returns `None` for policies that compare
/// nothing, and for a contender without a share.
pub fn score(policy: Policy, contender: &impl Contender, client: u64, now: Time) -> Option<f64> {
    if contender.share() == 0 {
        return None;
    }
    match policy {
        Policy::LeastConn | Policy::LeastOutstanding | Policy::P2c => Some(least_conn::load(contender)),
        Policy::Ewma { decay } => Some(ewma::cost(contender, now, decay)),
        Policy::Hash => Some(hash::score_of(contender, client)),
        Policy::RoundRobin | Policy::Weighted | Policy::First | Policy::Maglev { .. } => None,
    }
}

/// Returns every position in the order in which [`choose`] would return them one by one if nothing changed.
/// The order is random for random policies, and costs little more than one choice.
pub fn order<C: Contender>(policy: Policy, table: &Table, contenders: &[C], draw: &mut Draw<'_>) -> Vec<u32> {
    let count = contenders.len();
    let turned = |length: usize| {
        let start = if length == 0 { 0 } else { (draw.turn % length as u64) as usize };
        (start..length).chain(0..start)
    };
    match (policy, table) {
        (_, Table::Cycle(cycle)) => once(turned(cycle.len()).map(|at| cycle[at] as usize), count),
        (_, Table::Maglev(table)) => maglev::order(table, draw.client, count),
        (_, Table::Names(names)) => hash::order(contenders, names, draw.client),
        (Policy::First, _) => once(0..count, count),
        (Policy::LeastOutstanding, _) => least_conn::order_soonest(contenders, draw.now),
        (Policy::LeastConn, _) => least_conn::order(contenders, turned(count)),
        (Policy::P2c, _) => p2c::order(count, draw.random, |at| least_conn::load(&contenders[at])),
        (Policy::Ewma { decay }, _) => {
            let now = draw.now;
            p2c::order(count, draw.random, |at| ewma::cost(&contenders[at], now, decay))
        }
        _ => once(turned(count), count),
    }
}

/// Returns the positions below `count`, each at its first occurrence.
fn once(positions: impl Iterator<Item = usize>, count: usize) -> Vec<u32> {
    let mut seen = vec![false; count];
    let first = positions.filter(|&at| !std::mem::replace(&mut seen[at], true));
    first.map(|at| at as u32).collect()
}

/// Returns the positions by cost; of equal costs the earlier position is first.
fn by_cost<K>(
    positions: impl Iterator<Item = usize>,
    cost: impl Fn(usize) -> K,
    compare: impl Fn(&K, &K) -> std::cmp::Ordering,
) -> Vec<u32> {
    let mut costs: Vec<(u32, K)> = positions.map(|at| (at as u32, cost(at))).collect();
    costs.sort_by(|(_, a), (_, b)| compare(a, b));
    costs.into_iter().map(|(at, _)| at).collect()
}

/// Returns the first eligible position from turn `turn` on.
fn in_turn(
    length: usize,
    turn: u64,
    position: impl Fn(usize) -> usize,
    eligible: impl Fn(usize) -> bool,
) -> Option<usize> {
    let start = if length == 0 { 0 } else { (turn % length as u64) as usize };
    (start..length).chain(0..start).map(position).find(|&at| eligible(at))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A contender for tests.
    #[derive(Debug, Default)]
    pub(crate) struct Fake {
        name: String,
        weight: u32,
        active: u32,
        latency: Latency,
    }

    impl Fake {
        /// Sets the number of connections.
        pub(crate) fn set_active(&mut self, active: u32) {
            self.active = active;
        }
    }

    impl Contender for Fake {
        fn placement_name(&self) -> &str {
            &self.name
        }
        fn share(&self) -> u32 {
            self.weight * WEIGHT_UNIT
        }
        fn full_share(&self) -> u32 {
            self.share()
        }
        fn active(&self) -> u32 {
            self.active
        }
        fn latency(&self) -> &Latency {
            &self.latency
        }
    }

    /// Returns contenders with these weights, named by their position.
    pub(crate) fn fakes(weights: &[u32]) -> Vec<Fake> {
        let fake = |(at, &weight): (usize, &u32)| Fake {
            name: format!("10.0.0.{at}:80"),
            weight,
            ..Fake::default()
        };
        weights.iter().enumerate().map(fake).collect()
    }

    /// Returns the number of times that each contender is chosen for `clients` clients.
    pub(crate) fn spread(policy: Policy, contenders: &[Fake], clients: u32) -> Vec<u32> {
        let table = Table::prepare(policy, contenders);
        let mut random = Random::seeded(1);
        let mut seen = vec![0; contenders.len()];
        for client in 0..clients {
            let client_hash =
                crate::hash::of_client(std::net::IpAddr::from((0x0a00_0000 + client).to_be_bytes()));
            let mut draw =
                Draw { client: client_hash, turn: u64::from(client), now: Time::ZERO, random: &mut random };
            seen[choose(policy, &table, contenders, &mut draw, |_| true).unwrap()] += 1;
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{fakes, spread};
    use super::*;

    #[test]
    fn round_robin_takes_turns_and_skips_ineligible_servers() {
        let contenders = fakes(&[1, 1, 1]);
        let mut random = Random::seeded(1);
        let mut pick = |turn, eligible: fn(usize) -> bool| {
            let mut draw = Draw { client: 0, turn, now: Time::ZERO, random: &mut random };
            choose(Policy::RoundRobin, &Table::None, &contenders, &mut draw, eligible)
        };
        assert_eq!((0..4).map(|turn| pick(turn, |_| true).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 0]);
        assert_eq!(pick(1, |at| at != 1), Some(2));
        assert_eq!(pick(2, |at| at == 0), Some(0));
        assert_eq!(pick(0, |_| false), None);
    }

    #[test]
    fn every_policy_finds_the_only_eligible_server_and_none_in_an_empty_tier() {
        for name in Policy::NAMES {
            let policy = Policy::named(name).unwrap();
            assert_eq!(policy.name(), name);
            for count in 0..20 {
                let contenders = fakes(&vec![1; count]);
                let table = Table::prepare(policy, &contenders);
                let mut random = Random::seeded(3);
                for only in 0..count {
                    let mut draw = Draw { client: 77, turn: 5, now: Time::ZERO, random: &mut random };
                    assert_eq!(
                        choose(policy, &table, &contenders, &mut draw, |at| at == only),
                        Some(only),
                        "{name}"
                    );
                }
                let mut draw = Draw { client: 77, turn: 5, now: Time::ZERO, random: &mut random };
                assert_eq!(choose(policy, &table, &contenders, &mut draw, |_| false), None, "{name}");
            }
        }
    }

    #[test]
    fn hash_is_even_for_any_number_of_servers() {
        for count in 2..=64 {
            let seen = spread(Policy::Hash, &fakes(&vec![1; count]), 2_000 * count as u32);
            let (most, least) = (seen.iter().max().unwrap(), seen.iter().min().unwrap());
            assert!(*most < 2_250 && *least > 1_750, "{count} servers: {least} to {most} of 2000");
        }
    }

    #[test]
    fn policies_with_weights_spread_clients_by_weight() {
        for name in ["weighted", "hash", "maglev"] {
            let seen = spread(Policy::named(name).unwrap(), &fakes(&[4, 2, 1, 1, 0]), 80_000);
            let expected = [40_000, 20_000, 10_000, 10_000, 0];
            for (seen, expected) in seen.iter().zip(expected) {
                assert!(seen.abs_diff(expected) <= expected / 20, "{name}: {seen} for {expected}");
            }
        }
    }
}
