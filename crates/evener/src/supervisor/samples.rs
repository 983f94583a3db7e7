//! Samples of the counters of services and servers, from which the status computes rates and response times of
//! the last seconds. Each server is sampled every [`SAMPLE_EVERY`]; the samples of a large instance are spread
//! over this time, so that no single turn takes long.

use super::pools::Pools;
use crate::planes::RunningService;
use evener_core::Time;
use evener_core::counters::ServiceCounters;
use evener_core::recent::{Growth, Recent, SAMPLE_EVERY};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Number of turns in which all servers are sampled once.
const PARTS: u32 = 10;

/// Schedule of the samples, and the samples of services. Servers keep their own samples.
#[derive(Default)]
pub(super) struct Samples {
    next: Time,
    part: u32,
    services: BTreeMap<Arc<str>, Recent<ServiceCounters>>,
}

impl Samples {
    /// Begins with the samples of a service that starts at `now`.
    pub(super) fn begin(&mut self, now: Time, service: &Arc<str>) {
        self.services.insert(Arc::clone(service), Recent::new(now));
    }

    /// Takes the samples that are due.
    pub(super) fn on_time(
        &mut self,
        now: Time,
        pools: &mut Pools,
        services: &BTreeMap<Arc<str>, RunningService>,
    ) {
        if now < self.next {
            return;
        }
        self.next = now + SAMPLE_EVERY / PARTS;
        self.part = (self.part + 1) % PARTS;
        pools.iter_mut().for_each(|(pool, _)| pool.sample(now, self.part, PARTS));
        if self.part == 0 {
            self.services.retain(|name, recent| {
                let service = services.get(name);
                service.iter().for_each(|service| recent.sample(now, &service.live().counters));
                service.is_some()
            });
        }
    }

    /// Returns the time of the next samples.
    pub(super) fn deadline(&self) -> Time {
        self.next
    }

    /// Returns the growth of the counters of a service in the last seconds.
    pub(super) fn growth(&self, now: Time, service: &RunningService) -> Option<Growth<ServiceCounters>> {
        let recent = self.services.get(&service.live().name)?;
        Some(recent.growth(now, &service.live().counters))
    }
}
