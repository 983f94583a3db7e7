//! Reports of queries that got an error response from Evener, or none.

use super::Requester;
use crate::context::Context;
use crate::context::unserved::{Status, Traffic, Unserved};
use crate::service::Service;
use crate::service::failures::note_unserved;
use evener_core::reason::{Cause, Reason};
use evener_core::snapshot::NoServer;
use evener_core::wire::dns::{self as wire, QueryError};
use std::sync::Arc;

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
