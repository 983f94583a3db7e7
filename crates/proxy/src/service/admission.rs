//! Admission of clients: access lists, limits per client, and the treatment of refused clients.

use crate::context::Context;
use crate::context::pool_queue::Queued;
use crate::io::request_log::RequestLog;
use crate::service::access_entry::AccessEntry;
use crate::service::{Refusal, Service, Settings};
use evener_core::Time;
use evener_core::clients::{ClientRecord, RefusedFor};
use evener_core::limits::Lease;
use evener_core::reason::Reason;
use evener_core::spec::Denied;
use evener_core::throttle::ClientLease;
use rustix::fd::OwnedFd;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Decision on a client.
#[derive(Debug)]
pub(crate) enum Admission {
    /// The client is admitted.
    Enter(Admitted),
    /// The client is refused for this reason.
    Refused(Refused, Reason),
}

/// Permits and records of an admitted client.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    /// The pool for refused clients, if the client was refused: it takes precedence over routes.
    pub(crate) backend: Option<usize>,
    /// Permit for one of the connections of its address.
    permit: Option<ClientLease>,
    /// The record of its activity.
    pub(crate) record: Option<Arc<ClientRecord>>,
    /// Permit of a pending connection attempt, if their number is limited.
    pub(crate) pending: Option<Lease>,
    /// Slot in the queue of a pool, while the client waits there.
    pub(crate) queued: Option<Queued>,
    /// The log of its requests.
    pub(crate) log: Option<Arc<RequestLog>>,
    /// The entry of its connection in the log.
    pub(crate) entry: Option<Box<AccessEntry>>,
}

impl Admitted {
    /// Returns true if a connection of the client can pass to another process, where it is recorded anew.
    pub(crate) fn is_passable(&self) -> bool {
        self.backend.is_none()
            && self.permit.is_none()
            && self.pending.is_none()
            && self.queued.is_none()
            && self.log.is_none()
    }

    /// Returns true if the client has no permit, record or log, and was not refused.
    pub(crate) fn is_plain(&self) -> bool {
        self.backend.is_none()
            && self.permit.is_none()
            && self.record.is_none()
            && self.log.is_none()
            && self.entry.is_none()
    }
}

/// Treatment of a refused client, with the resources for it.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The connection is closed.
    Drop,
    /// The client gets an HTTP response for the reason, or a reset.
    Reject,
    /// The client is kept waiting.
    Tarpit(Lease, Duration),
}

/// Decides on a client. Counts refused clients, and records clients.
pub(crate) fn admit(
    service: &Service,
    settings: &Settings,
    client: IpAddr,
    worker: usize,
    now: Time,
) -> Admission {
    let (mut admission, refused) = decide(service, settings, client, worker, now);
    let is_recorded = settings.records_refused || matches!(admission, Admission::Enter(_));
    let record = if is_recorded { record_of(service, settings, client, now) } else { None };
    if let Some((record, reason)) = record.as_ref().zip(refused) {
        record.refused(reason);
    }
    match &mut admission {
        Admission::Enter(admitted) => {
            record.iter().for_each(|record| record.connected(now));
            admitted.record = record;
            admitted.log.clone_from(&settings.request_log);
        }
        Admission::Refused(..) => record.iter().for_each(|record| record.turned_away(now)),
    }
    admission
}

/// Records a client whose datagram the access list refused, if the service remembers clients. The number of such
/// records in a second is bounded.
pub(crate) fn record_denied(cx: &Context, service: &Service, settings: &Settings, client: IpAddr) {
    if !settings.records_refused {
        return;
    }
    if let Some(record) = sampled_record(cx, service, settings, client) {
        record.refused(RefusedFor::AccessList);
        record.turned_away(cx.now);
    }
}

/// Returns the record of a client that sent a datagram, if the service remembers clients and this worker looked
/// for few records in this second. Most datagrams therefore take no lock, and forged addresses evict few clients.
pub(crate) fn sampled_record(
    cx: &Context,
    service: &Service,
    settings: &Settings,
    client: IpAddr,
) -> Option<Arc<ClientRecord>> {
    settings.clients.as_ref()?;
    let budget = cx.record_budget();
    if !budget.take_lookup(cx.now) {
        return None;
    }
    let settings = service.settings.load();
    let clients = settings.clients.as_ref()?;
    clients.find(client, cx.now).or_else(|| budget.take_insert().then(|| clients.enter(client, cx.now)))
}

