//! Persistent connections with mname servers: one from each worker to each server. They carry datagrams in
//! frames, and heartbeats. A server is up as long as at least one connection is established.

use crate::context::Context;
use crate::context::keys::{DnsServiceKey, PersistentKey, QueryKey};
use crate::context::ready::Ready;
use crate::context::registry::{Readiness, Token};
use crate::context::report::Report;
use crate::dns::framed::{Framed, Received};
use crate::dns::query::{Cause, Taken, Waits};
use crate::dns::upstream::ids::ClientIds;
use crate::dns::{Dns, Origin, Party, Requester, ServerOf};
use crate::io::connect::{self, count_local_error, is_resource_exhaustion};

use crate::service::{Backend, Service};
use evener_core::snapshot::{Entry, ServerLive};
use evener_core::spec::{Dialect, Protocol};
use evener_core::wire::dns as wire;
use evener_core::wire::mname::{self, DATAGRAM_BYTES_MAX, Frame};
use evener_core::{ServerId, Target};
use rustix::io::Errno;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

/// Maximum time for a connection attempt and the hello of the server.
const HELLO: Duration = Duration::from_secs(30);
/// Time from a frame of the server to the next heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Maximum time for the server to respond to a heartbeat.
const RESPONSE: Duration = Duration::from_secs(15);
/// Delay after a connection attempt for which no descriptor or memory was left.
const POSTPONED: Duration = Duration::from_secs(1);
/// Maximum delay of the next connection attempt, in seconds.
const BACK_OFF_MAX: u64 = 33;
/// Number of unsent bytes beyond which the server counts as stuck.
const OUTBOX_MAX: usize = 65_536;
/// Maximum number of reads before other work continues.
const READS_MAX: usize = 8;

/// Stage of a persistent connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for the next connection attempt.
    Waiting,
    /// Waiting for the hello of the server.
    Hello,
    /// Established. With `is_probed`, the response to a heartbeat is outstanding.
    Up { is_probed: bool },
}

/// A persistent connection with a server.
pub(in crate::dns) struct Persistent {
    pool: Arc<str>,
    id: ServerId,
    target: Target,
    live: Arc<ServerLive>,
    stage: Stage,
    framed: Option<Framed>,
    ids: ClientIds,
    /// Consecutive failed connections.
    failures: u64,
    /// Number of the current connection.
    serial: u64,
    /// The current connection has carried a response.
    was_used: bool,
    dirty: bool,
}

/// Returns the delay of the next connection attempt: 0, 1, 3, 5 ... s.
fn back_off(failures: u64) -> Duration {
    Duration::from_secs(failures.saturating_mul(2).saturating_sub(1).min(BACK_OFF_MAX))
}

/// The name of a pool, and the ID of a server there.
type PoolServer = (Arc<str>, ServerId);

impl Persistent {
    fn new(pool: &Arc<str>, server: &Entry) -> Self {
        Self {
            pool: Arc::clone(pool),
            id: server.id,
            target: server.target.clone(),
            live: Arc::clone(&server.live),
            stage: Stage::Waiting,
            framed: None,
            ids: ClientIds::default(),
            failures: 0,
            serial: 0,
            was_used: false,
            dirty: false,
        }
    }

    fn server(&self) -> PoolServer {
        (Arc::clone(&self.pool), self.id)
    }

    /// Returns whether the connection belongs to this server at its present address. An earlier pool with the
    /// same name may have had another server with this ID.
    fn leads_to(&self, server: &Entry) -> bool {
        self.target == server.target && Arc::ptr_eq(&self.live, &server.live)
    }
}

/// One of the successive connections of a persistent connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dns) struct Session {
    at: PersistentKey,
    serial: u64,
}

/// Meaning of a frame.
#[derive(Clone, Copy, Debug)]
enum FrameKind {
    Hello,
    Heartbeat,
    Response(SocketAddrV4),
}

impl Dns {
    /// Requests maintenance of persistent connections, after a change of servers or listeners.
    pub(crate) fn note_change(&mut self) {
        self.is_changed = true;
    }

