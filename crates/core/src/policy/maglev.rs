//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): every server fills a table in its own order, in
//! turns by weight. The hash of a client then finds its server in constant time. When a server leaves, few
//! other clients move.

use super::{Contender, once};
use crate::hash::{mix, of_name};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Maximum number of slots of the table that are tried for a client.
const PROBES_MAX: u64 = 128;
/// A table is filled by rounds in order if less than one in so many servers gets a slot in a round.
const SPARSE_TURNS: u64 = 16;

/// Fills a table of `size` slots (a prime) with positions. The table is empty if no contender has a share.
pub(super) fn table<C: Contender>(size: u32, contenders: &[C]) -> Box<[u32]> {
    let size = u64::from(size);
    let heaviest = contenders.iter().map(Contender::full_share).max().unwrap_or(0);
    if heaviest == 0 || size < 2 {
        return Box::default();
    }
    let mut fillers: Vec<Filler> = contenders.iter().map(|contender| Filler::new(contender, size)).collect();
    let mut table = vec![u32::MAX; size as usize].into_boxed_slice();
    let turns: u64 =
        fillers.iter().map(|filler| u64::from(filler.share)).sum::<u64>().div_ceil(heaviest.into());
    if turns * SPARSE_TURNS < fillers.len() as u64 {
        fill_by_round(&mut table, &mut fillers, heaviest);
    } else {
        fill_in_turns(&mut table, &mut fillers, heaviest);
    }
    table
}

/// Gives every server in each round credit by its weight, and a slot for each full credit.
fn fill_in_turns(table: &mut [u32], fillers: &mut [Filler], heaviest: u32) {
    let mut left = table.len();
    while left > 0 {
        for (at, filler) in fillers.iter_mut().enumerate() {
            filler.credit += u64::from(filler.share);
            while filler.credit >= u64::from(heaviest) && left > 0 {
                filler.credit -= u64::from(heaviest);
                table[filler.claim(table)] = at as u32;
                left -= 1;
            }
        }
    }
}

/// Fills the same table as [`fill_in_turns`], without the rounds in which a server gets no slot: the k-th slot of a
/// server is due in the round in which its credit reaches k times the heaviest weight.
fn fill_by_round(table: &mut [u32], fillers: &mut [Filler], heaviest: u32) {
    let due = |share: u32, k: u64| (k * u64::from(heaviest)).div_ceil(u64::from(share));
    let shared = fillers.iter().enumerate().filter(|(_, filler)| filler.share > 0);
    let mut rounds: BinaryHeap<_> =
        shared.map(|(at, filler)| Reverse((due(filler.share, 1), at, 1))).collect();
    for _ in 0..table.len() {
        let Some(Reverse((_, at, k))) = rounds.pop() else { return };
        let filler = &mut fillers[at];
        table[filler.claim(table)] = at as u32;
        rounds.push(Reverse((due(filler.share, k + 1), at, k + 1)));
    }
}

/// Order of one server in the table: `offset + n * skip`, which visits every slot because the size is prime.
struct Filler {
    next: u64,
    skip: u64,
    share: u32,
    credit: u64,
}

impl Filler {
    fn new(contender: &impl Contender, size: u64) -> Self {
        let name = contender.placement_name();
        Self {
            next: of_name(name, 1) % size,
            skip: of_name(name, 2) % (size - 1) + 1,
            share: contender.full_share(),
            credit: 0,
        }
    }

    /// Returns the next empty slot in the order. The table must have an empty slot.
    fn claim(&mut self, table: &[u32]) -> usize {
        let size = table.len() as u64;
        loop {
            let slot = self.next as usize;
            self.next = (self.next + self.skip) % size;
            if table[slot] == u32::MAX {
                return slot;
            }
        }
    }
}

/// Returns the position in the client's slot if it is eligible. Otherwise returns an eligible position from
/// other slots, in an order that depends on the client.
pub(super) fn choose(
    table: &[u32],
    client: u64,
    count: usize,
    eligible: impl Fn(usize) -> bool,
) -> Option<usize> {
    if table.is_empty() {
        return None;
    }
    probed(table, client)
        .find(|&at| eligible(at))
        .or_else(|| (0..count).find(|&at| eligible(at) && table.contains(&(at as u32))))
}

