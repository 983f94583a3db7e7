//! Smooth weighted round robin: the order of nginx's `ngx_http_upstream_get_peer`, unrolled once into a cycle.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Maximum length of the cycle, except that every contender with a weight has at least one turn.
const TURNS_MAX: u64 = 16_384;
/// Maximum number of steps for the exact order; beyond it an equally smooth order is computed in less time.
const STEPS_MAX: u64 = 1 << 22;

/// Returns positions in the order in which contenders of these weights take turns.
pub(super) fn cycle(weights: &[u32]) -> Box<[u32]> {
    let turns = reduced(weights);
    let total: u64 = turns.iter().map(|&turns| u64::from(turns)).sum();
    if total * turns.len() as u64 <= STEPS_MAX { smooth(&turns, total) } else { by_deadline(&turns, total) }
}

/// Returns the weights without their common divisor, scaled down if the cycle would be too long.
fn reduced(weights: &[u32]) -> Vec<u32> {
    let divisor = weights.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let total: u64 = weights.iter().map(|&weight| u64::from(weight / divisor)).sum();
    let scaled = |weight: u32| match u64::from(weight / divisor) {
        0 => 0,
        weight if total <= TURNS_MAX => weight as u32,
        weight => ((weight * TURNS_MAX + total / 2) / total).max(1) as u32,
    };
    weights.iter().map(|&weight| scaled(weight)).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn smooth(turns: &[u32], total: u64) -> Box<[u32]> {
    let mut current = vec![0_i64; turns.len()];
    let step = |_| {
        current.iter_mut().zip(turns).for_each(|(current, &turns)| *current += i64::from(turns));
        // The first of the largest, as in nginx.
        let best = (0..turns.len()).max_by_key(|&at| (current[at], Reverse(at))).unwrap_or(0);
        current[best] -= total as i64;
        best as u32
    };
    (0..total).map(step).collect()
}

/// The k-th turn of a contender is due at (k + 1/2) / turns of the cycle; the earliest comes first.
fn by_deadline(turns: &[u32], total: u64) -> Box<[u32]> {
    let due = |at: usize, k: u64| Reverse(((k * 2 + 1) * (1 << 40) / u64::from(turns[at]), at, k));
    let mut heap: BinaryHeap<_> = (0..turns.len()).filter(|&at| turns[at] > 0).map(|at| due(at, 0)).collect();
    let mut order = Vec::with_capacity(total as usize);
    while let Some(Reverse((_, at, k))) = heap.pop() {
        order.push(at as u32);
        if k + 1 < u64::from(turns[at]) {
            heap.push(due(at, k + 1));
        }
    }
    order.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_equals_the_order_of_nginx() {
        let check = |weights: &[u32], expected: &str| {
            let seen: String = cycle(weights).iter().map(|&at| char::from(b'a' + at as u8)).collect();
            assert_eq!(seen, expected, "{weights:?}");
        };
        check(&[5, 1, 1], "aabacaa");
        check(&[256 * 5, 256, 256], "aabacaa");
        check(&[1, 1, 1], "abc");
        check(&[2, 4], "bab");
        check(&[3, 0, 1], "aaca");
        check(&[0, 0], "");
        check(&[], "");
    }

    #[test]
    fn the_cycle_of_many_or_heavy_servers_is_bounded() {
        let weights: Vec<u32> = (0..10_000).map(|at| 1 + at % 3).collect();
        let order = cycle(&weights);
        assert!(order.len() < 2 * TURNS_MAX as usize, "{}", order.len());
        let share = |at: u32| order.iter().filter(|&&seen| seen == at).count();
        assert!(share(2) >= share(0) && share(0) >= 1);
        let heavy = cycle(&[65_535, 1, 32_768]);
        let first = heavy.iter().filter(|&&at| at == 0).count();
        assert!(heavy.len() <= TURNS_MAX as usize + 3 && (10_800..11_000).contains(&first), "{first}");
    }

    #[test]
    fn the_fast_order_gives_the_same_shares_and_is_smooth() {
        let turns = [7, 3, 2];
        let order = by_deadline(&turns, 12);
        for (at, &turns) in turns.iter().enumerate() {
            assert_eq!(order.iter().filter(|&&seen| seen as usize == at).count(), turns as usize);
        }
        assert!(order.windows(4).all(|four| four.iter().any(|&at| at != 0)), "{order:?}");
    }
}