    /// Opens and drops persistent connections after a change of servers or listeners. `by_streams` are the
    /// services of this worker's listeners for connections.
    pub(crate) fn maintain<'a>(
        &mut self,
        cx: &mut Context,
        by_streams: impl Iterator<Item = &'a Arc<Service>>,
    ) {
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        let services = self.listening_services(by_streams);
        let mut wanted = HashMap::new();
        for &service in &services {
            want_servers_of(&self.services[service].service, &mut wanted);
        }
        let is_astray = |persistent: &Persistent| {
            wanted.get(&persistent.server()).is_none_or(|entry| !persistent.leads_to(entry))
        };
        self.persistents
            .keys(|persistent| is_astray(persistent))
            .into_iter()
            .for_each(|at| self.leave_persistent(cx, at));
        let mut present: HashMap<PoolServer, PersistentKey> =
            self.persistents.iter().map(|(at, persistent)| (persistent.server(), at)).collect();
        let mut new = Vec::new();
        for (server, entry) in wanted {
            present.entry(server).or_insert_with_key(|(pool, _)| {
                let at = self.persistents.insert(Box::new(Persistent::new(pool, &entry)));
                new.push(at);
                at
            });
        }
        self.index_persistents(&services, &present);
        new.into_iter().for_each(|at| self.connect_persistent(cx, at));
    }

    /// Returns the DNS services with listeners.
    fn listening_services<'a>(
        &mut self,
        by_streams: impl Iterator<Item = &'a Arc<Service>>,
    ) -> Vec<DnsServiceKey> {
        let by_streams = by_streams.filter(|service| service.live.protocol == Protocol::Dns);
        let mut services: Vec<DnsServiceKey> = by_streams.map(|service| self.service_key(service)).collect();
        services.extend(self.listeners.iter().map(|(_, listener)| listener.service()));
        services
    }

    /// Updates the index of persistent connections for the queries of these services.
    fn index_persistents(
        &mut self,
        services: &[DnsServiceKey],
        present: &HashMap<PoolServer, PersistentKey>,
    ) {
        // Services without listeners may still have clients, whose queries need the persistent connections.
        let is_there = |server: &ServerOf, at: &PersistentKey| {
            self.persistents.contains(*at) && self.services.contains(server.service)
        };
        self.persistent_of.retain(|server, at| is_there(server, at));
        for &service in services {
            let settings = self.services[service].service.settings.load_full();
            for party in [Party::Admitted, Party::Refused] {
                let Some(backend) = party.backend(&settings) else { continue };
                for_each_server(backend, |pool, entry| {
                    if let Some(&at) = present.get(&(Arc::clone(pool), entry.id)) {
                        self.persistent_of.insert(ServerOf { service, party, id: entry.id }, at);
                    }
                });
            }
        }
    }

    /// Drops the persistent connection with a server that was removed. Its outstanding queries are
    /// sent to other servers.
    fn leave_persistent(&mut self, cx: &mut Context, at: PersistentKey) {
        self.persistent_timers.clear(at);
        if let Some(persistent) = self.persistents.remove(at) {
            self.query_others(cx, at, persistent.ids.owners(), Cause::Local);
        }
    }

    fn query_others(
        &mut self,
        cx: &mut Context,
        at: PersistentKey,
        queries: Vec<(u16, QueryKey)>,
        cause: Cause,
    ) {
        for (id, key) in queries {
            if !self.is_current_attempt(cx, key, Waits::AtPersistent(at), id) {
                continue;
            }
            let query = &self.queries[key];
            let settings = self.services[query.requester().service].service.settings.load_full();
            self.again_unless_received(cx, &settings, key, cause);
        }
    }

    fn connect_persistent(&mut self, cx: &mut Context, at: PersistentKey) {
        let persistent = &mut self.persistents[at];
        let counters = persistent.live.counters.of(cx.id);
        let connected = connect::stream_socket(&persistent.target)
            .and_then(|socket| connect::connect(&socket, &persistent.target).map(|()| socket));
        let socket = match connected {
            Ok(socket) => socket,
            Err(error) if is_resource_exhaustion(error) => return self.postpone_persistent(cx, at, error),
            Err(error) => {
                let failures = &counters.connect_failures;
                (if error == Errno::CONNREFUSED { &failures.refused } else { &failures.error }).one();
                return self.fault_persistent(cx, at, &format!("connect: {}", std::io::Error::from(error)));
            }
        };
        counters.connections.one();
        if let Err(error) = cx.registry.register(&socket, Token::DnsPersistent(at)) {
            return self.fault_persistent(cx, at, &format!("connect: {}", std::io::Error::from(error)));
        }
        let mut framed = Framed::new(socket);
        let mut hello = Vec::new();
        mname::emit_client_hello(&mut hello);
        framed.queue(&hello);
        (persistent.framed, persistent.stage) = (Some(framed), Stage::Hello);
        persistent.serial += 1;
        persistent.was_used = false;
        self.persistent_timers.set(at, cx.now + HELLO);
        self.queue_persistent(at);
    }

    /// Sends a query to a server.
    pub(in crate::dns) fn give_to_persistent(
        &mut self,
        cx: &Context,
        key: QueryKey,
        server: &Arc<Entry>,
    ) -> Taken {
        let query = &mut self.queries[key];
        let Some(&at) = self.persistent_of.get(&query.requester().server(server.id)) else {
            return Taken::Unfit;
        };
        let persistent =
            self.persistents.get_mut(at).filter(|persistent| Arc::ptr_eq(&persistent.live, &server.live));
        let Some(Persistent { stage: Stage::Up { .. }, framed: Some(framed), ids, .. }) =
            persistent.map(|s| &mut **s)
        else {
            return Taken::Unfit;
        };
        // Frames are limited to IPv4 addresses, and in size.
        let Some(client) = v4_of(query.requester().client) else { return Taken::Unfit };
        if query.framed().len() > DATAGRAM_BYTES_MAX {
            return Taken::Unfit;
        }
        let counters = server.live.counters.of(cx.id);
        if framed.waiting() > OUTBOX_MAX {
            counters.drops.stuck.one();
            return Taken::Unfit;
        }
        let id = ids.keep(client, query.client_id(), key, &mut self.secrets);
        let Some(id) = id else { return Taken::Unfit };
        query.wait(Waits::AtPersistent(at), id);
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        mname::emit_inbound_udp(client, query.framed(), &mut frame);
        framed.queue(&frame);
        counters.datagrams_in.one();
        counters.bytes_in.add(query.framed().len() as u64);
        self.frame = frame;
        self.queue_persistent(at);
        Taken::Yes
    }

    /// Removes a query that no longer waits at this connection.
    pub(in crate::dns) fn withdraw_from_persistent(&mut self, at: PersistentKey, key: QueryKey, id: u16) {
        let query = &self.queries[key];
        if let (Some(persistent), Some(client)) =
            (self.persistents.get_mut(at), v4_of(query.requester().client))
        {
            persistent.ids.free(client, id);
        }
    }

    /// Handles an event of the socket.
    pub(crate) fn on_persistent_event(&mut self, at: PersistentKey, event: Readiness) {
        let Some(framed) = self.persistents.get_mut(at).and_then(|persistent| persistent.framed.as_mut())
        else {
            return;
        };
        if event.readable || event.ended {
            framed.set_readable();
        }
        self.queue_persistent(at);
    }

    /// Lists the connection to be handled after the present events.
    pub(crate) fn queue_persistent(&mut self, at: PersistentKey) {
        if let Some(persistent) = self.persistents.get_mut(at)
            && !std::mem::replace(&mut persistent.dirty, true)
        {
            self.persistents_dirty.push(at);
        }
    }

    /// Sends and reads.
    pub(in crate::dns) fn flush_persistent(&mut self, cx: &mut Context, at: PersistentKey) {
        let Some(persistent) = self.persistents.get_mut(at) else { return };
        persistent.dirty = false;
        if let Some(framed) = &mut persistent.framed
            && let Err(error) = framed.flush()
        {
            return self.fault_persistent(cx, at, &format!("send: {}", std::io::Error::from(error)));
        }
        for _ in 0..READS_MAX {
            let persistent = self.persistents.get_mut(at);
            let Some(framed) = persistent.and_then(|persistent| persistent.framed.as_mut()) else { return };
            if !framed.is_readable() {
                return;
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(crate::dns::READ_BYTES, 0);
            let received = framed.receive(&mut buffer);
            self.buffer = buffer;
            if let Err(reason) = self.take_frames(cx, at) {
                return self.fault_persistent(cx, at, &reason);
            }
            match received {
                Ok(Received::Some) => {}
                Ok(Received::Blocked) => return,
                Ok(Received::End) => return self.fault_persistent(cx, at, "it closed the connection"),
                Err(error) => {
                    return self.fault_persistent(
                        cx,
                        at,
                        &format!("receive: {}", std::io::Error::from(error)),
                    );
                }
            }
        }
        cx.ready.push(Ready::DnsPersistent(at));
    }

    /// Handles the complete frames that were received. Returns an error if a frame is faulty.
    fn take_frames(&mut self, cx: &mut Context, at: PersistentKey) -> Result<(), String> {
        let mut message = self.spare();
        let taken = loop {
            match self.take_frame(at, &mut message) {
                Ok(Some(kind)) => self.on_frame(cx, at, kind, &mut message),
                Ok(None) => break Ok(()),
                Err(reason) => break Err(reason),
            }
        };
        self.give_back(message);
        taken
    }

    /// Takes the next whole frame. The bytes of a response are put into `message`.
    fn take_frame(&mut self, at: PersistentKey, message: &mut Vec<u8>) -> Result<Option<FrameKind>, String> {
        let Some(persistent) = self.persistents.get_mut(at) else { return Ok(None) };
        let Some(framed) = &mut persistent.framed else { return Ok(None) };
        let parsed = mname::parse(framed.pending()).map_err(|fault| fault.to_string())?;
        let Some((frame, length)) = parsed else { return Ok(None) };
        let kind = match (persistent.stage, frame) {
            (Stage::Hello, Frame::Hello) => FrameKind::Hello,
            (Stage::Hello, _) => return Err("it sent something before its hello".into()),
            (_, Frame::Hello) => return Err("it sent two hellos".into()),
            (Stage::Up { is_probed: true }, Frame::Heartbeat) => FrameKind::Heartbeat,
            (_, Frame::Heartbeat) => return Err("it sent a heartbeat without a request".into()),
            (_, Frame::TcpOk) => return Err("it accepted a TCP session that is none".into()),
            (_, Frame::OutboundUdp { to, data }) => {
                message.clear();
                message.extend_from_slice(data);
                FrameKind::Response(to)
            }
        };
        framed.consume(length);
        Ok(Some(kind))
    }

    fn on_frame(&mut self, cx: &mut Context, at: PersistentKey, kind: FrameKind, message: &mut Vec<u8>) {
        match kind {
            FrameKind::Response(to) => return self.take_frame_response(cx, at, to, message),
            // Only a heartbeat resets the delays, so a server whose connections fail after the hello is retried
            // with delays.
            FrameKind::Heartbeat => self.persistents[at].failures = 0,
            FrameKind::Hello => self.persistents[at].live.counters.of(cx.id).persistent_connections.one(),
        }
        // The report is repeated with each heartbeat, in case an earlier report was lost.
        self.report_persistent(cx, at, None);
        self.persistents[at].stage = Stage::Up { is_probed: false };
        self.persistent_timers.set(at, cx.now + HEARTBEAT);
    }

    fn take_frame_response(
        &mut self,
        cx: &mut Context,
        at: PersistentKey,
        to: SocketAddrV4,
        message: &mut Vec<u8>,
    ) {
        let persistent = &mut self.persistents[at];
        let counters = persistent.live.counters.of(cx.id);
        let owner = persistent.ids.owner(to, wire::id(message)).filter(|key| {
            let query = &self.queries[*key];
            matches!(query.requester().origin, Origin::Datagram(_)) && query.is_response(message)
        });
        let Some(key) = owner else { return counters.responses_bad.one() };
        persistent.was_used = true;
        counters.datagrams_out.one();
        self.turn_to_attempt(key, Waits::AtPersistent(at), wire::id(message));
        let service = self.queries[key].requester().service;
        let settings = self.services[service].service.settings.load_full();
        self.pass_on(cx, &settings, key, message);
    }

    /// Reports that the connection is established, or its fault.
    fn report_persistent(&self, cx: &Context, at: PersistentKey, fault: Option<String>) {
        let persistent = &self.persistents[at];
        let (pool, target) = (persistent.pool.clone(), persistent.target.clone());
        cx.report(Report::Session { pool, server: persistent.id, target, worker: cx.id, fault });
    }

    /// Returns the established connection with a server, if any.
    pub(super) fn session_with(&self, requester: &Requester, server: &Entry) -> Option<Session> {
        let &at = self.persistent_of.get(&requester.server(server.id))?;
        let persistent =
            self.persistents.get(at).filter(|persistent| Arc::ptr_eq(&persistent.live, &server.live))?;
        let is_up = matches!(persistent.stage, Stage::Up { .. });
        is_up.then_some(Session { at, serial: persistent.serial })
    }

    /// Drops a connection, if it is still established.
    pub(super) fn end_session(&mut self, cx: &mut Context, session: Session, reason: &str) {
        let is_current = self.persistents.get(session.at).is_some_and(|persistent| {
            matches!(persistent.stage, Stage::Up { .. }) && persistent.serial == session.serial
        });
        if is_current {
            self.fault_persistent(cx, session.at, reason);
        }
    }

    /// Postpones a connection attempt that failed for a local reason, which is not a fault of the server.
    fn postpone_persistent(&mut self, cx: &Context, at: PersistentKey, error: Errno) {
        let Persistent { live, pool, id, .. } = &*self.persistents[at];
        count_local_error(cx, pool, *id, live, error);
        self.persistent_timers.set(at, cx.now + POSTPONED);
    }

    /// Drops a faulty connection. The next connection attempt begins immediately, later attempts with growing
    /// delays.
    fn fault_persistent(&mut self, cx: &mut Context, at: PersistentKey, reason: &str) {
        let persistent = &mut self.persistents[at];
        if matches!(persistent.stage, Stage::Up { .. }) {
            persistent.live.counters.of(cx.id).persistent_connection_faults.one();
        }
        (persistent.stage, persistent.framed) = (Stage::Waiting, None);
        let wait = back_off(persistent.failures);
        persistent.failures = persistent.failures.saturating_add(1);
        self.persistent_timers.set(at, cx.now + wait);
        let queries = persistent.ids.owners();
        let cause = if persistent.was_used { Cause::SessionLost } else { Cause::Refused };
        self.report_persistent(cx, at, Some(reason.to_owned()));
        self.query_others(cx, at, queries, cause);
    }

    /// Handles a deadline: for a connection attempt, a hello or a heartbeat.
    pub(in crate::dns) fn on_persistent_deadline(&mut self, cx: &mut Context, at: PersistentKey) {
        let Some(persistent) = self.persistents.get_mut(at) else { return };
        match persistent.stage {
            Stage::Waiting => self.connect_persistent(cx, at),
            Stage::Hello => self.fault_persistent(cx, at, "it did not say hello within 30 s"),
            Stage::Up { is_probed: true } => {
                self.fault_persistent(cx, at, "it gave no sign of life within 15 s");
            }
            Stage::Up { is_probed: false } => {
                let mut heartbeat = Vec::new();
                mname::emit_client_heartbeat(&mut heartbeat);
                persistent.framed.iter_mut().for_each(|framed| framed.queue(&heartbeat));
                persistent.stage = Stage::Up { is_probed: true };
                self.persistent_timers.set(at, cx.now + RESPONSE);
                self.queue_persistent(at);
            }
        }
    }
}

