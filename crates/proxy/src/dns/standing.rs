//! The connections that stand with servers of mname: one of each worker with each server. They carry datagrams in frames,
//! and heartbeats. A server is up as long as one stands.

use super::Dns;
use super::framed::{Framed, Received};
use super::ids::ClientIds;
use super::query::{Cause, Origin, Taken, Waits};
use crate::context::Context;
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::context::report::Report;
use crate::io::connect::{is_want, tell_local};
use crate::io::listener;
use crate::service::Service;
use evener_core::snapshot::{Entry, ServerLive};
use evener_core::spec::{Dialect, Protocol};
use evener_core::wire::dns as wire;
use evener_core::wire::mname::{self, DATAGRAM_BYTES_MAX, Frame};
use evener_core::{ServerId, Target};
use mio::event::Event;
use rustix::io::Errno;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

/// Connect and hello are done within this.
const HELLO: Duration = Duration::from_secs(30);
/// So long after an answer the server is asked whether it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// It answers that within this.
const ANSWER: Duration = Duration::from_secs(15);
/// A connect for which we had no descriptor or memory is made this much later.
const POSTPONED: Duration = Duration::from_secs(1);
/// The longest wait before the next connect.
const BACK_OFF_MAX: u64 = 33;
/// While more waits to be sent the server counts as stuck.
const OUTBOX_MAX: usize = 65_536;
/// After so many reads others have their turn.
const READS_MAX: usize = 8;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The next connect is later.
    Waiting,
    /// The server has to say hello.
    Greeting,
    /// It stands; whether the server was asked for a sign of life, and has not given it yet.
    Up { asked: bool },
    /// The server left.
    Over,
}

/// A connection that stands with a server.
pub(super) struct Standing {
    pool: Arc<str>,
    id: ServerId,
    target: Target,
    live: Arc<ServerLive>,
    stage: Stage,
    framed: Option<Framed>,
    ids: ClientIds,
    /// Connects in a row that led to nothing.
    failures: u64,
    /// Numbers the connections.
    serial: u64,
    dirty: bool,
}

/// The wait before the next connect: 0, 1, 3, 5 ... s.
fn back_off(failures: u64) -> Duration {
    Duration::from_secs(failures.saturating_mul(2).saturating_sub(1).min(BACK_OFF_MAX))
}

/// What of a server lives on stands for it.
fn key(live: &Arc<ServerLive>) -> usize {
    Arc::as_ptr(live) as usize
}

/// What a frame means.
#[derive(Clone, Copy, Debug)]
enum Heard {
    Hello,
    Life,
    Answer(SocketAddrV4),
}

impl Dns {
    /// Servers or listeners came or went: persistent connections are looked at before the next events.
    pub(crate) fn look_again(&mut self) {
        self.looks_again = true;
    }