/// Returns the record of a client, if the service remembers clients.
pub(crate) fn record_of(
    service: &Service,
    settings: &Settings,
    client: IpAddr,
    now: Time,
) -> Option<Arc<ClientRecord>> {
    settings.clients.as_ref()?;
    // A reload may have replaced the table since the client was accepted.
    service.settings.load().clients.as_ref().map(|clients| clients.enter(client, now))
}

/// Decides on a client. Returns the reason, too, if the client was refused.
fn decide(
    service: &Service,
    settings: &Settings,
    client: IpAddr,
    worker: usize,
    now: Time,
) -> (Admission, Option<RefusedFor>) {
    let counters = service.live.counters.of(worker);
    if !settings.permits(client) {
        counters.denied.one();
        return (
            refuse(service, settings.denied, worker, Reason::ClientDenied),
            Some(RefusedFor::AccessList),
        );
    }
    match settings.throttle.as_ref().map(|throttle| throttle.enter(client, now)) {
        None => (Admission::Enter(Admitted::default()), None),
        Some(Ok(permit)) => {
            (Admission::Enter(Admitted { permit: Some(permit), ..Admitted::default() }), None)
        }
        Some(Err(_)) => {
            counters.limited.one();
            (refuse(service, settings.exceeded, worker, Reason::ClientLimited), Some(RefusedFor::Limit))
        }
    }
}

/// Decides on a refused client, and takes a permit for its wait in a tarpit. `reason` is for reports
/// and HTTP responses.
pub(crate) fn refuse(service: &Service, refusal: Refusal, worker: usize, reason: Reason) -> Admission {
    match refusal {
        Refusal::Drop => Admission::Refused(Refused::Drop, reason),
        Refusal::Reject => Admission::Refused(Refused::Reject, reason),
        Refusal::Backend(backend) => {
            Admission::Enter(Admitted { backend: Some(backend), ..Admitted::default() })
        }
        // At the limit of waiting clients, the connections of further clients are closed.
        Refusal::Tarpit(time) => match service.tarpitted.enter(Denied::TARPIT_MAX as u32) {
            Some(permit) => {
                service.live.counters.of(worker).tarpitted.one();
                Admission::Refused(Refused::Tarpit(permit, time), reason)
            }
            None => Admission::Refused(Refused::Drop, reason),
        },
    }
}