/// Returns the address of a client for a frame, which has room for IPv4 only.
pub(super) fn v4_of(client: SocketAddr) -> Option<SocketAddrV4> {
    match client.ip().to_canonical() {
        IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, client.port())),
        IpAddr::V6(_) => None,
    }
}

/// Adds the servers of a service that need persistent connections.
fn want_servers_of(service: &Service, wanted: &mut HashMap<PoolServer, Arc<Entry>>) {
    for backend in &service.settings.load().backends {
        for_each_server(backend, |pool, entry| {
            wanted.insert((Arc::clone(pool), entry.id), Arc::clone(entry));
        });
    }
}

/// Calls a function with each mname server of a pool.
fn for_each_server(backend: &Backend, mut each: impl FnMut(&Arc<str>, &Arc<Entry>)) {
    let snapshot = backend.pool.load();
    let servers = snapshot.servers().iter().filter(|entry| entry.dialect == Dialect::Mname);
    servers.for_each(|entry| each(&snapshot.pool, entry));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delays_of_connection_attempts_grow_up_to_a_maximum() {
        let waits: Vec<u64> = (0..20).map(|failures| back_off(failures).as_secs()).collect();
        assert_eq!(waits[..6], [0, 1, 3, 5, 7, 9]);
        assert_eq!((waits[17], waits[19]), (33, 33));
    }
}
