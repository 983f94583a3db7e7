//! Admission of clients: access lists, the limits of each client, and the treatment of those that may not come in.

use crate::context::pool_queue::Queued;
use crate::io::request_log::RequestLog;
use crate::service::{Refusal, Service, Settings};
use evener_core::Time;
use evener_core::clients::ClientRecord;
use evener_core::limits::Lease;
use evener_core::spec::Denied;
use evener_core::throttle::ClientLease;
use rustix::fd::OwnedFd;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The status for clients that the access list refuses (RFC 9110, section 15.5.4).
const FORBIDDEN: u16 = 403;
/// The status for clients that exceed a limit (RFC 6585, section 4).
const TOO_MANY: u16 = 429;

/// The decision about a client.
#[derive(Debug)]
pub(crate) enum Admission {
    /// The client comes in.
    Enter(Guest),
    /// The client does not.
    Refused(Refused),
}

/// A client that came in.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    /// The pool for refused clients, if this is one: it takes precedence over routes.
    pub(crate) backend: Option<usize>,
    /// Permit among the connections of its address.
    pub(crate) place: Option<ClientLease>,
    /// The record of its activity.
    pub(crate) record: Option<Arc<ClientRecord>>,
    /// Permit among the connects under way, where they are counted.
    pub(crate) pending: Option<Lease>,
    /// Slot in the queue of a pool, while it waits there.
    pub(crate) queued: Option<Queued>,
    /// The log of its requests.
    pub(crate) log: Option<Arc<RequestLog>>,
}

impl Guest {
    /// Returns whether all of its parts are absent.
    pub(crate) fn is_plain(&self) -> bool {
        self.backend.is_none() && self.place.is_none() && self.record.is_none() && self.log.is_none()
    }
}

/// The manner of a refusal.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The connection is closed.
    Drop,
    /// The client gets a response of HTTP with this status, or a reset.
    Reject(u16),
    /// The client is kept waiting.
    Tarpit(Lease, Duration),
}

/// Decides about a client. Counts it if it is refused, and records it if it comes in.
pub(crate) fn admit(
    service: &Service,
    settings: &Settings,
    client: IpAddr,
    worker: usize,
    now: Time,
) -> Admission {
    let mut admission = decide(service, settings, client, worker, now);
    if let Admission::Enter(guest) = &mut admission {
        guest.record = record_of(service, settings, client, now);
        guest.record.iter().for_each(|record| record.connected(now));
        guest.log.clone_from(&settings.request_log);
    }
    admission
}

/// Returns the record of a client, if the service remembers clients.
pub(crate) fn record_of(
    service: &Service,
    settings: &Settings,
    client: IpAddr,
    now: Time,
) -> Option<Arc<ClientRecord>> {
    settings.clients.as_ref()?;
    // A reload may have put another table there since the client was accepted.
    service.settings.load().clients.as_ref().map(|clients| clients.enter(client, now))
}

fn decide(service: &Service, settings: &Settings, client: IpAddr, worker: usize, now: Time) -> Admission {
    let counters = service.live.counters.of(worker);
    if !settings.permits(client) {
        counters.denied.one();
        return refuse(service, settings.denied, worker, FORBIDDEN);
    }
    match settings.throttle.as_ref().map(|throttle| throttle.enter(client, now)) {
        None => Admission::Enter(Guest::default()),
        Some(Ok(place)) => Admission::Enter(Guest { place: Some(place), ..Guest::default() }),
        Some(Err(_)) => {
            counters.limited.one();
            refuse(service, settings.exceeded, worker, TOO_MANY)
        }
    }
}

/// Carries out a refusal; `status` is for clients that get a response of HTTP.
pub(crate) fn refuse(service: &Service, refusal: Refusal, worker: usize, status: u16) -> Admission {
    match refusal {
        Refusal::Drop => Admission::Refused(Refused::Drop),
        Refusal::Reject => Admission::Refused(Refused::Reject(status)),
        Refusal::Backend(backend) => Admission::Enter(Guest { backend: Some(backend), ..Guest::default() }),
        // When so many wait already, another one is closed.
        Refusal::Tarpit(time) => match service.live.tarpitted.enter(Denied::TARPIT_MAX as u32) {
            Some(place) => {
                service.live.counters.of(worker).tarpitted.one();
                Admission::Refused(Refused::Tarpit(place, time))
            }
            None => Admission::Refused(Refused::Drop),
        },
    }
}

/// Has the connection reset when this socket is closed (socket(7), `SO_LINGER`).
pub(crate) fn reset_at_close(socket: &OwnedFd) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}
