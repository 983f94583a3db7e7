//! Weighted rendezvous hashing (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005): each server
//! has a score from its name and the client, and the best score wins. The distribution is even for any number
//! of servers, and when a server leaves only its own clients move.

use super::{Contender, by_cost};
use crate::hash::mix;
use std::collections::BTreeMap;

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

/// Returns the contender with the best score for each of `count` slots, each of which counts as a client. There are no
/// slots if no contender has a share.
pub(crate) fn slots<C: Contender>(count: u32, contenders: &[C], names: &[u64]) -> Box<[u32]> {
    // Of contenders with equal shares the largest draw wins, so a logarithm is needed for each share only.
    let mut by_share: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (contender, at) in contenders.iter().zip(0..).filter(|(contender, _)| contender.full_share() > 0) {
        by_share.entry(contender.full_share()).or_default().push(at);
    }
    let best = |slot: u32| {
        let client = mix(u64::from(slot), SLOT_SALT);
        let of_share = |(&share, alike): (&u32, &Vec<u32>)| {
            let drawn = alike.iter().map(|&at| (mix(names[at as usize], client) >> 11, at));
            let (drawn, at) = drawn.max().unwrap_or_default();
            (at, score_of(drawn, share))
        };
        by_share.iter().map(of_share).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    };
    (0..count).map_while(best).collect()
}

/// Returns `-weight / ln(u)` with `u` drawn from the two hashes: the larger the weight, the more likely is
/// the best score.
fn score(name: u64, client: u64, share: u32) -> f64 {
    score_of(mix(name, client) >> 11, share)
}

/// Returns the score of a draw of 53 bits.
fn score_of(drawn: u64, share: u32) -> f64 {
    let drawn = (drawn as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(share) / drawn.ln()
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
