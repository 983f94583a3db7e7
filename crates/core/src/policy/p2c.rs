//! The power of two choices (Mitzenmacher 2001): picks the cheaper of two random contenders. Unlike a choice
//! of the cheapest of all, this keeps many balancers or workers from choosing the same server at the same
//! time.

use crate::random::Random;

/// Maximum number of random draws for an eligible contender. After them all contenders are inspected.
const DRAWS_MAX: usize = 8;

/// Returns the cheaper of two random eligible contenders.
pub(super) fn choose(
    count: usize,
    random: &mut Random,
    eligible: impl Fn(usize) -> bool,
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let first = draw(count, random, &eligible)?;
    let other = draw(count, random, |at| at != first && eligible(at));
    Some(other.filter(|&other| cost(other) < cost(first)).unwrap_or(first))
}

/// Returns all contenders in random order, the cheaper of each pair first.
pub(super) fn order(count: usize, random: &mut Random, cost: impl Fn(usize) -> f64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    // Fisher-Yates shuffle.
    (1..count).rev().for_each(|at| order.swap(at, random.below(at + 1)));
    for two in order.chunks_exact_mut(2) {
        if cost(two[1] as usize) < cost(two[0] as usize) {
            two.swap(0, 1);
        }
    }
    order
}

fn draw(count: usize, random: &mut Random, eligible: impl Fn(usize) -> bool) -> Option<usize> {
    let lucky = (0..DRAWS_MAX).map(|_| random.below(count)).find(|&at| at < count && eligible(at));
    lucky.or_else(|| {
        let start = random.below(count);
        (start..count).chain(0..start).find(|&at| eligible(at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_contender_is_chosen_most_and_the_most_expensive_never() {
        let mut random = Random::seeded(2);
        let mut seen = [0; 4];
        for _ in 0..10_000 {
            seen[choose(4, &mut random, |_| true, |at| at as f64).unwrap()] += 1;
        }
        assert_eq!(seen[3], 0, "the most expensive loses every draw");
        assert!(seen[0] > 4_700 && seen[0] < 5_300, "the cheapest wins each draw: {seen:?}");
    }
}