/// Makes the close of this socket reset the connection (socket(7), `SO_LINGER`).
pub(crate) fn reset_at_close(socket: &OwnedFd) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::testing::{TestPool, service_with};
    use evener_core::acl::{Access, Acl};
    use evener_core::clients::Clients;
    use evener_core::spec::Protocol;
    use evener_core::throttle::{Throttle, ThrottleSpec};

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn service(change: impl FnOnce(&mut Settings)) -> Arc<Service> {
        service_with(Protocol::Tcp, &TestPool::new("pool", &[]), change)
    }

    fn admit_one(service: &Service) -> Admission {
        admit(service, &service.settings.load(), CLIENT, 0, Time::ZERO)
    }

    /// Checks the treatment of a client that the access list refuses.
    fn check_denied(denied: Refusal, expected: impl FnOnce(&Admission) -> bool) {
        let service = service(|settings| {
            settings.acl = Some(Arc::new(Acl::new(&[], Access::Deny)));
            settings.denied = denied;
        });
        let admission = admit_one(&service);
        assert!(expected(&admission), "{denied:?}: {admission:?}");
        assert_eq!(service.live.counters.total("denied"), 1);
    }

    #[test]
    fn refused_clients_are_treated_as_configured() {
        check_denied(Refusal::Drop, |got| matches!(got, Admission::Refused(Refused::Drop, _)));
        check_denied(Refusal::Reject, |got| {
            matches!(got, Admission::Refused(Refused::Reject, Reason::ClientDenied))
        });
        let time = Duration::from_secs(3);
        check_denied(
            Refusal::Tarpit(time),
            |got| matches!(got, Admission::Refused(Refused::Tarpit(_, length), _) if *length == time),
        );
        check_denied(
            Refusal::Backend(2),
            |got| matches!(got, Admission::Enter(admitted) if admitted.backend == Some(2) && !admitted.is_plain()),
        );
    }

    #[test]
    fn a_service_without_lists_and_limits_admits_clients_without_permits() {
        let service = service(|_| {});
        assert!(matches!(admit_one(&service), Admission::Enter(admitted) if admitted.is_plain()));
        assert_eq!(service.live.counters.total("denied"), 0);
    }

    #[test]
    fn a_full_tarpit_closes_connections_immediately() {
        let service = service(|_| {});
        let refuse_one =
            || refuse(&service, Refusal::Tarpit(Duration::from_secs(1)), 0, Reason::ClientDenied);
        let waiting: Vec<Admission> = (0..Denied::TARPIT_MAX).map(|_| refuse_one()).collect();
        assert!(matches!(refuse_one(), Admission::Refused(Refused::Drop, _)));
        assert_eq!(service.live.counters.total("tarpitted"), Denied::TARPIT_MAX as u64);
        drop(waiting);
        assert!(matches!(refuse_one(), Admission::Refused(Refused::Tarpit(..), _)));
    }

    #[test]
    fn a_client_beyond_its_limit_is_refused_until_one_of_its_connections_ends() {
        let spec = ThrottleSpec { connections: Some(1), connection_rate: None, request_rate: None, size: 16 };
        let service = service(|settings| {
            settings.throttle = Some(Arc::new(Throttle::new(&spec, 1)));
            settings.exceeded = Refusal::Reject;
        });
        let first = admit_one(&service);
        assert!(matches!(&first, Admission::Enter(admitted) if admitted.permit.is_some()));
        assert!(matches!(admit_one(&service), Admission::Refused(Refused::Reject, Reason::ClientLimited)));
        assert_eq!((service.live.counters.total("limited"), service.live.counters.total("denied")), (1, 0));
        drop(first);
        assert!(matches!(admit_one(&service), Admission::Enter(_)));
    }

    #[test]
    fn admitted_and_refused_clients_are_recorded() {
        let clients = Arc::new(Clients::new(16, 1));
        let permitted = service(|settings| settings.clients = Some(Arc::clone(&clients)));
        let denied = service(|settings| {
            settings.clients = Some(Arc::clone(&clients));
            settings.acl = Some(Arc::new(Acl::new(&[], Access::Deny)));
        });
        assert!(matches!(admit_one(&denied), Admission::Refused(..)));
        assert!(matches!(admit_one(&permitted), Admission::Enter(admitted) if admitted.record.is_some()));
        let counts =
            permitted.clients().unwrap().map(|client| (client.connects, client.denied, client.limited));
        assert_eq!(counts.collect::<Vec<_>>(), [(1, 1, 0)]);
    }

    #[test]
    fn a_service_may_leave_out_refused_clients() {
        let service = service(|settings| {
            settings.clients = Some(Arc::new(Clients::new(16, 1)));
            settings.acl = Some(Arc::new(Acl::new(&[], Access::Deny)));
            settings.records_refused = false;
        });
        assert!(matches!(admit_one(&service), Admission::Refused(..)));
        let (cx, _reports) = Context::for_tests();
        record_denied(&cx, &service, &service.settings.load(), CLIENT);
        assert_eq!(service.clients().unwrap().count(), 0);
    }

    #[test]
    fn forged_addresses_of_refused_datagrams_evict_few_clients() {
        let clients = Arc::new(Clients::new(100, 1));
        let service = service(|settings| settings.clients = Some(Arc::clone(&clients)));
        for number in 0..90_u8 {
            let _record = clients.enter([192, 0, 2, number].into(), Time::ZERO);
        }
        let (cx, _reports) = Context::for_tests();
        for number in 0..50_000_u32 {
            record_denied(&cx, &service, &service.settings.load(), number.to_be_bytes().into());
        }
        assert_eq!(clients.len(), 100, "the clients, and the first ten forged addresses");
    }

    #[test]
    fn a_record_is_made_in_the_table_of_the_latest_settings() {
        let [old, new] = [1, 2].map(|key| Arc::new(Clients::new(16, key)));
        let service = service(|settings| settings.clients = Some(Arc::clone(&old)));
        let accepted_with = service.settings.load_full();
        let mut settings =
            Settings::new(accepted_with.options.clone(), Arc::clone(&accepted_with.backends[0].pool));
        settings.clients = Some(Arc::clone(&new));
        service.settings.store(Arc::new(settings));
        record_of(&service, &accepted_with, CLIENT, Time::ZERO).expect("the service remembers clients");
        assert_eq!((old.len(), new.len()), (0, 1));
    }
}
