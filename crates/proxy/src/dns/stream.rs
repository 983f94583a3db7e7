//! Streams to servers. Clients share a few to each server, with many questions under way on each. Who has to be told of to
//! the server (PROXY, mname), and who transfers a zone, gets one that ends with its own connection.

use super::framed::{Framed, Received};
use super::ids::Ids;
use super::query::{self, Cause, Query, Taken, Waits};
use super::standing::v4_of;
use super::{attempt, client, reply, sockets, standing, upstream};
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::context::report::Report;
use crate::io::connect::{count_failure, is_ours, open_socket};
use crate::io::listener;
use crate::service::Settings;
use crate::service::preamble;
use crate::worker::Worker;
use evener_core::snapshot::Entry;
use evener_core::spec::{Dialect, Transport};
use evener_core::wire::dns as wire;
use evener_core::wire::mname::{self, Frame};
use evener_core::{Target, Time};
use mio::event::Event;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::sync::Arc;
use std::time::Duration;

/// A stream that so much waits on gets no further questions.
const OUTBOX_MAX: usize = 262_144;
/// After so many reads others have their turn.
const READS_MAX: usize = 8;
/// A shared stream on which nobody waits is closed after this (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// A client has so many streams of its own at most, beside those of transfers.
const OWN_MAX: usize = 8;
/// A server that sends so many messages in a row that nobody waits for is not heard any more.
const BAD_MAX: u32 = 1024;
/// So often a question may meet a connection that its server ends.
const CUT_SHORT_MAX: u32 = 8;
/// A server of mname accepts a session of TCP within this.
const ACCEPT: Duration = Duration::from_secs(10);

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    /// The server has to say that it takes the session (mname).
    Accepting,
    Open,
    Over,
}

/// Whose a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Everybody's.
    All,
    /// That of the client at this place; the number tells it from one that has the place later.
    Client { index: usize, number: u32 },
    /// The same, for one transfer.
    Transfer { index: usize, number: u32 },
}

/// A stream to a server.
pub(super) struct Stream {
    pub(super) upstream: usize,
    server: Arc<Entry>,
    pool: Arc<str>,
    framed: Framed,
    pub(super) ids: Ids,
    owner: Owner,
    stage: Stage,
    /// Whether anything was answered on it.
    answered: bool,
    active_at: Time,
    /// When anything came last.
    heard_at: Time,
    /// Messages in a row that nobody waited for.
    bad: u32,
    /// It takes no more questions, and ends when nobody waits there any more.
    is_given_up: bool,
    /// When its client went on to take what it has, after it had not.
    resumed_at: Option<Time>,
    /// The connection that stood with its server (mname) when it began.
    session: Option<u64>,
    dirty: bool,
}

/// Gives the question of the client at this place to a server.
pub(super) fn give(
    worker: &mut Worker,
    settings: &Settings,
    slot: usize,
    (client, number): (usize, u32),
    server: &Arc<Entry>,
) -> Taken {
    let query = &worker.dns.queries[slot];
    if server.dialect == Dialect::Mname && v4_of(query.asker.client).is_none() {
        return Taken::Unfit;
    }
    if client::find(worker, client, number).is_none() {
        return Taken::Unfit;
    }
    let query = &worker.dns.queries[slot];
    let told = query.asker.is_told_of(settings);
    let owner = if query.view.is_transfer() {
        Owner::Transfer { index: client, number }
    } else if told || server.dialect == Dialect::Mname {
        Owner::Client { index: client, number }
    } else {
        Owner::All
    };
    let service = query.asker.service;
    let upstream = upstream::find(worker, service, server);
    worker.dns.upstreams[upstream].used_at = worker.cx.now;
    let index = match find(worker, settings, upstream, owner) {
        Some(index) => index,
        None if !may_open(worker, settings, upstream, owner) => return Taken::Unfit,
        None => match open(worker, settings, slot, upstream, server, owner) {
            Ok(index) => index,
            // The queue of a unix socket is full for a moment.
            Err(Errno::AGAIN) if matches!(server.target, Target::Unix(_)) => return Taken::Unfit,
            Err(error) => return on_unopened(worker, settings, slot, server, error),
        },
    };
    let (stream, query) = (&mut worker.dns.streams[index], &mut worker.dns.queries[slot]);
    let id = match owner {
        Owner::All => stream.ids.give(slot, &mut worker.dns.secrets),
        Owner::Client { .. } | Owner::Transfer { .. } => {
            stream.ids.keep(query.id, slot, &mut worker.dns.secrets)
        }
    };
    let Some(id) = id else { return Taken::Unfit };
    query.call(id);
    query.waits = Waits::AtStream(index);
    stream.framed.queue_message(query.framed());
    let bytes = query.framed().len() as u64 + 2;
    stream.active_at = worker.cx.now;
    server.live.counters.of(worker.cx.id).bytes_in.add(bytes);
    queue(worker, index);
    Taken::Yes
}

