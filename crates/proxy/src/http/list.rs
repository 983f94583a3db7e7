//! The sessions of a worker as they are listed.

use crate::context::Context;
use crate::http::Http;
use crate::http::exchange::{Exchange, Reach};
use crate::http::session::{Mode, Session};
use crate::io::transport::Transport;
use crate::service::open::{Collector, Open, last_server, port};
use rustix::fd::AsRawFd;

impl Http {
    /// Lists the sessions that a collector wants.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, one) in self.sessions.iter().filter(|(_, one)| !matches!(one.mode, Mode::Over)) {
            if collector.is_meant(&one.client.service.name) {
                collector.take(|| self.open(cx, one));
            }
        }
    }

    fn open(&self, cx: &Context, session: &Session) -> Open {
        let number_of = match &session.mode {
            Mode::Relay(exchange) => Some(*exchange),
            Mode::Http1(http) => http.exchange(),
            Mode::Http2(http) => http.exchanges().first().copied(),
            Mode::Proxy | Mode::Handshake(..) | Mode::Tarpit | Mode::Lingering(_) | Mode::Over => None,
        };
        let exchange =
            number_of.and_then(|number| self.shared.exchanges.get(number)).map(|exchange| &**exchange);
        let slot = exchange.and_then(|exchange| match exchange.reach {
            Reach::Open(slot) | Reach::Connecting(slot) => Some(slot),
            Reach::Wanted | Reach::Queued | Reach::Failed(_) => None,
        });
        let transport = slot.and_then(|slot| self.shared.servers.get(slot)).map(|server| &server.transport);
        let choice = exchange.and_then(|exchange| exchange.choice.as_ref().map(|choice| (exchange, choice)));
        Open {
            number: cx.global_number(session.client.number),
            service: session.client.service.name.clone(),
            client: session.client.origin.client().ip(),
            client_port: port(session.client.origin.client(), session.client.origin.client().ip()),
            server: choice
                .map(|(exchange, choice)| last_server(&exchange.backend().pool.load().pool, &choice.server)),
            stage: session_stage(session, exchange),
            idle: cx.now.since(session.client.active_at),
            client_socket: Some(session.client.transport.socket.as_raw_fd()),
            server_socket: transport.map(|transport| transport.socket.as_raw_fd()),
            to_client: session.client.transport.pending(),
            to_server: transport.map_or(0, Transport::pending),
        }
    }
}

fn session_stage(session: &Session, exchange: Option<&Exchange>) -> &'static str {
    match (&session.mode, exchange) {
        (Mode::Proxy, _) => "preamble",
        (Mode::Handshake(..), _) => "handshake",
        (Mode::Http1(_), None) => "http/1 idle",
        (Mode::Http1(_), Some(_)) => "http/1 request",
        (Mode::Http2(_), None) => "http/2 idle",
        (Mode::Http2(_), Some(_)) => "http/2 requests",
        (Mode::Relay(_), Some(Exchange { reach: Reach::Open(_), .. })) => "relaying",
        (Mode::Relay(_), _) => "connecting",
        (Mode::Tarpit, _) => "tarpit",
        (Mode::Lingering(_), _) => "lingering",
        (Mode::Over, _) => "over",
    }
}
