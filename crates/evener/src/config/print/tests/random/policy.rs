//! Random policies, stickiness and passive checks of pools.

use super::{Chance, Kind};
use crate::config::sticky::REBALANCE_MIN;
use evener_core::spec::*;
use std::time::Duration;

impl Chance<'_> {
    pub(super) fn policy(&mut self) -> Policy {
        let name = self.pick(&Policy::NAMES);
        match Policy::named(name).unwrap() {
            Policy::Ewma { decay } => Policy::Ewma { decay: self.or(decay, Self::time) },
            Policy::Maglev { table } => {
                Policy::Maglev { table: self.or(table, |c| c.pick(&[2, 101, 5_000_011])) }
            }
            policy => policy,
        }
    }

    pub(super) fn sticky(&mut self, kind: Kind) -> Option<StickySpec> {
        let defaults = crate::config::sticky::sticky_defaults();
        if kind == Kind::Xdp {
            return self.maybe(|_| defaults);
        }
        if kind == Kind::Cookie {
            let name = self.pick(&["EVENER", "a|b", "'`~"]);
            return Some(StickySpec { by: StickyBy::Cookie(name.into()), ..defaults });
        }
        self.maybe(|chance| StickySpec {
            size: chance.or(defaults.size, |chance| chance.within(1..=16_000_000) as usize),
            ttl: chance.or(defaults.ttl, |chance| chance.maybe(Self::time)),
            failback: chance.one_in(2),
            rebalance: chance.maybe(|chance| chance.duration(REBALANCE_MIN, Duration::from_secs(3600))),
            ..defaults
        })
    }

    pub(super) fn passive(&mut self) -> PassiveSpec {
        let PassiveSpec { failures, down_for } = PassiveSpec::default();
        PassiveSpec {
            failures: self.or(failures, |chance| chance.within(0..=1000)),
            down_for: self.or(down_for, Self::time),
        }
    }
}
