//! Listing of the sessions of a worker.

use super::{Mode, Session};
use crate::context::Context;
use crate::http::Http;
use crate::http::exchange::{Exchange, Reach};
use crate::io::transport::Transport;
use crate::service::open::{Collector, Open, last_server, port};
use rustix::fd::AsRawFd;

impl Http {
    /// Lists the sessions that the collector selects.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, session) in self.sessions.iter().filter(|(_, session)| !session.has_ended()) {
            if collector.is_meant(&session.client.service.live.name) {
                collector.take(|| self.open(cx, session));
            }
        }
    }

    fn open(&self, cx: &Context, session: &Session) -> Open {
        let exchange_key = match &session.mode {
            Mode::Relay(exchange) => Some(*exchange),
            Mode::Http1(http) => http.exchange(),
            Mode::Http2(http) => http.exchanges().first().copied(),
            Mode::Proxy | Mode::Handshake(..) | Mode::Tarpit | Mode::Lingering(_) | Mode::Ended => None,
        };
        let exchange = exchange_key
            .and_then(|exchange_key| self.shared.exchanges.get(exchange_key))
            .map(|exchange| &**exchange);
        let server_key = exchange.and_then(|exchange| match exchange.reach() {
            Reach::Open(server_key) | Reach::Connecting(server_key) => Some(server_key),
            Reach::Wanted | Reach::Queued | Reach::Failed(_) => None,
        });
        let transport = server_key
            .and_then(|server_key| self.shared.servers.get(server_key))
            .map(|server| &server.transport);
        Open {
            number: cx.global_number(session.client.number),
            service: session.client.service.live.name.clone(),
            client: session.client.origin.client().ip(),
            client_port: port(session.client.origin.client(), session.client.origin.client().ip()),
            server: exchange.and_then(Exchange::server).map(|(pool, server)| last_server(&pool, server)),
            stage: session_stage(session, exchange),
            idle: cx.now.since(session.client.active_at),
            client_socket: Some(session.client.transport.socket().as_raw_fd()),
            server_socket: transport.map(|transport| transport.socket().as_raw_fd()),
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
        (Mode::Relay(_), Some(exchange)) if exchange.open_connection().is_some() => "relaying",
        (Mode::Relay(_), _) => "connecting",
        (Mode::Tarpit, _) => "tarpit",
        (Mode::Lingering(_), _) => "lingering",
        (Mode::Ended, _) => "over",
    }
}
