//! Clients on TCP: each message has its length before it, many may be under way, and answers go back as they come
//! (RFC 7766). Whoever does not read its answers, or asks more than is allowed at once, is not read from meanwhile.

use super::framed::{Framed, Received};
use super::query::{self, Asker, Origin, Party};
use super::transfers::{self, Transfers};
use super::{Served, stream};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::ready::Ready;
use crate::context::registry::Token;
use crate::dns::Dns;
use crate::service::Place;
use crate::service::admission::{self, Admission, Guest, Refused, reset_at_close};
use crate::service::hops::note_loop;
use crate::service::open::{self, Collector, Open};
use crate::service::preamble::GREETING;
use crate::service::preamble::{self, Origin as Told};
use crate::service::{Service, Settings};
use crate::worker::Worker;
use evener_core::Time;
use evener_core::limits::Lease;
use mio::event::Event;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{RecvFlags, recv};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// While more waits to be sent, no more is read.
const OUTBOX_MAX: usize = 65_536;
/// After so many reads others have their turn.
const READS_MAX: usize = 2;
/// While the program drains, a client that asks nothing leaves after this.
const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A PROXY header has to come first.
    Greeting,
    Open,
    /// It was refused, and is kept waiting.
    Tarpit,
    Over,
}

/// A client's connection.
pub(super) struct Client {
    pub(super) service: usize,
    /// Tells it from all others of its worker.
    number: u32,
    framed: Framed,
    told: Told,
    stage: Stage,
    refused: bool,
    /// Questions under way.
    outstanding: u32,
    /// Whether it asked anything yet.
    asked: bool,
    /// It sends no more.
    ended: bool,
    active_at: Time,
    /// It is among those that are looked at once the present events are done.
    dirty: bool,
    /// The round in which it was looked at last.
    round: u32,
    /// Streams to servers that are for this client alone.
    pub(super) streams: Vec<usize>,
    pub(super) transfers: Transfers,
    place: Option<Lease>,
    _descriptor: Unit,
    guest: Guest,
}

impl Client {
    /// Whether no more is read from it, and from servers for it alone.
    pub(super) fn is_slow(&self) -> bool {
        self.framed.waiting() >= OUTBOX_MAX
    }

    fn is_idle(&self) -> bool {
        self.outstanding == 0 && self.framed.waiting() == 0
    }
}

/// A client was accepted.
pub(crate) fn begin(
    worker: &mut Worker,
    socket: OwnedFd,
    peer: SocketAddr,
    service: &Arc<Service>,
    settings: &Settings,
    place: Place,
) {
    let (service, number) = (worker.dns.place_of(service), worker.cx.number());
    let greets = settings.is_proxy(peer.ip());
    let index = worker.dns.clients.insert(Box::new(Client {
        service,
        number,
        framed: Framed::new(socket),
        told: Told::new(peer),
        stage: if greets { Stage::Greeting } else { Stage::Open },
        refused: false,
        outstanding: 0,
        asked: false,
        ended: false,
        active_at: worker.cx.now,
        dirty: false,
        round: worker.dns.round.wrapping_sub(1),
        streams: Vec::new(),
        transfers: Transfers::default(),
        place: Some(place.lease),
        _descriptor: place.client,
        guest: Guest::default(),
    }));
    if greets {
        worker.dns.client_timers.set(index, worker.cx.now + GREETING);
    } else {
        admit(worker, index, settings);
    }
    let client = &worker.dns.clients[index];
    if client.stage == Stage::Over {
        return;
    }
    if worker.cx.registry.register(&client.framed.socket, Token::DnsClient(index)).is_err() {
        return close(worker, index);
    }
    queue(worker, index);
}

/// Asks the access list and the limits.
fn admit(worker: &mut Worker, index: usize, settings: &Settings) {
    let client = &mut worker.dns.clients[index];
    let service = &worker.dns.services[client.service].service;
    match admission::admit(service, settings, client.told.client.ip(), worker.cx.id, worker.cx.now) {
        Admission::Enter(guest) => {
            client.refused = guest.backend.is_some();
            client.guest = guest;
            client.stage = Stage::Open;
            arm(worker, index, settings);
        }
        Admission::Refused(Refused::Drop) => close(worker, index),
        Admission::Refused(Refused::Reject(_)) => {
            reset_at_close(&client.framed.socket);
            close(worker, index);
        }
        Admission::Refused(Refused::Tarpit(place, time)) => {
            // It gives its place in the service to others.
            client.place = Some(place);
            client.stage = Stage::Tarpit;
            worker.dns.client_timers.set(index, worker.cx.now + time);
        }
    }
}

/// How long a client may do nothing.
fn idle_timeout(worker: &Worker, settings: &Settings) -> Option<Duration> {
    if worker.cx.draining { Some(DRAIN_IDLE) } else { settings.options.idle_timeout }
}

