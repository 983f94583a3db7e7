//! Least connections, relative to the weight; equal servers take turns.

use super::{Contender, WEIGHT_UNIT, by_cost};
use crate::spec::Policy;
use crate::time::Time;
use std::cmp::Ordering;

/// Returns the load of a contender with one more connection, in connections per weight of 1; infinite without
/// a share.
pub(super) fn load(contender: &impl Contender) -> f64 {
    f64::from(contender.active() + 1) * f64::from(WEIGHT_UNIT) / f64::from(contender.share())
}

/// Returns the least loaded eligible contender; `turn` decides among equally loaded contenders.
pub(super) fn choose<C: Contender>(
    contenders: &[C],
    turn: u64,
    eligible: impl Fn(usize) -> bool,
) -> Option<usize> {
    let count = contenders.len();
    let start = if count == 0 { 0 } else { (turn % count as u64) as usize };
    let mut best: Option<(usize, f64)> = None;
    for at in (start..count).chain(0..start).filter(|&at| eligible(at)) {
        let load = load(&contenders[at]);
        if best.is_none_or(|(_, least)| load < least) {
            best = Some((at, load));
        }
    }
    best.map(|(at, _)| at)
}

/// Returns the least loaded eligible contender; of equally loaded contenders the one with the lowest latency.
pub(super) fn choose_soonest<C: Contender>(
    contenders: &[C],
    now: Time,
    eligible: impl Fn(usize) -> bool,
) -> Option<usize> {
    let costs =
        (0..contenders.len()).filter(|&at| eligible(at)).map(|at| (at, soonest(&contenders[at], now)));
    let least = costs.min_by(|(_, a), (_, b)| compare(a, b));
    least.map(|(at, _)| at)
}

/// Returns all contenders, the least loaded first; equally loaded contenders in their given order.
pub(super) fn order<C: Contender>(contenders: &[C], positions: impl Iterator<Item = usize>) -> Vec<u32> {
    by_cost(positions, |at| load(&contenders[at]), f64::total_cmp)
}

/// Returns all contenders, the least loaded first; of equally loaded contenders the one with the lower latency
/// first.
pub(super) fn order_soonest<C: Contender>(contenders: &[C], now: Time) -> Vec<u32> {
    let cost = |at| soonest(&contenders[at], now);
    by_cost(0..contenders.len(), cost, compare)
}

/// Returns the load of a contender and its latency.
fn soonest(contender: &impl Contender, now: Time) -> (f64, f64) {
    (load(contender), contender.latency().at(now, Policy::EWMA_DECAY).unwrap_or_default())
}

fn compare(a: &(f64, f64), b: &(f64, f64)) -> Ordering {
    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::super::testing::fakes;
    use super::*;

    fn check(weights: &[u32], active: &[u32], turn: u64, expected: usize) {
        let mut contenders = fakes(weights);
        contenders.iter_mut().zip(active).for_each(|(contender, &active)| contender.set_active(active));
        assert_eq!(choose(&contenders, turn, |_| true), Some(expected), "{weights:?} {active:?} {turn}");
    }

    #[test]
    fn the_lowest_load_for_its_weight_wins_and_equal_servers_take_turns() {
        check(&[1, 1, 1], &[3, 1, 2], 0, 1);
        check(&[1, 4, 1], &[3, 9, 4], 0, 1);
        check(&[1, 4, 1], &[1, 9, 4], 0, 0);
        check(&[1, 1, 1], &[2, 2, 2], 1, 1);
        check(&[1, 1, 1], &[2, 2, 2], 5, 2);
    }
}
