//! Reports of requests, connections, queries and datagrams that were not served. Workers count each of them. They
//! report one a second for each service and reason, and the others only if a reader wants all events.

use crate::context::Context;
use crate::context::report::{Report, is_due};
use crate::context::unserved::{Traffic, Unserved};
use crate::service::Service;
use evener_core::Time;
use evener_core::event::Similar;
use evener_core::reason::{Cause, Reason};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Times and numbers of the reports of one service, for each reason.
#[derive(Debug)]
pub(crate) struct FailureReports {
    reported_at: Box<[AtomicU64]>,
    /// Number of failures that were reported, or counted in a report.
    known: Box<[AtomicU64]>,
}

impl Default for FailureReports {
    fn default() -> Self {
        let zeros = || Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self { reported_at: zeros(), known: zeros() }
    }
}

impl FailureReports {
    /// Returns whether a failure has to be reported, and its relation to similar ones. `total` returns the number
    /// of failures with this reason, including this failure.
    fn relation(
        &self,
        reason: Reason,
        now: Time,
        wants_all: impl FnOnce() -> bool,
        total: impl FnOnce() -> u64,
    ) -> Option<Similar> {
        let known = &self.known[reason as usize];
        if !reason.is_usual() && is_due(&self.reported_at[reason as usize], now) {
            let total = total();
            let unlogged = total.saturating_sub(known.swap(total, Ordering::Relaxed) + 1);
            return Some(Similar::Sampled(unlogged));
        }
        wants_all().then(|| {
            known.fetch_add(1, Ordering::Relaxed);
            Similar::Further
        })
    }
}

/// Counts and reports traffic that was not served. `describe` is called only if there is a report.
pub(crate) fn note_unserved(
    cx: &Context,
    service: &Service,
    reason: Reason,
    describe: impl FnOnce() -> Unserved,
) {
    let counters = &service.live.counters;
    counters.of(cx.id).reasons.of(reason).one();
    if reason.is_configured() {
        return;
    }
    let relation = service.failures.relation(
        reason,
        cx.now,
        || cx.takes_detail(),
        || counters.sum(|counters| counters.reasons.of(reason)),
    );
    if let Some(similar) = relation {
        let service = Arc::clone(&service.live.name);
        cx.report(Report::Unserved { service, unserved: Box::new(describe()), similar });
    }
}

/// Counts and reports a connection, handshake, query or datagram without a server.
pub(crate) fn note_client(
    cx: &Context,
    service: &Service,
    traffic: Traffic,
    client: IpAddr,
    cause: impl Into<Cause>,
) {
    let cause = cause.into();
    note_unserved(cx, service, cause.reason(), || Unserved::new(traffic, client, cause));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_second_has_one_report_and_the_others_are_counted() {
        let reports = FailureReports::default();
        let check = |millis, total, wants_all, expected| {
            let now = Time::ZERO + Duration::from_millis(millis);
            assert_eq!(
                reports.relation(Reason::RequestInvalid, now, || wants_all, || total),
                expected,
                "{millis} ms"
            );
        };
        check(1, 1, false, Some(Similar::Sampled(0)));
        check(2, 2, false, None);
        check(3, 3, true, Some(Similar::Further));
        check(4, 4, false, None);
        // Two of the three others have no report.
        check(1100, 5, false, Some(Similar::Sampled(2)));
        check(2200, 6, true, Some(Similar::Sampled(0)));
        // Each reason has its own interval.
        let now = Time::ZERO + Duration::from_millis(2201);
        let other = reports.relation(Reason::QueueFull, now, || false, || 1);
        assert_eq!(other, Some(Similar::Sampled(0)));
    }
}