/// How long the client with this number may do nothing, if it is still there: while the program drains, it should leave.
pub(super) fn idle_time(worker: &mut Worker, index: usize, number: u32) -> Option<Duration> {
    find(worker, index, number)?;
    let idle = settings_of(worker, index).options.idle_timeout.unwrap_or(Duration::MAX);
    Some(if worker.cx.draining { Duration::ZERO } else { idle })
}

fn arm(worker: &mut Worker, index: usize, settings: &Settings) {
    let active_at = worker.dns.clients[index].active_at;
    match idle_timeout(worker, settings) {
        Some(idle) => worker.dns.client_timers.set(index, active_at + idle),
        None => worker.dns.client_timers.clear(index),
    }
}

fn settings_of(worker: &Worker, index: usize) -> Arc<Settings> {
    worker.dns.services[worker.dns.clients[index].service].service.settings.load_full()
}

/// Something happened at a client's socket.
pub(crate) fn on_client_event(worker: &mut Worker, index: usize, event: &Event) {
    let Some(client) = worker.dns.clients.get_mut(index) else { return };
    if event.is_readable() || event.is_read_closed() || event.is_error() {
        client.framed.readable = true;
    }
    queue(worker, index);
}

/// A client is looked at once the present events are done.
pub(crate) fn queue(worker: &mut Worker, index: usize) {
    if let Some(client) = worker.dns.clients.get_mut(index)
        && !std::mem::replace(&mut client.dirty, true)
    {
        worker.dns.clients_dirty.push(index);
    }
}

/// Looks at a client, once in a round; whether it was looked at.
pub(super) fn flush_once(worker: &mut Worker, index: usize) -> bool {
    let round = worker.dns.round;
    let Some(client) = worker.dns.clients.get_mut(index) else { return true };
    let is_first = std::mem::replace(&mut client.round, round) != round;
    if is_first {
        // What is answered meanwhile is sent by and by.
        flush(worker, index);
    }
    if let Some(client) = worker.dns.clients.get_mut(index) {
        client.dirty = false;
    }
    is_first
}

/// Sends what waits, and reads as far as that is wanted.
fn flush(worker: &mut Worker, index: usize) {
    let settings = settings_of(worker, index);
    transfers::begin_next(worker, &settings, index);
    for _ in 0..READS_MAX {
        let client = &worker.dns.clients[index];
        if client.stage == Stage::Over {
            return;
        }
        let appetite = take_questions(worker, index, &settings);
        if send(worker, index) == Sent::Broken || appetite == Appetite::Gone {
            return;
        }
        if appetite == Appetite::Full {
            if is_full(worker, index, &settings) {
                return;
            }
        } else if !worker.dns.clients[index].framed.readable {
            return leave_if_done(worker, index);
        } else {
            receive(worker, index);
        }
    }
    worker.cx.ready.push(Ready::DnsClient(index));
}

/// Whether more is wanted of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appetite {
    /// All that came was taken.
    More,
    /// Too much is under way.
    Full,
    /// The client is closed.
    Gone,
}

fn is_full(worker: &Worker, index: usize, settings: &Settings) -> bool {
    let client = &worker.dns.clients[index];
    let most = query::spec(settings).map_or(1, |spec| spec.pipeline_max.max(1));
    client.outstanding >= most || client.is_slow()
}

/// Takes the whole messages that came.
fn take_questions(worker: &mut Worker, index: usize, settings: &Settings) -> Appetite {
    let stage = worker.dns.clients[index].stage;
    match stage {
        Stage::Greeting if !greet(worker, index, settings) => {
            return if worker.dns.clients[index].stage == Stage::Over {
                Appetite::Gone
            } else {
                Appetite::More
            };
        }
        Stage::Tarpit => {
            // What it says is not heard.
            let client = &mut worker.dns.clients[index];
            let count = client.framed.pending().len();
            client.framed.consume(count);
            return Appetite::More;
        }
        Stage::Greeting | Stage::Open | Stage::Over => {}
    }
    let mut message = worker.dns.spare();
    let appetite = loop {
        if worker.dns.clients[index].stage != Stage::Open {
            break Appetite::Gone;
        }
        if is_full(worker, index, settings) {
            break Appetite::Full;
        }
        let client = &mut worker.dns.clients[index];
        if !client.framed.take_message(&mut message) {
            break Appetite::More;
        }
        client.asked = true;
        client.active_at = worker.cx.now;
        let asker = asker_of(worker, index);
        count_in(worker, index, message.len() + 2);
        query::ask(worker, settings, &asker, &message);
    };
    worker.dns.give_back(message);
    appetite
}

