//! Weighted rendezvous hashing (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005): each server
//! has a score from its name and the client, and the best score wins. The distribution is even for any number
//! of servers, and when a server leaves only its own clients move.

use super::{Contender, by_cost};
use crate::hash::mix;

/// Salt of the hashes of slots, so that they are not the hashes of small numbers elsewhere.
const SLOT_SALT: u64 = 0x736c_6f74;

/// Returns the eligible contender with the best score for the client.
pub(super) fn choose<C: Contender>(
    contenders: &[C],
    names: &[u64],
    client: u64,
    eligible: impl Fn(usize) -> bool,
) -> Option<usize> {
    let scored = (0..contenders.len()).filter(|&at| eligible(at) && contenders[at].full_share() > 0);
    let best = scored.map(|at| (at, score(names[at], client, contenders[at].full_share())));
    best.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
}

/// Returns all contenders with a share, the best score for the client first.
pub(super) fn order<C: Contender>(contenders: &[C], names: &[u64], client: u64) -> Vec<u32> {
    let shared = (0..contenders.len()).filter(|&at| contenders[at].full_share() > 0);
    let score = |at: usize| score(names[at], client, contenders[at].full_share());
    by_cost(shared, score, |a, b| b.total_cmp(a))
}

/// Returns the contender of each of `count` slots. There are no slots if no contender has a share.
///
/// Every contender claims slots at random times: at intervals with an exponential distribution whose rate is the share.
/// A slot belongs to the contender that claims it first, so a contender that leaves or comes changes its own slots
/// only, and a contender's part of the slots is its part of the shares. The number of claims depends on the number of
/// slots (about `count * ln(count)`), not on the number of contenders.
pub(crate) fn slots<C: Contender>(count: u32, contenders: &[C], names: &[u64]) -> Box<[u32]> {
    let shared =
        contenders.iter().zip(names).zip(0..).filter(|((contender, _), _)| contender.full_share() > 0);
    let mut claimants: Vec<Claimant> = shared
        .map(|((contender, &name), at)| Claimant::new(at, mix(name, SLOT_SALT), contender.full_share()))
        .collect();
    let total: f64 = claimants.iter().map(|claimant| claimant.share).sum();
    if claimants.is_empty() || count == 0 {
        return Box::default();
    }
    // Time in which about `count` claims are made. It has no influence on the result.
    let step = f64::from(count) / total;
    let mut slots = vec![(f64::INFINITY, u32::MAX); count as usize];
    let mut free = slots.len();
    let mut end = 0.0;
    while free > 0 {
        end += step;
        for claimant in &mut claimants {
            claimant.claim_until(end, &mut slots, &mut free);
        }
    }
    slots.into_iter().map(|(_, at)| at).collect()
}

/// A contender that claims slots.
struct Claimant {
    at: u32,
    name: u64,
    share: f64,
    /// Number of the next claim.
    number: u64,
    /// Sum of the intervals up to the next claim, for the share 1.
    age: f64,
}

impl Claimant {
    fn new(at: u32, name: u64, share: u32) -> Self {
        let mut claimant = Self { at, name, share: f64::from(share), number: 0, age: 0.0 };
        claimant.age = claimant.interval();
        claimant
    }

    /// Makes the claims up to a time. A slot keeps its earliest claim.
    fn claim_until(&mut self, end: f64, slots: &mut [(f64, u32)], free: &mut usize) {
        loop {
            let time = self.age / self.share;
            if time >= end {
                return;
            }
            let slot = self.draw(0) % slots.len() as u64;
            let earliest = &mut slots[slot as usize];
            *free -= usize::from(earliest.1 == u32::MAX);
            if time < earliest.0 {
                *earliest = (time, self.at);
            }
            self.number += 1;
            self.age += self.interval();
        }
    }

    /// Returns the time between the previous claim and the next one, for the share 1.
    fn interval(&self) -> f64 {
        -unit(self.draw(1) >> 11).ln()
    }

    fn draw(&self, kind: u64) -> u64 {
        mix(self.name, self.number << 1 | kind)
    }
}

/// Returns the score of a contender for the client.
pub(super) fn score_of(contender: &impl Contender, client: u64) -> f64 {
    score(crate::hash::of_name(contender.placement_name(), 0), client, contender.full_share())
}

/// Returns `-weight / ln(u)` with `u` drawn from the two hashes: the larger the weight, the more likely is
/// the best score.
fn score(name: u64, client: u64, share: u32) -> f64 {
    -f64::from(share) / unit(mix(name, client) >> 11).ln()
}

/// Returns a number between 0 and 1, without both, from a draw of 53 bits.
fn unit(drawn: u64) -> f64 {
    (drawn as f64 + 0.5) / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::super::testing::fakes;
    use super::*;
    use crate::hash::{of_client, of_name};

    #[test]
    fn only_the_clients_of_a_server_that_left_move() {
        let all = fakes(&[1; 9]);
        let names: Vec<u64> = all.iter().map(|fake| of_name(fake.placement_name(), 0)).collect();
        for number in 0..5_000_u32 {
            let client = of_client(std::net::IpAddr::from(number.to_be_bytes()));
            let with_all = choose(&all, &names, client, |_| true).unwrap();
            let without = choose(&all, &names, client, |at| at != 4).unwrap();
            assert!(with_all == without || with_all == 4);
        }
    }
}