/// A stream that is there already and takes one more question.
fn find(worker: &Worker, settings: &Settings, upstream: usize, owner: Owner) -> Option<usize> {
    let dns = &worker.dns;
    let takes = |index: &usize| {
        let stream = dns.streams.get(*index);
        stream.is_some_and(|stream| {
            let is_meant = stream.owner == owner && stream.upstream == upstream;
            let is_open = !stream.is_given_up && stream.stage != Stage::Over;
            is_meant && is_open && stream.framed.waiting() < OUTBOX_MAX
        })
    };
    match owner {
        Owner::Transfer { .. } => None,
        Owner::Client { index, .. } => dns.clients.get(index)?.streams.iter().copied().find(takes),
        Owner::All => {
            let streams = &dns.upstreams[upstream].streams;
            let found = streams.iter().copied().filter(takes).min_by_key(|at| dns.streams[*at].ids.len())?;
            let is_free = dns.streams[found].ids.is_empty();
            (is_free || !may_open(worker, settings, upstream, owner)).then_some(found)
        }
    }
}

/// Whether there may be one more.
fn may_open(worker: &Worker, settings: &Settings, upstream: usize, owner: Owner) -> bool {
    match owner {
        Owner::All => shared(worker, upstream) < upstream::width(settings),
        Owner::Client { index, .. } => worker.dns.clients.get(index).is_some_and(|client| {
            let own = client
                .streams
                .iter()
                .filter(|at| worker.dns.streams.get(**at).is_some_and(|stream| stream.owner == owner));
            own.count() < OWN_MAX
        }),
        // The turns of its client and the tries of its query bound them.
        Owner::Transfer { .. } => true,
    }
}

/// How many streams to a server take questions. One that was given up ends when the time of those who wait there is out, so
/// there are few of them.
fn shared(worker: &Worker, upstream: usize) -> usize {
    let streams = worker.dns.upstreams[upstream].streams.iter();
    streams.filter(|at| worker.dns.streams.get(**at).is_some_and(|stream| !stream.is_given_up)).count()
}

fn on_unopened(worker: &Worker, settings: &Settings, slot: usize, server: &Entry, error: Errno) -> Taken {
    if let Some(backend) = worker.dns.queries[slot].asker.backend(settings) {
        note_refusal(worker, backend.pool.load().pool.clone(), server, error);
    }
    if is_ours(error) { sockets::no_room(error) } else { Taken::Failed }
}

/// Opens a stream.
fn open(
    worker: &mut Worker,
    settings: &Settings,
    slot: usize,
    upstream: usize,
    server: &Arc<Entry>,
    owner: Owner,
) -> Result<usize, Errno> {
    let asker = worker.dns.queries[slot].asker;
    let backend = asker.backend(settings).ok_or(Errno::ADDRNOTAVAIL)?;
    let pool = backend.pool.load().pool.clone();
    let socket = open_socket(&server.target, &settings.options, asker.client.ip())?;
    let is_connected = match listener::connect(&socket, &server.target) {
        Ok(()) => true,
        Err(Errno::INPROGRESS) => false,
        Err(error) => return Err(error),
    };
    let (mut framed, name) = (Framed::new(socket), worker.cx.random.bits());
    if let (Owner::Client { index, .. } | Owner::Transfer { index, .. }, Some(version)) =
        (owner, backend.send_proxy.filter(|_| server.dialect == Dialect::Plain))
        && let Some((told, socket)) = client::told(worker, index)
    {
        let ends = told.ends(socket);
        framed.queue(&preamble::introduce(version, told, ends, None, None, name));
    }
    if server.dialect == Dialect::Mname
        && let Some(source) = v4_of(asker.client)
    {
        let mut first = Vec::new();
        mname::emit_inbound_tcp(source, &mut first);
        framed.queue(&first);
        // The server takes the session before it hears anything of it.
        framed.hold();
    }
    let (server, live, active_at) = (Arc::clone(server), Arc::clone(&server.live), worker.cx.now);
    let index = worker.dns.streams.insert(Box::new(Stream {
        upstream,
        server,
        pool,
        framed,
        ids: Ids::default(),
        owner,
        stage: Stage::Connecting,
        answered: false,
        active_at,
        heard_at: Time::ZERO,
        bad: 0,
        is_given_up: false,
        resumed_at: None,
        session: standing::serial_of(worker, &live),
        dirty: false,
    }));
    if let Err(error) =
        worker.cx.registry.register(&worker.dns.streams[index].framed.socket, Token::DnsStream(index))
    {
        worker.dns.streams.remove(index);
        return Err(error);
    }
    match owner {
        Owner::All => worker.dns.upstreams[upstream].streams.push(index),
        Owner::Client { index: client, .. } | Owner::Transfer { index: client, .. } => {
            worker.dns.clients[client].streams.push(index);
        }
    }
    worker.dns.stream_timers.set(index, worker.cx.now + settings.options.connect_timeout);
    if is_connected {
        connected(worker, index);
    }
    Ok(index)
}