/// Hears the PROXY header; whether the client may ask now.
fn greet(worker: &mut Worker, index: usize, settings: &Settings) -> bool {
    let client = &mut worker.dns.clients[index];
    match preamble::read_proxy(client.framed.pending(), &mut client.told) {
        Ok(None) => return false,
        Ok(Some(length)) => client.framed.consume(length),
        Err(_) => {
            let service = &worker.dns.services[client.service].service;
            service.live.counters.of(worker.cx.id).greeting_refused.one();
            close(worker, index);
            return false;
        }
    }
    if worker.dns.clients[index].told.goes_round() {
        let service = Arc::clone(&worker.dns.services[worker.dns.clients[index].service].service);
        note_loop(&worker.cx, &service);
        close(worker, index);
        return false;
    }
    admit(worker, index, settings);
    worker.dns.clients[index].stage == Stage::Open
}

fn asker_of(worker: &Worker, index: usize) -> Asker {
    let client = &worker.dns.clients[index];
    let ends = client.told.ends(&client.framed.socket);
    Asker {
        service: client.service,
        client: client.told.client,
        destination: ends.map(|ends| ends.destination),
        party: if client.refused { Party::Refused } else { Party::Admitted },
        hops: client.told.next_hop(),
        origin: Origin::Stream { client: index, number: client.number },
        keepalive: false,
    }
}

fn count_in(worker: &Worker, index: usize, bytes: usize) {
    let client = &worker.dns.clients[index];
    worker.dns.services[client.service].service.live.counters.of(worker.cx.id).bytes_in.add(bytes as u64);
}

/// Whether the connection is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Well,
    Broken,
}

fn send(worker: &mut Worker, index: usize) -> Sent {
    let client = &mut worker.dns.clients[index];
    if client.stage == Stage::Over {
        return Sent::Broken;
    }
    let was_slow = client.is_slow();
    let Ok(count) = client.framed.flush() else {
        close(worker, index);
        return Sent::Broken;
    };
    if count > 0 {
        client.active_at = worker.cx.now;
        let counters = worker.dns.services[client.service].service.live.counters.of(worker.cx.id);
        counters.bytes_out.add(count as u64);
    }
    let client = &worker.dns.clients[index];
    if was_slow && !client.is_slow() {
        // What servers have for it alone was left where it is.
        for at in client.streams.clone() {
            stream::resume(worker, at);
        }
    }
    Sent::Well
}

fn receive(worker: &mut Worker, index: usize) {
    let mut buffer = worker.dns.take_buffer();
    let client = &mut worker.dns.clients[index];
    match client.framed.receive(&mut buffer) {
        Ok(Received::Some | Received::Blocked) => {}
        Ok(Received::End) => client.ended = true,
        Err(_) => close(worker, index),
    }
    worker.dns.buffer = buffer;
}

/// Clients that were answered and ask nothing make room for others, the longest idle first; how many left.
pub(crate) fn shed(worker: &mut Worker, wanted: u32) -> u32 {
    let is_quiet = |client: &Client| {
        let is_done = client.stage == Stage::Open && client.asked && client.is_idle();
        is_done && client.framed.pending().is_empty()
    };
    let idle = worker.dns.clients.iter().filter(|(_, client)| is_quiet(client));
    let mut idle: Vec<(Time, usize)> = idle.map(|(index, client)| (client.active_at, index)).collect();
    idle.sort_unstable();
    let mut left = 0;
    for (_, index) in idle.into_iter().take(wanted as usize) {
        let client = &worker.dns.clients[index];
        // It may have asked something just now.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        if recv(&client.framed.socket, &mut [0], flags).is_ok_and(|(_, length)| length > 0) {
            continue;
        }
        worker.dns.services[client.service].service.live.counters.of(worker.cx.id).idle_shed.one();
        close(worker, index);
        left += 1;
    }
    left
}

/// A client that sends no more leaves when all it asked was answered; while the program drains, any does.
fn leave_if_done(worker: &mut Worker, index: usize) {
    let client = &worker.dns.clients[index];
    if client.is_idle() && (client.ended || (worker.cx.draining && client.asked)) {
        close(worker, index);
    }
}

/// A question of this client is under way from now on.
pub(super) fn begun(worker: &mut Worker, index: usize, number: u32) {
    if let Some(client) = find(worker, index, number) {
        client.outstanding += 1;
    }
}

/// A question of this client that was under way is over, answered or not.
pub(super) fn answered(worker: &mut Worker, index: usize, number: u32) {
    if let Some(client) = find(worker, index, number) {
        client.outstanding = client.outstanding.saturating_sub(1);
        queue(worker, index);
    }
}

/// An answer for a client.
pub(super) fn answer(worker: &mut Worker, index: usize, number: u32, answer: &[u8]) {
    if let Some(client) = find(worker, index, number) {
        client.framed.queue_message(answer);
        queue(worker, index);
    }
}

