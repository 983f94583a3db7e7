//! Entries of queries in the log of their service.

use super::Query;
use super::notes::note_query;
use super::response::Sent;
use crate::context::Context;
use crate::dns::{Dns, Requester};
use crate::service::Settings;
use crate::service::access_entry::AccessEntry;
use evener_core::reason::{Cause, Reason};
use evener_core::request_log::RequestText;
use evener_core::wire::dns as wire;

impl Query {
    /// Records the response to the client.
    pub(in crate::dns) fn log_response(&self, cx: &Context, response: &[u8]) {
        if let Some(entry) = &self.entry {
            entry.responded(wire::rcode(response), response.len(), cx.now);
        }
    }

    /// Records the reason why no server responded, and the response code of the error for the client.
    pub(super) fn log_failure(&self, cx: &Context, cause: Cause, rcode: Option<u8>) {
        if let Some(entry) = &self.entry {
            end(entry, cx, cause, rcode);
        }
    }
}

impl Dns {
    /// Begins the entry of a query, if the service has a log.
    pub(super) fn begin_entry(
        &self,
        cx: &Context,
        settings: &Settings,
        requester: &Requester,
        (view, message): (&wire::Query, &[u8]),
    ) -> Option<Box<AccessEntry>> {
        let service = &self.services[requester.service].service;
        let request =
            || RequestText::of_query(&wire::name_text(view.name(message)), &wire::type_name(view.qtype()));
        let entry = AccessEntry::begin(cx, service, settings, requester.client, request);
        entry.iter().for_each(|entry| entry.moved(message.len() as u64, 0, cx.now));
        entry
    }

    /// Logs a query that is not passed on, with the reason and the response code, if there is a response.
    pub(super) fn log_refused(
        &self,
        cx: &Context,
        settings: &Settings,
        requester: &Requester,
        query: (&wire::Query, &[u8]),
        (reason, rcode): (Reason, Option<u8>),
    ) {
        if let Some(entry) = self.begin_entry(cx, settings, requester, query) {
            end(&entry, cx, reason.into(), rcode);
        }
    }

    /// Counts, reports and logs a query that is not passed on, with the reason and the response code, if there is a
    /// response.
    pub(super) fn note_refused(
        &self,
        cx: &Context,
        settings: &Settings,
        requester: &Requester,
        query: (&wire::Query, &[u8]),
        (reason, rcode): (Reason, Option<u8>),
    ) {
        self.log_refused(cx, settings, requester, query, (reason, rcode));
        note_query(cx, &self.services[requester.service].service, requester, reason, rcode);
    }

    /// Logs a query that got a response from the cache.
    pub(super) fn log_cached(
        &self,
        cx: &Context,
        settings: &Settings,
        requester: &Requester,
        query: (&wire::Query, &[u8]),
        response: Sent,
    ) {
        if let Some(entry) = self.begin_entry(cx, settings, requester, query) {
            entry.responded(response.rcode, response.bytes, cx.now);
        }
    }
}

fn end(entry: &AccessEntry, cx: &Context, cause: Cause, rcode: Option<u8>) {
    entry.set_cause(cause);
    if let Some(rcode) = rcode {
        entry.responded(rcode, 0, cx.now);
    }
}