/// Finds out whether a server that refuses datagrams speaks TCP; false when it is known at once that it does not.
pub(super) fn probe(
    worker: &mut Worker,
    settings: &Settings,
    slot: usize,
    upstream: usize,
    server: &Arc<Entry>,
) -> bool {
    // One that is there connects still.
    let is_there = worker.dns.upstreams.get(upstream).is_none_or(|upstream| !upstream.streams.is_empty());
    is_there || open(worker, settings, slot, upstream, server, Owner::All).is_ok()
}

fn connected(worker: &mut Worker, index: usize) {
    let stream = &mut worker.dns.streams[index];
    stream.server.live.counters.of(worker.cx.id).connections.one();
    stream.server.live.transports.answered(Transport::Stream, worker.cx.now);
    let (stage, time) = match stream.server.dialect {
        Dialect::Plain => (Stage::Open, IDLE),
        Dialect::Mname => (Stage::Accepting, ACCEPT),
    };
    stream.stage = stage;
    worker.dns.stream_timers.set(index, worker.cx.now + time);
}

/// Something happened at a stream's socket.
pub(crate) fn on_stream_event(worker: &mut Worker, index: usize, event: &Event) {
    let Some(stream) = worker.dns.streams.get_mut(index) else { return };
    if event.is_readable() || event.is_read_closed() || event.is_error() {
        stream.framed.readable = true;
    }
    if stream.stage == Stage::Connecting {
        let failed = sockopt::socket_error(&stream.framed.socket);
        match failed.unwrap_or(Ok(())) {
            Err(error) => return on_connect_error(worker, index, error),
            Ok(()) if event.is_writable() => connected(worker, index),
            Ok(()) => {}
        }
    }
    queue(worker, index);
}

fn on_connect_error(worker: &mut Worker, index: usize, error: Errno) {
    let stream = &worker.dns.streams[index];
    let (pool, server) = (stream.pool.clone(), Arc::clone(&stream.server));
    note_refusal(worker, pool, &server, error);
    end(worker, index, Ending::Failed);
}

/// Counts that a server refused a stream. That is reported where it says something of the server as a whole: one that speaks
/// only UDP is asked by UDP as before.
fn note_refusal(worker: &Worker, pool: Arc<str>, server: &Entry, error: Errno) {
    let Some(failure) = count_failure(&worker.cx, &pool, server, error) else { return };
    let transports = &server.live.transports;
    transports.refused(Transport::Stream, worker.cx.now);
    if server.dialect == Dialect::Mname || transports.is_telling(Transport::Stream, worker.cx.now) {
        (worker.cx.report)(Report::Failure {
            pool,
            server: server.id,
            target: server.target.clone(),
            failure,
        });
    }
}

/// A stream is looked at once the present events are done.
pub(crate) fn queue(worker: &mut Worker, index: usize) {
    if let Some(stream) = worker.dns.streams.get_mut(index)
        && !std::mem::replace(&mut stream.dirty, true)
    {
        worker.dns.streams_dirty.push(index);
    }
}

/// Sends what waits, and reads as far as that is wanted.
pub(super) fn flush(worker: &mut Worker, index: usize) {
    let Some(stream) = worker.dns.streams.get_mut(index) else { return };
    stream.dirty = false;
    if matches!(stream.stage, Stage::Over | Stage::Connecting) {
        return;
    }
    // What the server said before it left is still heard.
    let is_broken = stream.framed.flush().is_err();
    for _ in 0..READS_MAX {
        let stream = &worker.dns.streams[index];
        if stream.stage == Stage::Over || is_held(worker, index) {
            return;
        }
        if !stream.framed.readable {
            if is_broken {
                end(worker, index, Ending::Broken);
            }
            return;
        }
        let mut buffer = worker.dns.take_buffer();
        let received = worker.dns.streams[index].framed.receive(&mut buffer);
        worker.dns.buffer = buffer;
        take_answers(worker, index);
        match received {
            Ok(Received::Some | Received::Blocked) => {}
            Ok(Received::End) | Err(_) => return end(worker, index, Ending::Broken),
        }
    }
    worker.cx.ready.push(Ready::DnsStream(index));
}

