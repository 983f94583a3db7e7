//! The relay over io_uring: a receive that goes on by itself for each side, a send for each buffer that it fills, all
//! queued and taken in with one system call for many connections.
//!
//! This is the way of small messages to sinks that take them. A connection leaves it for good, for the epoll relay, as
//! soon as it is anything else: bulk (splice is cheaper), a sink that blocks (it would hold buffers that others need), a
//! sink that is gone.

use crate::context::registry::Token;
use crate::context::ring::{BUFFER_BYTES, Completion, Mark, Piece};
use crate::io::relay::{End, Pumped};
use crate::tcp;
use crate::tcp::connection::{Connection, Stage, Step};
use crate::worker::Worker;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;

/// So many full buffers in a row are bulk.
const FULL_MAX: u8 = 4;
/// So many buffers that wait for a sink make it a blocked one.
const WAITING_MAX: usize = 4;
/// With fewer buffers left, connections whose sinks are slow must leave.
const BUFFERS_LOW: u16 = 16;

/// A connection's part in the ring.
#[derive(Debug, Default)]
pub(crate) struct RingState {
    sides: [Side; 2],
    leaving: bool,
}

impl RingState {
    /// How many bytes of a side wait for its sink.
    pub(crate) fn waiting(&self, side: usize) -> usize {
        self.sides[side].waiting.iter().map(|piece| (piece.to - piece.from) as usize).sum()
    }
}

/// One direction: 0 from the client, 1 from the server.
#[derive(Debug, Default)]
struct Side {
    /// A receive is under way.
    armed: bool,
    /// The send that is under way.
    sending: Option<u32>,
    waiting: VecDeque<Piece>,
    full: u8,
    end: Option<End>,
}

/// A send under way; its buffer is taken until it completes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendUnderWay {
    index: u32,
    generation: u32,
    side: u8,
    piece: Piece,
}

/// A receive that ended for want of buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Starved {
    index: usize,
    generation: u32,
    side: usize,
}

fn mark(index: usize, generation: u32, side: usize) -> Mark {
    Mark::Receive { index: index as u32, generation, side: side as u8 }
}

fn source(connection: &Connection, side: usize) -> Option<&OwnedFd> {
    if side == 0 {
        Some(&connection.client)
    } else {
        connection.upstream.as_ref().map(|upstream| &upstream.socket)
    }
}

/// A connection that was accepted by its server begins to be relayed here.
pub(crate) fn adopt(worker: &mut Worker, index: usize) {
    worker.tcp.connections[index].ring = Some(Box::default());
    (0..2).for_each(|side| arm(worker, index, side));
}

fn arm(worker: &mut Worker, index: usize, side: usize) {
    let connection = &mut worker.tcp.connections[index];
    let Some(generation) = connection.generation() else { return };
    let mark = mark(index, generation, side);
    let Some(ring) = &mut worker.cx.ring else { return };
    let Some(socket) = source(connection, side) else { return };
    ring.receive(socket, mark);
    if let Some(state) = &mut connection.ring {
        state.sides[side].armed = true;
    }
}

/// Something completed.
pub(crate) fn on_completion(worker: &mut Worker, completion: Completion) {
    match completion.mark {
        Mark::Receive { index, generation, side } => {
            on_received(worker, index as usize, generation, usize::from(side), completion);
        }
        Mark::Send { number } => on_sent(worker, number, completion.result),
        Mark::Connect { index, generation } => {
            if is_current(worker, index as usize, generation) {
                let events = completion.result.unwrap_or(libc::POLLERR as u32);
                tcp::on_connect_polled(worker, index as usize, events as i16);
            }
        }
        Mark::Epoll | Mark::Nothing => {}
    }
}

fn is_current(worker: &Worker, index: usize, generation: u32) -> bool {
    let found = worker.tcp.connections.get(index);
    found.is_some_and(|connection| {
        connection.generation() == Some(generation) && connection.stage != Stage::Over
    })
}

