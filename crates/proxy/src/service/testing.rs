//! Services for unit tests of components, without a supervisor.

pub(crate) use crate::context::testing::TestPool;

use super::{Service, Settings};
use evener_core::service::ServiceLive;
use evener_core::spec::{AdminState, Protocol, ServiceOptions};
use evener_core::{Target, Time};
use std::sync::Arc;

/// A service of the only worker, with default options, for the servers of a pool.
pub(crate) fn service(protocol: Protocol, pool: &TestPool) -> Arc<Service> {
    service_with(protocol, pool, |_| {})
}

/// A service like [`service`], with `change` applied to its settings.
pub(crate) fn service_with(
    protocol: Protocol,
    pool: &TestPool,
    change: impl FnOnce(&mut Settings),
) -> Arc<Service> {
    let mut settings = Settings::new(ServiceOptions::of(protocol), pool.published());
    change(&mut settings);
    let live = Arc::new(ServiceLive::new("service".into(), protocol, 1));
    Arc::new(Service::new(live, settings))
}

#[test]
fn a_state_is_published_for_the_service() {
    let targets = ["192.0.2.1:1", "192.0.2.2:1"].map(|address| Target::Ip(address.parse().unwrap()));
    let mut pool = TestPool::new("pool", &targets);
    let service = service(Protocol::Udp, &pool);
    pool.set_state(0, AdminState::Maintenance, Time::ZERO);
    let settings = service.settings.load();
    let snapshot = settings.backends[0].pool.load();
    assert_eq!((snapshot.servers().len(), snapshot.first_choices().count()), (2, 1));
}