/// Whether the one client that it is for does not take what it has already.
fn is_held(worker: &Worker, index: usize) -> bool {
    match worker.dns.streams.get(index).map(|stream| stream.owner) {
        None | Some(Owner::All) => false,
        Some(Owner::Client { index, .. } | Owner::Transfer { index, .. }) => {
            worker.dns.clients.get(index).is_some_and(|client| client.is_slow())
        }
    }
}

/// Whether it was so within this time: what came meanwhile was not read.
pub(super) fn was_held(worker: &Worker, index: usize, within: Duration) -> bool {
    let resumed_at = worker.dns.streams.get(index).and_then(|stream| stream.resumed_at);
    is_held(worker, index) || resumed_at.is_some_and(|at| worker.cx.now.since(at) < within)
}

/// Its client takes what it has again.
pub(super) fn resume(worker: &mut Worker, index: usize) {
    if let Some(stream) = worker.dns.streams.get_mut(index) {
        stream.resumed_at = Some(worker.cx.now);
        queue(worker, index);
    }
}

/// Takes the whole messages that came.
fn take_answers(worker: &mut Worker, index: usize) {
    if worker.dns.streams[index].stage == Stage::Accepting && !accepted(worker, index) {
        return;
    }
    let mut message = worker.dns.spare();
    while let Some(stream) = worker.dns.streams.get_mut(index).filter(|stream| stream.stage == Stage::Open) {
        if !stream.framed.take_message(&mut message) {
            break;
        }
        let id = wire::id(&message);
        let owner = stream.ids.owner(id);
        let owner = owner.filter(|slot| reply::is_answered_by(&worker.dns.queries[*slot], &message));
        let Some(slot) = owner else {
            // It is late, or made up.
            stream.server.live.counters.of(worker.cx.id).answers_bad.one();
            stream.bad += 1;
            if stream.bad >= BAD_MAX {
                end(worker, index, Ending::Broken);
            }
            continue;
        };
        (stream.answered, stream.active_at, stream.heard_at) = (true, worker.cx.now, worker.cx.now);
        // It is slow, not dead.
        (stream.bad, stream.is_given_up) = (0, false);
        let upstream = stream.upstream;
        attempt::turn_to(worker, slot, Waits::AtStream(index), id);
        let Query { asker, sent_at, .. } = &worker.dns.queries[slot];
        let (asked_at, service) = (*sent_at, asker.service);
        let settings = worker.dns.services[service].service.settings.load_full();
        if let Some(upstream) = worker.dns.upstreams.get_mut(upstream) {
            upstream.on_answer(worker.cx.now, asked_at, query::timeout(&settings));
            upstream.live.transports.answered(Transport::Stream, worker.cx.now);
        }
        reply::pass_on(worker, &settings, slot, &mut message);
    }
    worker.dns.give_back(message);
}

/// Hears whether a server of mname takes the session; whether it does.
fn accepted(worker: &mut Worker, index: usize) -> bool {
    let stream = &mut worker.dns.streams[index];
    match mname::parse(stream.framed.pending()) {
        Ok(None) => return false,
        Ok(Some((Frame::TcpOk, length))) => {
            stream.framed.consume(length);
            stream.framed.let_go();
            stream.stage = Stage::Open;
            worker.dns.stream_timers.set(index, worker.cx.now + IDLE);
            queue(worker, index);
            close_if_done(worker, index);
            return true;
        }
        Ok(Some(_)) | Err(_) => {}
    }
    fault(worker, index, "it answered a TCP session with something else than its acceptance");
    end(worker, index, Ending::Failed);
    false
}

/// A server of mname did not take a session: its standing connection is to end, if it is the one that stood then.
fn fault(worker: &mut Worker, index: usize, reason: &str) {
    let stream = &worker.dns.streams[index];
    let (live, session) = (Arc::clone(&stream.server.live), stream.session);
    if let Some(session) = session {
        standing::fault_of(worker, &live, session, reason);
    }
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The server could not be reached; that is reported already.
    Failed,
    /// The server ended it.
    Broken,
    /// We did.
    Closed,
}

