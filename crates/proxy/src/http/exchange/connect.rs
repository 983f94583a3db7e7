//! The way of an exchange to its server: connect, PROXY header, TLS; and the next server when one cannot be reached.

use super::{Progress, Reach, ServerConnection, Stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::context::registry::{Readiness, Token};
use crate::context::report::Report;
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::io;
use crate::io::connect::{cost, note_failure, note_success, open_socket};
use crate::io::tls::{Tls, failure_with_server};
use crate::io::transport::{Received, Transport};
use crate::service::hops::limit_connection;
use crate::service::{Pending, preamble};
use evener_core::attempt::Cost;
use evener_core::health::{Failure, TlsFailure};
use evener_core::snapshot::Choice;
use evener_core::spec::ServiceOptions;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::sync::Arc;

impl Shared {
    /// Begins a connect to the chosen server.
    pub(super) fn connect(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        number: ExchangeKey,
        pool: &Arc<str>,
    ) {
        let Some(unit) = self.take_descriptor(cx, client, number) else { return };
        let exchange = &self.exchanges[number];
        let Some(choice) = &exchange.choice else { return };
        let (socket, stage) = match begin_connect(cx, client, &exchange.settings.options, choice) {
            Ok(begun) => begun,
            Err(error) => {
                client.promise.get_or_insert_with(|| unit.promise());
                return self.fail(cx, number, error);
            }
        };
        let options = &exchange.settings.options;
        let counts = stage == Stage::Connecting && options.pending_max.is_some();
        let deadline = exchange.attempt.deadline(cx.now, options.connect_timeout, &options.attempt_limits());
        let mut transport = Transport::new(socket);
        transport.writable = stage == Stage::Open;
        let server = ServerConnection {
            transport,
            pool: Arc::clone(pool),
            id: choice.server.id,
            target: choice.server.target.clone(),
            live: Arc::clone(&choice.server.live),
            connector: exchange.backend().tls.clone(),
            exchange: Some(number),
            pending: counts.then(|| Pending::begin(&client.service)),
            stage: Stage::Connecting,
            unit: Some(unit),
            idle_since: cx.now,
            reused: false,
            personal: exchange.is_personal(),
        };
        let slot = self.servers.insert(Box::new(server));
        let exchange = &mut self.exchanges[number];
        (exchange.reach, exchange.since) = (Reach::Connecting(slot), cx.now);
        if let Err(error) = cx.registry.register(&self.servers[slot].transport.socket, Token::Upstream(slot))
        {
            self.give_up_server(cx, client, slot);
            return self.fail(cx, number, error);
        }
        self.exchange_timers.set(number, deadline);
        if stage == Stage::Open {
            self.connected(cx, client, number, slot);
        }
    }

    /// The chosen server cannot be reached: it is passed over, and another one wanted.
    fn fail(&mut self, cx: &mut Context, number: ExchangeKey, error: Errno) {
        let Some(choice) = self.give_up_choice(cx, number, cost(error)) else { return };
        let pool = self.exchanges[number].backend().pool.load().pool.clone();
        note_failure(cx, pool, &choice.server, error);
    }

    fn fail_tls(&mut self, cx: &mut Context, number: ExchangeKey, how: TlsFailure) {
        let Some(choice) = self.give_up_choice(cx, number, Cost::Slow) else { return };
        let pool = self.exchanges[number].backend().pool.load().pool.clone();
        let server = &choice.server;
        server.live.counters.of(cx.id).tls_failed.one();
        let target = server.target.clone();
        cx.report(Report::Failure { pool, server: server.id, target, failure: Failure::Tls(how) });
    }

    fn give_up_choice(&mut self, cx: &mut Context, number: ExchangeKey, cost: Cost) -> Option<Choice> {
        self.exchange_timers.clear(number);
        let exchange = &mut self.exchanges[number];
        exchange.reach = Reach::Wanted;
        let choice = exchange.choice.take()?;
        exchange.attempt.failed(choice.server.id, choice.why, cost);
        self.note_freed(cx, number);
        Some(choice)
    }

    /// A connect took too long.
    pub(super) fn on_connect_timeout(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        number: ExchangeKey,
        slot: ServerConnectionKey,
    ) {
        self.give_up_server(cx, client, slot);
        self.fail(cx, number, Errno::TIMEDOUT);
    }

    /// The server accepted: the PROXY header comes first, then TLS.
    fn connected(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        number: ExchangeKey,
        slot: ServerConnectionKey,
    ) {
        let exchange = &self.exchanges[number];
        let Some(choice) = &exchange.choice else { return };
        let server = &mut self.servers[slot];
        server.pending.take().into_iter().for_each(|pending| pending.end(cx));
        server.transport.writable = true;
        if let Some(version) = exchange.backend().send_proxy {
            let ends = client.origin.ends(&client.transport.socket);
            let (name, facts) = (client.name(), client.facts.as_deref());
            let header = preamble::introduce(version, &client.origin, ends, name, facts, cx.random.bits());
            server.transport.send_raw(&header);
        }
        let Some(connector) = &server.connector else { return self.opened(cx, client, number, slot) };
        let name = connector.names.get(&choice.server.name).cloned();
        match name.and_then(|name| Tls::client(&connector.config, name).ok()) {
            Some(tls) => {
                server.stage = Stage::Handshaking;
                server.transport.begin_tls(tls, &mut self.buffers);
            }
            None => {
                self.give_up_server(cx, client, slot);
                self.fail_tls(cx, number, TlsFailure::Other);
            }
        }
    }

    fn shake_hands(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        number: ExchangeKey,
        slot: ServerConnectionKey,
    ) {
        loop {
            let transport = &mut self.servers[slot].transport;
            transport.flush(&mut self.buffers);
            if transport.is_established() {
                return self.opened(cx, client, number, slot);
            }
            let received = transport.receive(&mut self.buffers);
            if transport.failure.is_some() || transport.end.is_some() {
                let how = failure_with_server(transport.failure.as_ref());
                self.give_up_server(cx, client, slot);
                return self.fail_tls(cx, number, how);
            }
            if received == Received::Nothing {
                return;
            }
        }
    }

    /// The server can be spoken to.
    fn opened(&mut self, cx: &mut Context, client: &Client, number: ExchangeKey, slot: ServerConnectionKey) {
        self.servers[slot].stage = Stage::Open;
        self.exchange_timers.clear(number);
        let exchange = &mut self.exchanges[number];
        exchange.reach = Reach::Open(slot);
        let since = std::mem::replace(&mut exchange.since, cx.now);
        let Some(choice) = &exchange.choice else { return };
        let (entry, snapshot) = (&choice.server, exchange.backend().pool.load_full());
        entry.live.counters.of(cx.id).connections.one();
        note_success(cx, &snapshot.pool, choice);
        if exchange.http.is_none() {
            snapshot.remember(exchange.client, entry.id, cx.now);
            snapshot.observe(entry, cx.now.since(since), cx.now);
            client.note_server(exchange.backend(), entry);
        }
    }

    /// Something happened at the socket of an exchange's server.
    pub(in crate::http) fn on_server_event(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        (number, slot): (ExchangeKey, ServerConnectionKey),
        ready: Readiness,
    ) -> Progress {
        let server = &mut self.servers[slot];
        server.transport.readable |= ready.readable || ready.ended;
        server.transport.hung_up |= ready.ended;
        if server.stage != Stage::Connecting {
            server.transport.writable |= ready.writable || ready.error;
            if server.stage == Stage::Handshaking {
                self.shake_hands(cx, client, number, slot);
            }
            return Progress::Moved;
        }
        let failed = if ready.ended {
            sockopt::socket_error(&server.transport.socket).and_then(|error| error)
        } else {
            Ok(())
        };
        match failed {
            Ok(()) if ready.ended || ready.writable => self.connected(cx, client, number, slot),
            Ok(()) => return Progress::Waits,
            Err(error) => {
                self.give_up_server(cx, client, slot);
                self.fail(cx, number, error);
            }
        }
        Progress::Moved
    }
}

/// Opens a socket and begins the connect; `Open` when that is done at once.
fn begin_connect(
    cx: &mut Context,
    client: &Client,
    options: &ServiceOptions,
    choice: &Choice,
) -> Result<(OwnedFd, Stage), Errno> {
    let (target, address) = (&choice.server.target, client.origin.client().ip());
    let socket = open_socket(target, options, address)?;
    limit_connection(cx, &client.service, (&client.transport.socket, address), (&socket, target))?;
    match io::listener::connect(&socket, target) {
        Ok(()) => Ok((socket, Stage::Open)),
        Err(Errno::INPROGRESS) => Ok((socket, Stage::Connecting)),
        Err(error) => Err(error),
    }
}
