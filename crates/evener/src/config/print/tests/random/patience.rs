//! Random values of `min_rate`, `queue` and `abort_on_close`.

use super::Chance;
use evener_core::pace::MinRate;
use evener_core::spec::{AbortOnClose, QueueSpec, RetryBudgetSpec};
use std::time::Duration;

impl Chance<'_> {
    pub(super) fn min_rate(&mut self) -> Option<MinRate> {
        let within = |chance: &mut Self| MinRate {
            bytes_per_second: chance.within(1..=1_000_000),
            window: Duration::from_secs(chance.or(60, |chance| chance.within(1..=3600)).into()),
        };
        self.or(Some(MinRate::DEFAULT), |chance| chance.maybe(within))
    }

    pub(super) fn queue(&mut self) -> Option<QueueSpec> {
        let within = |chance: &mut Self| QueueSpec {
            size: chance.or(QueueSpec::DEFAULT.size, |chance| chance.within(1..=QueueSpec::SIZE_MAX)),
            timeout: chance.or(QueueSpec::DEFAULT.timeout, Self::time),
        };
        self.or(Some(QueueSpec::DEFAULT), |chance| chance.maybe(within))
    }

    pub(super) fn retry_budget(&mut self) -> Option<RetryBudgetSpec> {
        let RetryBudgetSpec { share_percent, min_per_second } = RetryBudgetSpec::DEFAULT;
        let within = |chance: &mut Self| RetryBudgetSpec {
            share_percent: chance
                .or(share_percent, |chance| chance.within(0..=RetryBudgetSpec::SHARE_PERCENT_MAX)),
            min_per_second: chance
                .or(min_per_second, |chance| chance.within(0..=RetryBudgetSpec::MIN_PER_SECOND_MAX)),
        };
        self.or(Some(RetryBudgetSpec::DEFAULT), |chance| chance.maybe(within))
    }

    pub(super) fn abort_on_close(&mut self) -> AbortOnClose {
        self.pick(&[AbortOnClose::Never, AbortOnClose::Idempotent, AbortOnClose::Always])
    }
}
