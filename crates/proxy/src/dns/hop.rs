//! What of a client's message is for us and not for its server, and the other way round: the idle time of a TCP connection (RFC
//! 7828), and cookies (RFC 7873) where answers are kept.

use super::Dns;
use super::query::{Asker, Origin};
use super::reply;
use crate::context::Context;
use crate::context::keys::DnsClientKey;
use crate::service::Settings;
use evener_core::wire::dns::{self as wire, Cookies, QueryError};

/// Reads a query of a client.
pub(super) fn read(
    settings: &Settings,
    asker: &Asker,
    message: &[u8],
) -> Result<(wire::Query, Asker), QueryError> {
    let view = wire::Query::parse(message)?;
    // Who does not know of cookies finds nothing in it (RFC 7873, section 5.4).
    if !view.has_question() && cookies(settings, asker) == Cookies::Remove {
        return Err(QueryError::Malformed);
    }
    // Over UDP it means nothing (RFC 7828, section 3.3.1).
    let is_stream = matches!(asker.origin, Origin::Stream(_));
    Ok((view, Asker { keepalive: is_stream && view.asks_for_keepalive(), ..*asker }))
}

/// Whether cookies are passed on for this client.
pub(super) fn cookies(settings: &Settings, asker: &Asker) -> Cookies {
    if reply::cache(settings, asker).is_some() { Cookies::Remove } else { Cookies::Pass }
}

impl Dns {
    /// Sends a response to a client that asked for how long its connection may be idle.
    pub(super) fn respond_with_keepalive(&mut self, cx: &Context, client: DnsClientKey, answer: &[u8]) {
        let Some(idle) = self.client_idle_time(cx, client) else { return };
        let mut told = self.spare();
        told.extend_from_slice(answer);
        wire::add_keepalive(&mut told, idle);
        self.respond_to_client(client, &told);
        self.give_back(told);
    }
}