/// Ends a stream; whoever waits there asks again, or somebody else.
fn end(worker: &mut Worker, index: usize, ending: Ending) {
    let Some(stream) = worker.dns.streams.get_mut(index) else { return };
    let stage = std::mem::replace(&mut stream.stage, Stage::Over);
    if stage == Stage::Over {
        return;
    }
    let (was_used, slots, upstream) = (stream.answered, stream.ids.owners(), stream.upstream);
    if ending == Ending::Broken && !was_used && !slots.is_empty() {
        stream.server.live.counters.of(worker.cx.id).answers_bad.one();
    }
    match stream.owner {
        Owner::All => {
            if let Some(upstream) = worker.dns.upstreams.get_mut(upstream) {
                upstream.streams.retain(|other| *other != index);
            }
        }
        Owner::Client { index: client, .. } | Owner::Transfer { index: client, .. } => {
            if let Some(client) = worker.dns.clients.get_mut(client) {
                client.streams.retain(|other| *other != index);
            }
        }
    }
    worker.dns.stream_timers.clear(index);
    worker.dns.streams_over.push(index);
    for (id, slot) in slots {
        if !attempt::is_current(worker, slot, Waits::AtStream(index), id) {
            continue;
        }
        let query = &worker.dns.queries[slot];
        let settings = worker.dns.services[query.asker.service].service.settings.load_full();
        let is_innocent = ending == Ending::Closed || (ending == Ending::Broken && was_used);
        let may_repeat = query.cut_short < CUT_SHORT_MAX;
        let cause = if is_innocent && may_repeat { Cause::CutShort } else { Cause::Refused };
        if stage == Stage::Open {
            query::again_unless_received(worker, &settings, slot, cause);
        } else {
            query::again(worker, &settings, slot, cause);
        }
    }
}

/// Closes a stream.
pub(super) fn close(worker: &mut Worker, index: usize) {
    end(worker, index, Ending::Closed);
}

/// A question does not wait here any more.
pub(super) fn withdraw(worker: &mut Worker, index: usize, id: u16) {
    let Some(stream) = worker.dns.streams.get_mut(index) else { return };
    stream.ids.free(id);
    close_if_done(worker, index);
}

/// Closes a stream that is for nobody any more. Whether a server of mname takes its session is waited for.
fn close_if_done(worker: &mut Worker, index: usize) {
    let stream = &worker.dns.streams[index];
    let is_for_one = stream.is_given_up || matches!(stream.owner, Owner::Transfer { .. });
    if is_for_one && stream.ids.is_empty() && stream.stage != Stage::Accepting {
        close(worker, index);
    }
}

/// A question that was sent then got no answer: where nothing came since, nothing will, unless its server is just slow.
pub(super) fn on_silence(worker: &mut Worker, index: usize, since: Time) {
    let dns = &mut worker.dns;
    let Some(stream) = dns.streams.get_mut(index) else { return };
    let is_late = dns.upstreams.get(stream.upstream).is_some_and(|upstream| upstream.is_late);
    let is_slow = is_late && worker.cx.now.since(stream.heard_at) < IDLE;
    stream.is_given_up |= stream.stage == Stage::Open && stream.heard_at < since && !is_slow;
}

/// Whether an answer may still come on a stream.
pub(super) fn is_alive(worker: &Worker, index: usize) -> bool {
    let stream = worker.dns.streams.get(index);
    stream.is_some_and(|stream| stream.stage != Stage::Over && !stream.is_given_up)
}

/// A server did not accept in time, or nobody used the stream for long.
pub(super) fn on_deadline(worker: &mut Worker, index: usize) {
    let Some(stream) = worker.dns.streams.get(index) else { return };
    match stream.stage {
        Stage::Over => {}
        Stage::Connecting => on_connect_error(worker, index, Errno::TIMEDOUT),
        Stage::Accepting => {
            fault(worker, index, "it did not accept a TCP session within 10 s");
            end(worker, index, Ending::Failed);
        }
        Stage::Open => {
            let is_idle = stream.ids.is_empty() && worker.cx.now.since(stream.active_at) >= IDLE;
            match stream.owner {
                Owner::All if is_idle => close(worker, index),
                Owner::All => worker.dns.stream_timers.set(index, worker.cx.now + IDLE),
                // It ends with its client, or its transfer.
                Owner::Client { .. } | Owner::Transfer { .. } => {}
            }
        }
    }
}
