//! Reports of queries that got an error response from Evener, or none, and the records of their clients.

use crate::context::Context;
use crate::context::unserved::{Status, Traffic, Unserved};
use crate::dns::{Dns, Origin, Requester};
use crate::service::failures::note_unserved;
use crate::service::{Service, Settings, admission};
use evener_core::clients::ClientRecord;
use evener_core::dns::RateVerdict;
use evener_core::reason::{Cause, Reason};
use evener_core::snapshot::NoServer;
use evener_core::wire::dns::{self as wire, QueryError};
use std::sync::Arc;

impl Dns {
    /// Returns the record of a client: the record of its connection, or for some queries over UDP the record of
    /// its address. Cached responses and refusals must not wait for the table.
    pub(super) fn record_at_hand(
        &self,
        cx: &Context,
        settings: &Settings,
        requester: &Requester,
    ) -> Option<Arc<ClientRecord>> {
        match requester.origin {
            Origin::Stream(client) => self.clients.get(client)?.record().cloned(),
            Origin::Datagram(_) => {
                let service = &self.services[requester.service].service;
                admission::sampled_record(cx, service, settings, requester.client.ip())
            }
        }
    }
}

/// Counts and reports a query that was not passed on; `rcode` is the response code for the client.
pub(super) fn note_query(
    cx: &Context,
    service: &Service,
    requester: &Requester,
    cause: impl Into<Cause>,
    rcode: Option<u8>,
) {
    let cause = cause.into();
    note_unserved(cx, service, cause.reason(), || Unserved {
        status: rcode.map(status_of),
        ..Unserved::new(Traffic::Query, requester.client.ip(), cause)
    });
}

/// Counts and reports a query that no server of a pool responded to.
pub(super) fn note_failed_query(
    cx: &Context,
    service: &Service,
    requester: &Requester,
    cause: Cause,
    rcode: Option<u8>,
    pool: impl FnOnce() -> Option<Arc<str>>,
) {
    note_unserved(cx, service, cause.reason(), || Unserved {
        status: rcode.map(status_of),
        pool: pool(),
        ..Unserved::new(Traffic::Query, requester.client.ip(), cause)
    });
}

/// Returns the cause for a query without a response. `None` means that no socket was left.
pub(super) fn cause_of_failure(reason: Option<NoServer>) -> Cause {
    match reason {
        Some(NoServer::Failed) => {
            Cause::with(Reason::ConnectFailed, "each server that was queried failed or did not respond")
        }
        Some(reason) => Reason::from(reason).into(),
        None => Reason::NoDescriptor.into(),
    }
}

/// Returns the cause for a message that is not passed on, with the response code for the client.
pub(super) fn cause_of_message(error: QueryError, message: &[u8]) -> (Cause, Option<u8>) {
    let invalid = |words| Cause::with(Reason::QueryInvalid, words);
    match error {
        QueryError::Short => (invalid("shorter than a header"), None),
        QueryError::Response => (invalid("a response instead of a query"), None),
        QueryError::Malformed => match wire::rcode_of_malformed(message) {
            wire::NOTIMP => (Reason::OpcodeUnsupported.into(), Some(wire::NOTIMP)),
            rcode => (Reason::QueryInvalid.into(), Some(rcode)),
        },
    }
}

/// Returns the name of a response code.
fn status_of(rcode: u8) -> Status {
    Status::Dns(match rcode {
        wire::FORMERR => "FORMERR",
        wire::NOTIMP => "NOTIMP",
        wire::REFUSED => "REFUSED",
        _ => "SERVFAIL",
    })
}

/// Applies the rate limit to queries over UDP. Addresses of TCP clients are genuine.
pub(super) fn rate_verdict(cx: &Context, settings: &Settings, requester: &Requester) -> RateVerdict {
    let limit = settings.dns.as_ref().and_then(|dns| dns.rate_limit.as_ref());
    match (limit, requester.origin) {
        (Some(limit), Origin::Datagram(_)) => limit.admit(requester.client.ip(), cx.now),
        _ => RateVerdict::Respond,
    }
}