/// A client leaves once it has what waits for it: it cannot be told otherwise that the rest of a transfer does not come.
pub(super) fn dismiss(worker: &mut Worker, index: usize, number: u32) {
    if let Some(client) = find(worker, index, number) {
        client.ended = true;
        queue(worker, index);
    }
}

/// What it says is no DNS.
pub(super) fn abandon(worker: &mut Worker, index: usize, number: u32) {
    if find(worker, index, number).is_some() {
        close(worker, index);
    }
}

/// The client with this number, if it is still there.
pub(super) fn find(worker: &mut Worker, index: usize, number: u32) -> Option<&mut Client> {
    let client = worker.dns.clients.get_mut(index)?;
    (client.number == number && client.stage != Stage::Over).then_some(&mut **client)
}

/// What a server is told of the client at a place, before anything else.
pub(super) fn told(worker: &Worker, index: usize) -> Option<(&Told, &OwnedFd)> {
    worker.dns.clients.get(index).map(|client| (&client.told, &client.framed.socket))
}

fn close(worker: &mut Worker, index: usize) {
    let client = &mut worker.dns.clients[index];
    if std::mem::replace(&mut client.stage, Stage::Over) == Stage::Over {
        return;
    }
    worker.dns.client_timers.clear(index);
    worker.dns.clients_over.push(index);
    transfers::abandon(worker, index);
    for at in std::mem::take(&mut worker.dns.clients[index].streams) {
        stream::close(worker, at);
    }
}

/// A client was idle for long, or did not say in time what has to come first.
pub(super) fn on_deadline(worker: &mut Worker, index: usize) {
    let Some(client) = worker.dns.clients.get(index) else { return };
    let settings = settings_of(worker, index);
    let counters = worker.dns.services[client.service].service.live.counters.of(worker.cx.id);
    match client.stage {
        Stage::Over => return,
        Stage::Tarpit => {}
        Stage::Greeting => counters.greeting_timeouts.one(),
        Stage::Open => {
            // Servers have their own time; who does not take its answers has none.
            let waits = client.outstanding > 0 && client.framed.waiting() == 0;
            let idle = idle_timeout(worker, &settings);
            if idle.is_none_or(|idle| worker.cx.now.since(client.active_at) < idle) {
                return arm(worker, index, &settings);
            }
            if waits {
                worker.dns.clients[index].active_at = worker.cx.now;
                return arm(worker, index, &settings);
            }
            counters.idle_timeouts.one();
        }
    }
    close(worker, index);
}

/// The program drains.
pub(super) fn on_drain(worker: &mut Worker, index: usize) {
    let settings = settings_of(worker, index);
    if worker.dns.clients[index].stage == Stage::Open {
        worker.dns.clients[index].active_at = worker.cx.now;
        arm(worker, index, &settings);
    }
    queue(worker, index);
}

/// Closes everybody: the drain deadline came.
pub(crate) fn cut_all(worker: &mut Worker) {
    let all: Vec<usize> = worker.dns.clients.iter().map(|(index, _)| index).collect();
    for index in all {
        let client = &worker.dns.clients[index];
        if client.stage != Stage::Over {
            worker.dns.services[client.service].service.live.counters.of(worker.cx.id).cut.one();
            close(worker, index);
        }
    }
}

/// Closes the client with this number; whether there was one.
pub(crate) fn close_numbered(worker: &mut Worker, number: u32) -> bool {
    let mut clients = worker.dns.clients.iter();
    let found = clients.find(|(_, client)| client.number == number && client.stage != Stage::Over);
    let Some((index, client)) = found else { return false };
    worker.dns.services[client.service].service.live.counters.of(worker.cx.id).closed.one();
    close(worker, index);
    true
}

impl Dns {
    /// Lists the clients that a question asks for.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, client) in self.clients.iter().filter(|(_, client)| client.stage != Stage::Over) {
            let served = &self.services[client.service];
            if collector.is_meant(&served.service.name) {
                collector.take(|| open_of(cx, client, served));
            }
        }
    }
}

fn open_of(cx: &Context, client: &Client, served: &Served) -> Open {
    let peer = client.told.client;
    Open {
        number: open::number(cx, client.number),
        service: served.service.name.clone(),
        client: peer.ip(),
        client_port: (peer.port() > 0).then_some(peer.port()),
        server: None,
        stage: match client.stage {
            Stage::Greeting => "greeting",
            Stage::Tarpit => "tarpit",
            Stage::Open if client.outstanding > 0 => "dns questions",
            Stage::Open => "dns idle",
            Stage::Over => "over",
        },
        idle: cx.now.since(client.active_at),
        client_socket: Some(client.framed.socket.as_raw_fd()),
        server_socket: None,
        to_client: client.framed.waiting(),
        to_server: 0,
    }
}