    /// Has persistent connections with the servers that are there, if servers or listeners came or went. `by_streams` are the
    /// services that this worker accepts connections for.
    pub(crate) fn maintain<'a>(
        &mut self,
        cx: &mut Context,
        by_streams: impl Iterator<Item = &'a Arc<Service>>,
    ) {
        if !std::mem::take(&mut self.looks_again) {
            return;
        }
        let wanted = self.wanted_persistents(by_streams);
        let astray = self.standings.iter().filter(|(_, standing)| {
            let entry = wanted.get(&key(&standing.live));
            standing.stage != Stage::Over && entry.is_none_or(|(_, entry)| entry.target != standing.target)
        });
        let astray: Vec<usize> = astray.map(|(at, _)| at).collect();
        astray.into_iter().for_each(|at| self.leave_persistent(cx, at));
        for (key, (pool, entry)) in wanted {
            if !self.standing_of.contains_key(&key) {
                let at = self.standings.insert(Box::new(Standing {
                    pool,
                    id: entry.id,
                    target: entry.target.clone(),
                    live: Arc::clone(&entry.live),
                    stage: Stage::Waiting,
                    framed: None,
                    ids: ClientIds::default(),
                    failures: 0,
                    serial: 0,
                    dirty: false,
                }));
                self.standing_of.insert(key, at);
                self.connect_persistent(cx, at);
            }
        }
    }

    /// The servers with which a connection has to stand: those of the services that this worker has listeners of.
    fn wanted_persistents<'a>(
        &self,
        by_streams: impl Iterator<Item = &'a Arc<Service>>,
    ) -> HashMap<usize, (Arc<str>, Arc<Entry>)> {
        let mut wanted = HashMap::new();
        for (_, listener) in &self.listeners {
            want_servers_of(&self.services[listener.service].service, &mut wanted);
        }
        by_streams.for_each(|service| want_servers_of(service, &mut wanted));
        wanted
    }

    /// The server is not there any more; whoever waits asks another one.
    fn leave_persistent(&mut self, cx: &mut Context, at: usize) {
        let standing = &mut self.standings[at];
        standing.stage = Stage::Over;
        standing.framed = None;
        self.standing_of.remove(&key(&self.standings[at].live));
        self.standing_timers.clear(at);
        self.ask_others(cx, at);
        self.standings.remove(at);
    }

    fn ask_others(&mut self, cx: &mut Context, at: usize) {
        for (id, slot) in self.standings[at].ids.owners() {
            if !self.is_current_attempt(cx, slot, Waits::AtStanding(at), id) {
                continue;
            }
            let query = &self.queries[slot];
            let settings = self.services[query.asker.service].service.settings.load_full();
            self.again_unless_received(cx, &settings, slot, Cause::Refused);
        }
    }

    fn connect_persistent(&mut self, cx: &mut Context, at: usize) {
        let standing = &mut self.standings[at];
        let counters = standing.live.counters.of(cx.id);
        let connected = listener::stream_socket(&standing.target)
            .and_then(|socket| listener::connect(&socket, &standing.target).map(|()| socket));
        let socket = match connected {
            Ok(socket) => socket,
            Err(error) if is_want(error) => return self.postpone_persistent(cx, at, error),
            Err(error) => {
                counters.connect_errors.one();
                if error == Errno::CONNREFUSED {
                    counters.connect_refused.one();
                }
                return self.fault_persistent(cx, at, &format!("connect: {}", std::io::Error::from(error)));
            }
        };
        counters.connections.one();
        if let Err(error) = cx.registry.register(&socket, Token::DnsStanding(at)) {
            return self.fault_persistent(cx, at, &format!("connect: {}", std::io::Error::from(error)));
        }
        let mut framed = Framed::new(socket);
        let mut hello = Vec::new();
        mname::emit_client_hello(&mut hello);
        framed.queue(&hello);
        (standing.framed, standing.stage) = (Some(framed), Stage::Greeting);
        standing.serial += 1;
        self.standing_timers.set(at, cx.now + HELLO);
        self.queue_persistent(at);
    }

    /// Gives a question to a server.
    pub(super) fn give_to_persistent(&mut self, cx: &Context, slot: usize, server: &Arc<Entry>) -> Taken {
        let query = &mut self.queries[slot];
        let Some(&at) = self.standing_of.get(&key(&server.live)) else { return Taken::Unfit };
        let standing = &mut self.standings[at];
        let (Stage::Up { .. }, Some(framed)) = (standing.stage, &mut standing.framed) else {
            return Taken::Unfit;
        };
        // A frame has room for an IPv4 address, and for so many bytes.
        let Some(client) = v4_of(query.asker.client) else { return Taken::Unfit };
        if query.framed().len() > DATAGRAM_BYTES_MAX {
            return Taken::Unfit;
        }
        let counters = server.live.counters.of(cx.id);
        if framed.waiting() > OUTBOX_MAX {
            counters.drop_stuck.one();
            return Taken::Unfit;
        }
        let id = standing.ids.keep(client, query.id, slot, &mut self.secrets);
        let Some(id) = id else { return Taken::Unfit };
        query.call(id);
        query.waits = Waits::AtStanding(at);
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

    /// A question does not wait here any more.
    pub(super) fn withdraw_from_persistent(&mut self, at: usize, slot: usize, id: u16) {
        let query = &self.queries[slot];
        if let (Some(standing), Some(client)) = (self.standings.get_mut(at), v4_of(query.asker.client)) {
            standing.ids.free(client, id);
        }
    }

    /// Something happened at the socket.
    pub(crate) fn on_persistent_event(&mut self, at: usize, event: &Event) {
        let Some(framed) = self.standings.get_mut(at).and_then(|standing| standing.framed.as_mut()) else {
            return;
        };
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            framed.readable = true;
        }
        self.queue_persistent(at);
    }

    /// The connection is looked at once the present events are done.
    pub(crate) fn queue_persistent(&mut self, at: usize) {
        if let Some(standing) = self.standings.get_mut(at)
            && !std::mem::replace(&mut standing.dirty, true)
        {
            self.standings_dirty.push(at);
        }
    }

    /// Sends what waits, and reads.
    pub(super) fn flush_persistent(&mut self, cx: &mut Context, at: usize) {
        let Some(standing) = self.standings.get_mut(at) else { return };
        standing.dirty = false;
        if let Some(framed) = &mut standing.framed
            && let Err(error) = framed.flush()
        {
            return self.fault_persistent(cx, at, &format!("send: {}", std::io::Error::from(error)));
        }
        for _ in 0..READS_MAX {
            let standing = self.standings.get_mut(at);
            let Some(framed) = standing.and_then(|standing| standing.framed.as_mut()) else { return };
            if !framed.readable {
                return;
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(super::READ_BYTES, 0);
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
        cx.ready.push(Ready::DnsStanding(at));
    }

    /// Takes the whole frames that came; `Err` says what is wrong with one.
    fn take_frames(&mut self, cx: &mut Context, at: usize) -> Result<(), String> {
        let mut message = self.spare();
        let taken = loop {
            match self.take_frame(at, &mut message) {
                Ok(Some(heard)) => self.on_message(cx, at, heard, &mut message),
                Ok(None) => break Ok(()),
                Err(reason) => break Err(reason),
            }
        };
        self.give_back(message);
        taken
    }

    /// Takes the next whole frame; an answer's bytes go to `message`.
    fn take_frame(&mut self, at: usize, message: &mut Vec<u8>) -> Result<Option<Heard>, String> {
        let Some(standing) = self.standings.get_mut(at) else { return Ok(None) };
        let Some(framed) = &mut standing.framed else { return Ok(None) };
        let parsed = mname::parse(framed.pending()).map_err(|fault| fault.to_string())?;
        let Some((frame, length)) = parsed else { return Ok(None) };
        let heard = match (standing.stage, frame) {
            (Stage::Greeting, Frame::Hello) => Heard::Hello,
            (Stage::Greeting, _) => return Err("it sent something before its hello".into()),
            (_, Frame::Hello) => return Err("it said hello twice".into()),
            (Stage::Up { asked: true }, Frame::Heartbeat) => Heard::Life,
            (_, Frame::Heartbeat) => return Err("it sent a heartbeat that nobody asked for".into()),
            (_, Frame::TcpOk) => return Err("it accepted a TCP session that is none".into()),
            (_, Frame::OutboundUdp { to, data }) => {
                message.clear();
                message.extend_from_slice(data);
                Heard::Answer(to)
            }
        };
        framed.consume(length);
        Ok(Some(heard))
    }

    fn on_message(&mut self, cx: &mut Context, at: usize, heard: Heard, message: &mut Vec<u8>) {
        match heard {
            Heard::Answer(to) => return self.take_frame_response(cx, at, to, message),
            // One that says hello and then errs is not tried without end at once.
            Heard::Life => self.standings[at].failures = 0,
            Heard::Hello => self.standings[at].live.counters.of(cx.id).sessions.one(),
        }
        // Told again with each sign of life: what is lost on the way is made good.
        self.report_persistent(cx, at, None);
        self.standings[at].stage = Stage::Up { asked: false };
        self.standing_timers.set(at, cx.now + HEARTBEAT);
    }

    fn take_frame_response(&mut self, cx: &mut Context, at: usize, to: SocketAddrV4, message: &mut Vec<u8>) {
        let standing = &mut self.standings[at];
        let counters = standing.live.counters.of(cx.id);
        let owner = standing.ids.owner(to, wire::id(message)).filter(|slot| {
            let query = &self.queries[*slot];
            matches!(query.asker.origin, Origin::Datagram(_)) && query.is_answered_by(message)
        });
        let Some(slot) = owner else { return counters.answers_bad.one() };
        counters.datagrams_out.one();
        self.turn_to_attempt(slot, Waits::AtStanding(at), wire::id(message));
        let service = self.queries[slot].asker.service;
        let settings = self.services[service].service.settings.load_full();
        self.pass_on(cx, &settings, slot, message);
    }

    /// Tells the supervisor that the connection stands, or why it does not.
    fn report_persistent(&self, cx: &Context, at: usize, fault: Option<String>) {
        let standing = &self.standings[at];
        let (pool, target) = (standing.pool.clone(), standing.target.clone());
        (cx.report)(Report::Session { pool, server: standing.id, target, worker: cx.id, fault });
    }

    /// The number of the connection that stands with a server, if one does.
    pub(super) fn persistent_serial(&self, live: &Arc<ServerLive>) -> Option<u64> {
        let standing = &self.standings[*self.standing_of.get(&key(live))?];
        matches!(standing.stage, Stage::Up { .. }).then_some(standing.serial)
    }

    /// The connection with this number is to end, if it still stands.
    pub(super) fn fault_persistent_of(
        &mut self,
        cx: &mut Context,
        live: &Arc<ServerLive>,
        serial: u64,
        reason: &str,
    ) {
        if self.persistent_serial(live) == Some(serial)
            && let Some(&at) = self.standing_of.get(&key(live))
        {
            self.fault_persistent(cx, at, reason);
        }
    }

    /// Something is wrong: the connection is dropped and made anew, the next time at once, later after a while.
    /// A connect that could not be made for a reason of our own says nothing of the server: it is made later.
    fn postpone_persistent(&mut self, cx: &Context, at: usize, error: Errno) {
        let Standing { live, pool, id, .. } = &*self.standings[at];
        let counters = live.counters.of(cx.id);
        counters.connect_errors.one();
        counters.local_errors.one_shared();
        tell_local(cx, pool, *id, error);
        self.standing_timers.set(at, cx.now + POSTPONED);
    }

    fn fault_persistent(&mut self, cx: &mut Context, at: usize, reason: &str) {
        let standing = &mut self.standings[at];
        if matches!(standing.stage, Stage::Up { .. }) {
            standing.live.counters.of(cx.id).session_faults.one();
        }
        (standing.stage, standing.framed) = (Stage::Waiting, None);
        let wait = back_off(standing.failures);
        standing.failures = standing.failures.saturating_add(1);
        self.standing_timers.set(at, cx.now + wait);
        self.report_persistent(cx, at, Some(reason.to_owned()));
        self.ask_others(cx, at);
    }

    /// It is time: for a connect, a hello, a sign of life.
    pub(super) fn on_persistent_deadline(&mut self, cx: &mut Context, at: usize) {
        let Some(standing) = self.standings.get_mut(at) else { return };
        match standing.stage {
            Stage::Over => {}
            Stage::Waiting => self.connect_persistent(cx, at),
            Stage::Greeting => self.fault_persistent(cx, at, "it did not say hello within 30 s"),
            Stage::Up { asked: true } => self.fault_persistent(cx, at, "it gave no sign of life within 15 s"),
            Stage::Up { asked: false } => {
                let mut heartbeat = Vec::new();
                mname::emit_client_heartbeat(&mut heartbeat);
                standing.framed.iter_mut().for_each(|framed| framed.queue(&heartbeat));
                standing.stage = Stage::Up { asked: true };
                self.standing_timers.set(at, cx.now + ANSWER);
                self.queue_persistent(at);
            }
        }
    }
}

/// A client's address as a frame has it: there is room for IPv4 only.
pub(super) fn v4_of(client: SocketAddr) -> Option<SocketAddrV4> {
    match client.ip().to_canonical() {
        IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, client.port())),
        IpAddr::V6(_) => None,
    }
}

fn want_servers_of(service: &Service, wanted: &mut HashMap<usize, (Arc<str>, Arc<Entry>)>) {
    if service.protocol != Protocol::Dns {
        return;
    }
    for backend in &service.settings.load().backends {
        let snapshot = backend.pool.load();
        for entry in snapshot.servers().iter().filter(|entry| entry.dialect == Dialect::Mname) {
            wanted.insert(key(&entry.live), (snapshot.pool.clone(), Arc::clone(entry)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_between_connects_grow_up_to_a_bound() {
        let waits: Vec<u64> = (0..20).map(|failures| back_off(failures).as_secs()).collect();
        assert_eq!(waits[..6], [0, 1, 3, 5, 7, 9]);
        assert_eq!((waits[17], waits[19]), (33, 33));
    }
}
