//! Connects an exchange to its server: connection attempt, PROXY header, TLS, and the next server after a
//! failure.

use super::{FailedServer, Progress, Reach, ServerConnection, Stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::context::registry::{Readiness, Token};
use crate::context::report::Report;
use crate::http::client::Client;
use crate::http::exchange::Shared;
use crate::io;
use crate::io::connect::{failed_try, failure_words, note_failure, note_success, open_socket};
use crate::io::tls::{Tls, failure_with_server};
use crate::io::transport::{Received, Transport};
use crate::service::hops::limit_connection;
use crate::service::{Pending, preamble};
use evener_core::attempt::FailedTry;
use evener_core::health::{Failure, TlsFailure};
use evener_core::reason::{Cause, Reason};
use evener_core::snapshot::Choice;
use evener_core::spec::ServiceOptions;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::sync::Arc;

impl Shared {
    /// Begins to connect to the chosen server.
    pub(super) fn connect(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        pool: &Arc<str>,
    ) {
        let Some(unit) = self.take_descriptor(cx, client, exchange_key) else { return };
        let exchange = &self.exchanges[exchange_key];
        let Some(choice) = &exchange.choice else { return };
        let (socket, stage) = match begin_connect(cx, client, &exchange.settings.options, choice) {
            Ok(begun) => begun,
            Err(error) => {
                client.give_back(|| Some(unit));
                return self.fail(cx, exchange_key, error);
            }
        };
        let options = &exchange.settings.options;
        let counts = stage == Stage::Connecting && options.pending_max.is_some();
        let deadline = exchange.attempt.deadline(cx.now, options.connect_timeout, &options.attempt_limits());
        let server = ServerConnection {
            transport: Transport::connecting(socket),
            pool: Arc::clone(pool),
            id: choice.server.id,
            target: choice.server.target.clone(),
            live: Arc::clone(&choice.server.live),
            connector: exchange.backend().tls.clone(),
            host: choice.server.host.clone(),
            exchange: Some(exchange_key),
            pending: counts.then(|| Pending::begin(&client.service)),
            stage: Stage::Connecting,
            unit: Some(unit),
            idle_since: cx.now,
            reused: false,
            personal: exchange.is_personal(),
        };
        let server_key = self.servers.insert(Box::new(server));
        let exchange = &mut self.exchanges[exchange_key];
        (exchange.reach, exchange.since) = (Reach::Connecting(server_key), cx.now);
        if let Err(error) =
            cx.registry.register(self.servers[server_key].transport.socket(), Token::Upstream(server_key))
        {
            self.give_up_server(cx, client, server_key);
            return self.fail(cx, exchange_key, error);
        }
        self.exchange_timers.set(exchange_key, deadline);
        if stage == Stage::Open {
            self.connected(cx, client, exchange_key, server_key);
        }
    }

    /// Gives up the chosen server after a failed connection attempt, so that another server is chosen next.
    fn fail(&mut self, cx: &mut Context, exchange_key: ExchangeKey, error: Errno) {
        let failure = failure_words(error);
        let Some(choice) = self.give_up_choice(cx, exchange_key, failed_try(error), failure) else { return };
        let pool = self.exchanges[exchange_key].backend().pool.load().pool.clone();
        note_failure(cx, pool, &choice.server, error);
    }

    fn fail_tls(&mut self, cx: &mut Context, exchange_key: ExchangeKey, how: TlsFailure) {
        let Some(choice) = self.give_up_choice(cx, exchange_key, FailedTry::SLOW, how.words()) else {
            return;
        };
        let pool = self.exchanges[exchange_key].backend().pool.load().pool.clone();
        let server = &choice.server;
        server.live.counters.of(cx.id).tls_failed.one();
        let target = server.target.clone();
        cx.report(Report::Failure { pool, server: server.id, target, failure: Failure::Tls(how) });
    }

    fn give_up_choice(
        &mut self,
        cx: &mut Context,
        exchange_key: ExchangeKey,
        failed: FailedTry,
        failure: &'static str,
    ) -> Option<Choice> {
        self.exchange_timers.clear(exchange_key);
        let exchange = &mut self.exchanges[exchange_key];
        exchange.reach = Reach::Wanted;
        let choice = exchange.choice.take()?;
        exchange.attempt.failed(choice.server.id, choice.why, failed);
        let cause = Cause::with(Reason::ConnectFailed, failure);
        exchange.failed = Some(Box::new(FailedServer { server: Arc::clone(&choice.server.name), cause }));
        self.note_freed(cx, exchange_key);
        Some(choice)
    }

    /// Gives up a connection attempt that took too long.
    pub(super) fn on_connect_timeout(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) {
        let is_handshaking = self.servers[server_key].stage == Stage::Handshaking;
        self.give_up_server(cx, client, server_key);
        if is_handshaking {
            self.fail_tls(cx, exchange_key, TlsFailure::Timeout);
        } else {
            self.fail(cx, exchange_key, Errno::TIMEDOUT);
        }
    }

    /// Handles an established connection: the PROXY header is sent first, then TLS begins.
    fn connected(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) {
        let exchange = &self.exchanges[exchange_key];
        let Some(choice) = &exchange.choice else { return };
        let server = &mut self.servers[server_key];
        server.pending.take().into_iter().for_each(|pending| pending.end(cx));
        server.transport.on_connected();
        if let Some(version) = exchange.backend().send_proxy {
            let ends = client.origin.ends(client.transport.socket());
            let (name, facts) = (client.name(), client.facts.as_deref());
            let header = preamble::introduce(version, &client.origin, ends, name, facts, cx.random.bits());
            server.transport.send_raw(&header, &mut self.buffers);
        }
        let Some(connector) = &server.connector else {
            return self.opened(cx, client, exchange_key, server_key);
        };
        let name = connector.name_of(&choice.server);
        match name.and_then(|name| Tls::client(&connector.config, name).ok()) {
            Some(tls) => {
                server.stage = Stage::Handshaking;
                server.transport.begin_tls(tls, &mut self.buffers);
            }
            None => {
                self.give_up_server(cx, client, server_key);
                self.fail_tls(cx, exchange_key, TlsFailure::Other);
            }
        }
    }

    fn shake_hands(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) {
        loop {
            let transport = &mut self.servers[server_key].transport;
            transport.flush(&mut self.buffers);
            if transport.is_established() {
                return self.opened(cx, client, exchange_key, server_key);
            }
            let received = transport.receive(&mut self.buffers);
            if transport.tls_failure().is_some() || transport.end().is_some() {
                let how = failure_with_server(transport.tls_failure());
                self.give_up_server(cx, client, server_key);
                return self.fail_tls(cx, exchange_key, how);
            }
            if received == Received::Nothing {
                return;
            }
        }
    }

    /// Records that the connection is open, after TLS if there is TLS: the exchange can send its bytes.
    fn opened(
        &mut self,
        cx: &mut Context,
        client: &Client,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) {
        self.servers[server_key].stage = Stage::Open;
        self.exchange_timers.clear(exchange_key);
        let exchange = &mut self.exchanges[exchange_key];
        exchange.reach = Reach::Open(server_key);
        let since = std::mem::replace(&mut exchange.since, cx.now);
        let Some(choice) = &exchange.choice else { return };
        let (entry, snapshot) = (&choice.server, exchange.backend().pool.load_full());
        let counters = entry.live.counters.of(cx.id);
        counters.connections.one();
        counters.connect_seconds.record_since(since, cx.now);
        note_success(cx, &snapshot.pool, choice);
        if exchange.http.is_none() {
            snapshot.remember(exchange.client, entry.id, cx.now);
            snapshot.observe(entry, cx.now.since(since), cx.now);
            client.note_server(cx, exchange.backend(), entry);
        }
    }

    /// Handles an event of the socket to a server, while an exchange uses the connection.
    pub(in crate::http) fn on_server_event(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        (exchange_key, server_key): (ExchangeKey, ServerConnectionKey),
        ready: Readiness,
    ) -> Progress {
        let server = &mut self.servers[server_key];
        server.transport.on_readable(ready);
        if server.stage != Stage::Connecting {
            server.transport.on_writable(ready);
            if server.stage == Stage::Handshaking {
                self.shake_hands(cx, client, exchange_key, server_key);
            }
            return Progress::Moved;
        }
        let failed = if ready.ended {
            sockopt::socket_error(server.transport.socket()).and_then(|error| error)
        } else {
            Ok(())
        };
        match failed {
            Ok(()) if ready.ended || ready.writable => self.connected(cx, client, exchange_key, server_key),
            Ok(()) => return Progress::Waits,
            Err(error) => {
                self.give_up_server(cx, client, server_key);
                self.fail(cx, exchange_key, error);
            }
        }
        Progress::Moved
    }
}

/// Opens a socket and begins to connect it; returns [`Stage::Open`] if the connection is established
/// immediately, and [`Stage::Connecting`] otherwise.
fn begin_connect(
    cx: &mut Context,
    client: &Client,
    options: &ServiceOptions,
    choice: &Choice,
) -> Result<(OwnedFd, Stage), Errno> {
    let (target, address) = (&choice.server.target, client.origin.client().ip());
    let socket = open_socket(target, options, address)?;
    limit_connection(cx, &client.service, (client.transport.socket(), address), (&socket, target))?;
    match io::connect::connect(&socket, target) {
        Ok(()) => Ok((socket, Stage::Open)),
        Err(Errno::INPROGRESS) => Ok((socket, Stage::Connecting)),
        Err(error) => Err(error),
    }
}