fn on_received(worker: &mut Worker, index: usize, generation: u32, side: usize, completion: Completion) {
    let Some(ring) = &mut worker.cx.ring else { return };
    if completion.buffer.is_some() {
        ring.taken();
    }
    let current = worker
        .tcp
        .connections
        .get_mut(index)
        .filter(|connection| connection.generation() == Some(generation));
    let state =
        current.filter(|connection| connection.stage != Stage::Over).and_then(|one| one.ring.as_mut());
    let Some(state) = state else {
        return completion.buffer.into_iter().for_each(|buffer| ring.give_back(buffer));
    };
    let one = &mut state.sides[side];
    one.armed &= completion.more;
    match (completion.result, completion.buffer) {
        (Ok(length @ 1..), Some(buffer)) => {
            one.full = if length as usize == BUFFER_BYTES { one.full + 1 } else { 0 };
            let piece = Piece { buffer, from: 0, to: length };
            one.waiting.push_back(piece);
            if side == 0
                && let Some(tap) = worker.tcp.connections[index].tap(worker.cx.id)
            {
                tap.piece(ring.bytes(piece));
            }
        }
        (Ok(_), buffer) => {
            buffer.into_iter().for_each(|buffer| ring.give_back(buffer));
            one.end = Some(End::Fin);
        }
        (Err(Errno::NOBUFS), _) => worker.tcp.starved.push(Starved { index, generation, side }),
        (Err(Errno::CANCELED), _) => {}
        (Err(error), _) => one.end = Some(End::Error(error)),
    }
    let starved = completion.result == Err(Errno::NOBUFS);
    advance(worker, index, side, if starved { Arm::Later } else { Arm::Now });
}

/// Whether a receive that ended begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arm {
    Now,
    Later,
}

/// Does whatever this side can do next.
fn advance(worker: &mut Worker, index: usize, side: usize, arming: Arm) {
    let Some(state) = &mut worker.tcp.connections[index].ring else { return };
    if state.leaving {
        return finish_leaving(worker, index);
    }
    let one = &state.sides[side];
    if one.full >= FULL_MAX || one.waiting.len() > WAITING_MAX {
        return leave(worker, index);
    }
    let (ended, sending, armed) = (one.end, one.sending.is_some(), one.armed);
    if !sending
        && !send_next(worker, index, side)
        && let Some(end) = ended
    {
        return conclude(worker, index, side, Pumped::Ended(end));
    }
    if !armed && ended.is_none() && arming == Arm::Now {
        arm(worker, index, side);
    }
}

/// Sends what waits first; whether there was anything.
fn send_next(worker: &mut Worker, index: usize, side: usize) -> bool {
    let connection = &mut worker.tcp.connections[index];
    let Some(generation) = connection.generation() else { return false };
    let Some(state) = &mut connection.ring else { return false };
    let Some(piece) = state.sides[side].waiting.pop_front() else { return false };
    let under_way = SendUnderWay { index: index as u32, generation, side: side as u8, piece };
    let number = worker.tcp.sends.insert(under_way) as u32;
    state.sides[side].sending = Some(number);
    if let (Some(ring), Some(sink)) = (&mut worker.cx.ring, source(connection, 1 - side)) {
        ring.send(sink, piece, Mark::Send { number });
    }
    true
}

fn on_sent(worker: &mut Worker, number: u32, result: Result<u32, Errno>) {
    let Some(SendUnderWay { index, generation, side, piece }) = worker.tcp.sends.try_remove(number as usize)
    else {
        return;
    };
    let (index, side) = (index as usize, usize::from(side));
    let sent = result.unwrap_or(0);
    let rest = Piece { from: piece.from + sent, ..piece };
    let alive = is_current(worker, index, generation) && worker.tcp.connections[index].ring.is_some();
    if !alive || rest.from >= rest.to {
        worker.cx.ring.iter_mut().for_each(|ring| ring.give_back(piece.buffer));
    }
    if !alive {
        return;
    }
    let connection = &mut worker.tcp.connections[index];
    let (bytes_in, bytes_out) = if side == 0 { (sent, 0) } else { (0, sent) };
    connection.count(u64::from(bytes_in), u64::from(bytes_out), worker.cx.id, worker.cx.now);
    let Some(state) = &mut connection.ring else { return };
    state.sides[side].sending = None;
    if rest.from < rest.to {
        state.sides[side].waiting.push_front(rest);
    }
    match result {
        // Cancelled because the connection leaves; EAGAIN means that the sink blocks.
        Ok(_) => advance(worker, index, side, Arm::Now),
        Err(Errno::CANCELED | Errno::AGAIN | Errno::INTR) => leave(worker, index),
        Err(error) => conclude(worker, index, side, Pumped::SinkGone(error)),
    }
}

/// A direction ended, or its sink is gone.
fn conclude(worker: &mut Worker, index: usize, side: usize, outcome: Pumped) {
    let (up, down) = if side == 0 { (outcome, Pumped::Waiting) } else { (Pumped::Waiting, outcome) };
    let ended = outcome == Pumped::Ended(End::Fin);
    if ended && worker.tcp.connections[index].ends_both(side == 0, side == 1) {
        // What the other side has under way is for the epoll relay to deliver.
        return leave(worker, index);
    }
    match worker.tcp.connections[index].conclude(up, down, &mut worker.tcp.scratch, worker.cx.id) {
        // The server takes nothing any more: what the client still sends is heard by the epoll relay.
        Step::Again => leave(worker, index),
        Step::Linger => {
            tcp::follow(worker, index, Step::Linger);
            leave(worker, index);
        }
        step => tcp::follow(worker, index, step),
    }
}