/// Returns all positions in the table, in the order in which they are tried for the client.
pub(super) fn order(table: &[u32], client: u64, count: usize) -> Vec<u32> {
    if table.is_empty() {
        return Vec::new();
    }
    let mut placed = vec![false; count];
    table.iter().for_each(|&at| placed[at as usize] = true);
    once(probed(table, client).chain((0..count).filter(|&at| placed[at])), count)
}

/// Returns the contents of the client's slots, in the order of the probes.
fn probed(table: &[u32], client: u64) -> impl Iterator<Item = usize> {
    let hash = move |probe: u64| if probe == 0 { client } else { mix(client, probe) };
    (0..PROBES_MAX).map(move |probe| table[(hash(probe) % table.len() as u64) as usize] as usize)
}

/// Returns true if `number` is prime, as the size of a table has to be. Trial division takes at most 1 120
/// steps for the largest allowed size.
#[must_use]
pub fn is_prime(number: u32) -> bool {
    let odd_divisors = (3..).step_by(2).take_while(|&d: &u32| u64::from(d).pow(2) <= u64::from(number));
    number == 2
        || (number > 2 && number % 2 == 1 && odd_divisors.into_iter().all(|d| !number.is_multiple_of(d)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::fakes;
    use super::*;
    use crate::spec::Policy;

    fn counts(table: &[u32], servers: usize) -> Vec<usize> {
        let mut seen = vec![0; servers];
        table.iter().for_each(|&at| seen[at as usize] += 1);
        seen
    }

    #[test]
    fn servers_have_nearly_equal_shares_of_the_default_table() {
        for servers in [2, 3, 5, 10, 32, 64, 100, 500] {
            let table = table(Policy::MAGLEV_TABLE, &fakes(&vec![1; servers]));
            let most = *counts(&table, servers).iter().max().unwrap() as f64;
            let mean = f64::from(Policy::MAGLEV_TABLE) / servers as f64;
            assert!(most / mean <= 1.05, "{servers} servers: {}", most / mean);
        }
    }

    #[test]
    fn removing_one_server_moves_few_other_clients() {
        for servers in [2, 3, 5, 10, 32, 64, 100] {
            let all = fakes(&vec![1; servers]);
            let before = table(Policy::MAGLEV_TABLE, &all);
            let left = servers / 2;
            let rest: Vec<_> =
                fakes(&vec![1; servers]).into_iter().enumerate().filter(|(at, _)| *at != left).collect();
            let (positions, rest): (Vec<usize>, Vec<_>) = rest.into_iter().unzip();
            let after = table(Policy::MAGLEV_TABLE, &rest);
            let moved =
                before.iter().zip(&after).filter(|(b, a)| **b as usize != positions[**a as usize]).count();
            let share = moved as f64 / before.len() as f64;
            assert!(share <= 1.0 / servers as f64 + 0.02, "{servers} servers: {share}");
        }
    }

    #[test]
    fn filling_by_rounds_gives_the_same_table_as_filling_in_turns() {
        for weights in [&[1, 1, 1][..], &[60, 1, 0, 7, 1], &[3, 65_535, 2, 65_535], &[9]] {
            let contenders = fakes(weights);
            let heaviest = contenders.iter().map(Contender::full_share).max().unwrap();
            let fill = |fill: fn(&mut [u32], &mut [Filler], u32)| {
                let mut fillers: Vec<Filler> =
                    contenders.iter().map(|contender| Filler::new(contender, 4093)).collect();
                let mut table = vec![u32::MAX; 4093];
                fill(&mut table, &mut fillers, heaviest);
                table
            };
            assert_eq!(fill(fill_in_turns), fill(fill_by_round), "{weights:?}");
        }
    }

    #[test]
    fn primes_are_recognized() {
        let primes: Vec<u32> = (0..60).filter(|&number| is_prime(number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59]);
        assert!(is_prime(Policy::MAGLEV_TABLE) && is_prime(Policy::MAGLEV_TABLE_MAX));
    }
}
