//! Exchanges with a server whose connections are to end: they break off as if the server had reset them.

use super::{ServerLink, Stage, close_server, tell_session};
use crate::context::Context;
use crate::context::keys::ServerLinkKey;
use crate::http::Http;
use crate::http::session::{self, Mode};
use crate::io::relay::End;
use crate::service::admission::reset_at_close;
use crate::service::ending::Ending;
use rustix::io::Errno;

/// Ends the exchanges with a server, and its pooled connections; returns how many exchanges there were.
pub(crate) fn end_server(all: &mut Http, cx: &mut Context, ending: &Ending) -> usize {
    let is_meant = |server: &ServerLink| ending.means(&server.live, &server.target);
    let slots = all.servers.keys(|server| is_meant(server));
    slots.into_iter().filter(|&slot| end(all, cx, slot, ending)).count()
}

/// Ends a connection; whether there was an exchange on it. What connects or shakes hands goes on to the next server by itself.
fn end(all: &mut Http, cx: &mut Context, slot: ServerLinkKey, ending: &Ending) -> bool {
    let Some(server) = all.servers.get_mut(slot) else { return false };
    match (server.stage, server.exchange) {
        (Stage::Open, Some(number)) => {
            let Some(exchange) = all.exchanges.get(number) else { return false };
            let (index, session) = (exchange.session, &all.sessions[exchange.session]);
            ending.counter(session.service.live.counters.of(cx.id)).one();
            reset_at_close(&server.link.socket);
            if matches!(session.mode, Mode::Relay(_)) {
                reset_at_close(&session.link.socket);
                session::close(all, cx, index);
            } else {
                server.link.broken = true;
                server.link.end = Some(End::Error(Errno::CONNRESET));
                tell_session(all, cx, number);
            }
            true
        }
        (Stage::Open | Stage::Lingering, None) => {
            close_server(all, cx, slot);
            false
        }
        _ => false,
    }
}
