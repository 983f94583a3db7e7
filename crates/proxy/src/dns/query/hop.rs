//! Options that are meant for one hop only: the idle time of TCP connections (RFC 7828), and cookies (RFC 7873)
//! where responses are cached.

use crate::context::Context;
use crate::context::keys::DnsClientKey;
use crate::dns::query::response;
use crate::dns::{Dns, Origin, Requester};
use crate::service::Settings;
use evener_core::wire::dns::{self as wire, Cookies, QueryError};

/// Reads a query of a client, and notes in `requester` whether the client gets the idle time of its connection.
pub(in crate::dns) fn read(
    settings: &Settings,
    requester: &mut Requester,
    message: &[u8],
) -> Result<wire::Query, QueryError> {
    let view = wire::Query::parse(message)?;
    // A query that only requests a cookie is an empty message where cookies are not supported (RFC 7873,
    // section 5.4).
    if !view.has_question_section() && cookies(settings, requester) == Cookies::Remove {
        return Err(QueryError::Malformed);
    }
    // The option is ignored over UDP (RFC 7828, section 3.3.1).
    let is_stream = matches!(requester.origin, Origin::Stream(_));
    requester.keepalive = is_stream && view.asks_for_keepalive();
    Ok(view)
}

/// Returns whether cookies are passed on for this client.
pub(super) fn cookies(settings: &Settings, requester: &Requester) -> Cookies {
    if response::cache(settings, requester).is_some() { Cookies::Remove } else { Cookies::Pass }
}

impl Dns {
    /// Sends a response together with the idle time of the connection.
    pub(super) fn respond_with_keepalive(&mut self, cx: &Context, client: DnsClientKey, response: &[u8]) {
        let Some(idle) = self.client_idle_time(cx, client) else { return };
        let mut copy = self.spare();
        copy.extend_from_slice(response);
        wire::add_keepalive(&mut copy, idle);
        self.respond_to_client(cx, client, &copy);
        self.give_back(copy);
    }
}