/// The connection goes over to the epoll relay, as soon as nothing of it is under way.
fn leave(worker: &mut Worker, index: usize) {
    cancel(worker, index);
    if let Some(state) = &mut worker.tcp.connections[index].ring {
        state.leaving = true;
    }
    finish_leaving(worker, index);
}

/// Cancels what is under way.
fn cancel(worker: &mut Worker, index: usize) {
    let connection = &worker.tcp.connections[index];
    let (Some(state), Some(ring)) = (&connection.ring, &mut worker.cx.ring) else { return };
    let Some(generation) = connection.generation() else { return };
    if state.leaving {
        return;
    }
    for (side, one) in state.sides.iter().enumerate() {
        if one.armed {
            ring.cancel(mark(index, generation, side));
        }
        one.sending.into_iter().for_each(|number| ring.cancel(Mark::Send { number }));
    }
}

fn finish_leaving(worker: &mut Worker, index: usize) {
    let connection = &mut worker.tcp.connections[index];
    let busy = |state: &RingState| state.sides.iter().any(|one| one.armed || one.sending.is_some());
    let Some(mut state) = connection.ring.take_if(|state| !busy(state)) else { return };
    let Some(ring) = &mut worker.cx.ring else { return };
    let directions = [&mut connection.from_client, &mut connection.from_server];
    for (one, direction) in state.sides.iter_mut().zip(directions) {
        let mut rest = Vec::new();
        for piece in one.waiting.drain(..) {
            rest.extend_from_slice(ring.bytes(piece));
            ring.give_back(piece.buffer);
        }
        direction.resume(rest, one.end);
    }
    let mut registered = worker.cx.registry.register(&connection.client, Token::Client(index)).is_ok();
    if let Some(upstream) = &connection.upstream {
        registered &= worker.cx.registry.register(&upstream.socket, Token::Server(index)).is_ok();
    }
    if registered { tcp::relay(worker, index) } else { tcp::close(worker, index) }
}

/// A connect is given up: the poll for it holds the socket, and would let the kernel go on with it.
pub(crate) fn cancel_connect(worker: &mut Worker, index: usize) {
    let connection = &worker.tcp.connections[index];
    // Those that greet connect by epoll.
    if connection.stage != Stage::Connecting || connection.greeting.is_some() {
        return;
    }
    if let (Some(generation), Some(ring)) = (connection.generation(), &mut worker.cx.ring) {
        ring.cancel(Mark::Connect { index: index as u32, generation });
    }
}

/// The connection is over: what is under way is cancelled, what waits is dropped.
pub(crate) fn abandon(worker: &mut Worker, index: usize) {
    cancel_connect(worker, index);
    cancel(worker, index);
    let (Some(mut state), Some(ring)) = (worker.tcp.connections[index].ring.take(), &mut worker.cx.ring)
    else {
        return;
    };
    for piece in state.sides.iter_mut().flat_map(|one| one.waiting.drain(..)) {
        ring.give_back(piece.buffer);
    }
}

/// Receives that ended for want of buffers begin again when there are some. When slow sinks hold most of them, their
/// connections leave.
pub(crate) fn feed_starved(worker: &mut Worker) {
    if worker.tcp.starved.is_empty() {
        return;
    }
    if worker.cx.ring.as_ref().is_some_and(|ring| ring.buffers_left() < BUFFERS_LOW) {
        let holds = |connection: &Connection| {
            let holds = |state: &RingState| state.sides.iter().any(|one| one.sending.is_some());
            connection.stage != Stage::Over && connection.ring.as_deref().is_some_and(holds)
        };
        let holders = worker.tcp.connections.iter().filter(|(_, connection)| holds(connection));
        let holders: Vec<usize> = holders.map(|(index, _)| index).collect();
        holders.into_iter().for_each(|index| leave(worker, index));
    }
    if worker.cx.ring.as_ref().is_none_or(|ring| ring.buffers_left() == 0) {
        return;
    }
    for Starved { index, generation, side } in std::mem::take(&mut worker.tcp.starved) {
        if is_current(worker, index, generation) {
            let needs = |state: &RingState| {
                !state.leaving && !state.sides[side].armed && state.sides[side].end.is_none()
            };
            if worker.tcp.connections[index].ring.as_deref().is_some_and(needs) {
                arm(worker, index, side);
            }
        }
    }
}
