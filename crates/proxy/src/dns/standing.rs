//! The connections that stand with servers of mname: one of each worker with each server. They carry datagrams in frames,
//! and heartbeats. A server is up as long as one stands.

use super::framed::{Framed, Received};
use super::ids::ClientIds;
use super::query::{self, Cause, Origin, Taken, Waits};
use super::{attempt, reply};
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::context::report::Report;
use crate::io::connect::{is_want, tell_local};
use crate::io::listener;
use crate::worker::Worker;
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

/// Servers came or went: connections stand with those that are there.
pub(crate) fn tend(worker: &mut Worker) {
    let wanted = wanted(worker);
    let dns = &worker.dns;
    let astray = dns.standings.iter().filter(|(_, standing)| {
        let entry = wanted.get(&key(&standing.live));
        standing.stage != Stage::Over && entry.is_none_or(|(_, entry)| entry.target != standing.target)
    });
    let astray: Vec<usize> = astray.map(|(at, _)| at).collect();
    astray.into_iter().for_each(|at| leave(worker, at));
    for (key, (pool, entry)) in wanted {
        if !worker.dns.standing_of.contains_key(&key) {
            let at = worker.dns.standings.insert(Box::new(Standing {
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
            worker.dns.standing_of.insert(key, at);
            connect(worker, at);
        }
    }
}

/// The servers with which a connection has to stand: those of the services that this worker has listeners of.
fn wanted(worker: &Worker) -> HashMap<usize, (Arc<str>, Arc<Entry>)> {
    let by_datagrams =
        worker.dns.listeners.iter().map(|(_, listener)| &worker.dns.services[listener.service].service);
    let by_streams = worker.tcp.services();
    let mut wanted = HashMap::new();
    for service in by_datagrams.chain(by_streams).filter(|service| service.protocol == Protocol::Dns) {
        for backend in &service.settings.load().backends {
            let snapshot = backend.pool.load();
            for entry in snapshot.servers().iter().filter(|entry| entry.dialect == Dialect::Mname) {
                wanted.insert(key(&entry.live), (snapshot.pool.clone(), Arc::clone(entry)));
            }
        }
    }
    wanted
}

/// The server is not there any more; whoever waits asks another one.
fn leave(worker: &mut Worker, at: usize) {
    let standing = &mut worker.dns.standings[at];
    standing.stage = Stage::Over;
    standing.framed = None;
    worker.dns.standing_of.remove(&key(&worker.dns.standings[at].live));
    worker.dns.standing_timers.clear(at);
    ask_others(worker, at);
    worker.dns.standings.remove(at);
}

fn ask_others(worker: &mut Worker, at: usize) {
    for (id, slot) in worker.dns.standings[at].ids.owners() {
        if !attempt::is_current(worker, slot, Waits::AtStanding(at), id) {
            continue;
        }
        let query = &worker.dns.queries[slot];
        let settings = worker.dns.services[query.asker.service].service.settings.load_full();
        query::again_unless_received(worker, &settings, slot, Cause::Refused);
    }
}

fn connect(worker: &mut Worker, at: usize) {
    let standing = &mut worker.dns.standings[at];
    let counters = standing.live.counters.of(worker.cx.id);
    let connected = listener::stream_socket(&standing.target)
        .and_then(|socket| listener::connect(&socket, &standing.target).map(|()| socket));
    let socket = match connected {
        Ok(socket) => socket,
        Err(error) if is_want(error) => return postpone(worker, at, error),
        Err(error) => {
            counters.connect_errors.one();
            if error == Errno::CONNREFUSED {
                counters.connect_refused.one();
            }
            return fault(worker, at, &format!("connect: {}", std::io::Error::from(error)));
        }
    };
    counters.connections.one();
    if let Err(error) = worker.cx.registry.register(&socket, Token::DnsStanding(at)) {
        return fault(worker, at, &format!("connect: {}", std::io::Error::from(error)));
    }
    let mut framed = Framed::new(socket);
    let mut hello = Vec::new();
    mname::emit_client_hello(&mut hello);
    framed.queue(&hello);
    (standing.framed, standing.stage) = (Some(framed), Stage::Greeting);
    standing.serial += 1;
    worker.dns.standing_timers.set(at, worker.cx.now + HELLO);
    queue(worker, at);
}

/// Gives a question to a server.
pub(super) fn give(worker: &mut Worker, slot: usize, server: &Arc<Entry>) -> Taken {
    let query = &mut worker.dns.queries[slot];
    let Some(&at) = worker.dns.standing_of.get(&key(&server.live)) else { return Taken::Unfit };
    let standing = &mut worker.dns.standings[at];
    let (Stage::Up { .. }, Some(framed)) = (standing.stage, &mut standing.framed) else {
        return Taken::Unfit;
    };
    // A frame has room for an IPv4 address, and for so many bytes.
    let Some(client) = v4_of(query.asker.client) else { return Taken::Unfit };
    if query.framed().len() > DATAGRAM_BYTES_MAX {
        return Taken::Unfit;
    }
    let counters = server.live.counters.of(worker.cx.id);
    if framed.waiting() > OUTBOX_MAX {
        counters.drop_stuck.one();
        return Taken::Unfit;
    }
    let id = standing.ids.keep(client, query.id, slot, &mut worker.dns.secrets);
    let Some(id) = id else { return Taken::Unfit };
    query.call(id);
    query.waits = Waits::AtStanding(at);
    let mut frame = std::mem::take(&mut worker.dns.frame);
    frame.clear();
    mname::emit_inbound_udp(client, query.framed(), &mut frame);
    framed.queue(&frame);
    counters.datagrams_in.one();
    counters.bytes_in.add(query.framed().len() as u64);
    worker.dns.frame = frame;
    queue(worker, at);
    Taken::Yes
}

/// A question does not wait here any more.
pub(super) fn withdraw(worker: &mut Worker, at: usize, slot: usize, id: u16) {
    let query = &worker.dns.queries[slot];
    if let (Some(standing), Some(client)) = (worker.dns.standings.get_mut(at), v4_of(query.asker.client)) {
        standing.ids.free(client, id);
    }
}

/// A client's address as a frame has it: there is room for IPv4 only.
pub(super) fn v4_of(client: SocketAddr) -> Option<SocketAddrV4> {
    match client.ip().to_canonical() {
        IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, client.port())),
        IpAddr::V6(_) => None,
    }
}

/// Something happened at the socket.
pub(crate) fn on_standing_event(worker: &mut Worker, at: usize, event: &Event) {
    let Some(framed) = worker.dns.standings.get_mut(at).and_then(|standing| standing.framed.as_mut()) else {
        return;
    };
    if event.is_readable() || event.is_read_closed() || event.is_error() {
        framed.readable = true;
    }
    queue(worker, at);
}

/// The connection is looked at once the present events are done.
pub(crate) fn queue(worker: &mut Worker, at: usize) {
    if let Some(standing) = worker.dns.standings.get_mut(at)
        && !std::mem::replace(&mut standing.dirty, true)
    {
        worker.dns.standings_dirty.push(at);
    }
}

/// Sends what waits, and reads.
pub(super) fn flush(worker: &mut Worker, at: usize) {
    let Some(standing) = worker.dns.standings.get_mut(at) else { return };
    standing.dirty = false;
    if let Some(framed) = &mut standing.framed
        && let Err(error) = framed.flush()
    {
        return fault(worker, at, &format!("send: {}", std::io::Error::from(error)));
    }
    for _ in 0..READS_MAX {
        let standing = worker.dns.standings.get_mut(at);
        let Some(framed) = standing.and_then(|standing| standing.framed.as_mut()) else { return };
        if !framed.readable {
            return;
        }
        let mut buffer = std::mem::take(&mut worker.dns.buffer);
        buffer.resize(super::READ_BYTES, 0);
        let received = framed.receive(&mut buffer);
        worker.dns.buffer = buffer;
        if let Err(reason) = take_frames(worker, at) {
            return fault(worker, at, &reason);
        }
        match received {
            Ok(Received::Some) => {}
            Ok(Received::Blocked) => return,
            Ok(Received::End) => return fault(worker, at, "it closed the connection"),
            Err(error) => return fault(worker, at, &format!("receive: {}", std::io::Error::from(error))),
        }
    }
    worker.cx.ready.push(Ready::DnsStanding(at));
}

/// Takes the whole frames that came; `Err` says what is wrong with one.
fn take_frames(worker: &mut Worker, at: usize) -> Result<(), String> {
    let mut message = worker.dns.spare();
    let taken = loop {
        match take_frame(worker, at, &mut message) {
            Ok(Some(heard)) => on_heard(worker, at, heard, &mut message),
            Ok(None) => break Ok(()),
            Err(reason) => break Err(reason),
        }
    };
    worker.dns.give_back(message);
    taken
}

/// What a frame means.
#[derive(Clone, Copy, Debug)]
enum Heard {
    Hello,
    Life,
    Answer(SocketAddrV4),
}

/// Takes the next whole frame; an answer's bytes go to `message`.
fn take_frame(worker: &mut Worker, at: usize, message: &mut Vec<u8>) -> Result<Option<Heard>, String> {
    let Some(standing) = worker.dns.standings.get_mut(at) else { return Ok(None) };
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

fn on_heard(worker: &mut Worker, at: usize, heard: Heard, message: &mut Vec<u8>) {
    match heard {
        Heard::Answer(to) => return take_answer(worker, at, to, message),
        // One that says hello and then errs is not tried without end at once.
        Heard::Life => worker.dns.standings[at].failures = 0,
        Heard::Hello => worker.dns.standings[at].live.counters.of(worker.cx.id).sessions.one(),
    }
    // Told again with each sign of life: what is lost on the way is made good.
    tell(worker, at, None);
    worker.dns.standings[at].stage = Stage::Up { asked: false };
    worker.dns.standing_timers.set(at, worker.cx.now + HEARTBEAT);
}

fn take_answer(worker: &mut Worker, at: usize, to: SocketAddrV4, message: &mut Vec<u8>) {
    let standing = &mut worker.dns.standings[at];
    let counters = standing.live.counters.of(worker.cx.id);
    let owner = standing.ids.owner(to, wire::id(message)).filter(|slot| {
        let query = &worker.dns.queries[*slot];
        matches!(query.asker.origin, Origin::Datagram(_)) && reply::is_answered_by(query, message)
    });
    let Some(slot) = owner else { return counters.answers_bad.one() };
    counters.datagrams_out.one();
    attempt::turn_to(worker, slot, Waits::AtStanding(at), wire::id(message));
    let service = worker.dns.queries[slot].asker.service;
    let settings = worker.dns.services[service].service.settings.load_full();
    reply::pass_on(worker, &settings, slot, message);
}

/// Tells the supervisor that the connection stands, or why it does not.
fn tell(worker: &Worker, at: usize, fault: Option<String>) {
    let standing = &worker.dns.standings[at];
    let (pool, target) = (standing.pool.clone(), standing.target.clone());
    (worker.cx.report)(Report::Session { pool, server: standing.id, target, worker: worker.cx.id, fault });
}

/// The number of the connection that stands with a server, if one does.
pub(super) fn serial_of(worker: &Worker, live: &Arc<ServerLive>) -> Option<u64> {
    let standing = &worker.dns.standings[*worker.dns.standing_of.get(&key(live))?];
    matches!(standing.stage, Stage::Up { .. }).then_some(standing.serial)
}

/// The connection with this number is to end, if it still stands.
pub(super) fn fault_of(worker: &mut Worker, live: &Arc<ServerLive>, serial: u64, reason: &str) {
    if serial_of(worker, live) == Some(serial)
        && let Some(&at) = worker.dns.standing_of.get(&key(live))
    {
        fault(worker, at, reason);
    }
}

/// Something is wrong: the connection is dropped and made anew, the next time at once, later after a while.
/// A connect that could not be made for a reason of our own says nothing of the server: it is made later.
fn postpone(worker: &mut Worker, at: usize, error: Errno) {
    let Standing { live, pool, id, .. } = &*worker.dns.standings[at];
    let counters = live.counters.of(worker.cx.id);
    counters.connect_errors.one();
    counters.local_errors.one_shared();
    tell_local(&worker.cx, pool, *id, error);
    worker.dns.standing_timers.set(at, worker.cx.now + POSTPONED);
}

fn fault(worker: &mut Worker, at: usize, reason: &str) {
    let standing = &mut worker.dns.standings[at];
    if matches!(standing.stage, Stage::Up { .. }) {
        standing.live.counters.of(worker.cx.id).session_faults.one();
    }
    (standing.stage, standing.framed) = (Stage::Waiting, None);
    let wait = back_off(standing.failures);
    standing.failures = standing.failures.saturating_add(1);
    worker.dns.standing_timers.set(at, worker.cx.now + wait);
    tell(worker, at, Some(reason.to_owned()));
    ask_others(worker, at);
}

/// It is time: for a connect, a hello, a sign of life.
pub(super) fn on_deadline(worker: &mut Worker, at: usize) {
    let Some(standing) = worker.dns.standings.get_mut(at) else { return };
    match standing.stage {
        Stage::Over => {}
        Stage::Waiting => connect(worker, at),
        Stage::Greeting => fault(worker, at, "it did not say hello within 30 s"),
        Stage::Up { asked: true } => fault(worker, at, "it gave no sign of life within 15 s"),
        Stage::Up { asked: false } => {
            let mut heartbeat = Vec::new();
            mname::emit_client_heartbeat(&mut heartbeat);
            standing.framed.iter_mut().for_each(|framed| framed.queue(&heartbeat));
            standing.stage = Stage::Up { asked: true };
            worker.dns.standing_timers.set(at, worker.cx.now + ANSWER);
            queue(worker, at);
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
