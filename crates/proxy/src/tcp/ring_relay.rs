//! The relay over io_uring: a multishot receive for each side, and a send for each buffer that a receive fills.
//! One system call submits and completes the operations of many connections.
//!
//! This relay is for small messages to sinks that do not block. A connection changes permanently to the epoll
//! relay when it moves bulk data (splice is cheaper), when its sink blocks (the waiting bytes would occupy
//! buffers that other connections need), or when its sink is closed.

use crate::context::Context;
use crate::context::keys::{ConnectionKey, SendKey};
use crate::context::registry::Token;
use crate::context::ring::{BUFFER_BYTES, Completion, ConnectId, Mark, Piece, Received};
use crate::io::relay::{End, Pumped};
use crate::tcp::Tcp;
use crate::tcp::connection::{Connection, Stage, Step};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::VecDeque;

/// Number of consecutive full buffers that count as bulk data.
const FULL_MAX: u8 = 4;
/// Maximum number of buffers that wait for a sink. With more, the sink counts as blocked.
const WAITING_MAX: usize = 4;
/// Number of free buffers below which connections with slow sinks leave the ring.
const BUFFERS_LOW: u16 = 16;

/// State of a connection in the ring.
#[derive(Debug, Default)]
pub(super) struct RingState {
    sides: [Side; 2],
    leaving: bool,
}

impl RingState {
    /// Returns the number of bytes of a side that wait for the sink.
    pub(super) fn waiting(&self, side: usize) -> usize {
        self.sides[side].waiting.iter().map(Piece::len).sum()
    }
}

/// One direction: 0 from the client, 1 from the server.
#[derive(Debug, Default)]
struct Side {
    /// A receive is in progress.
    armed: bool,
    /// The send in progress.
    sending: Option<SendKey>,
    waiting: VecDeque<Piece>,
    /// The side is in the list of sides that [`Tcp::forward`] continues.
    listed: bool,
    full: u8,
    end: Option<End>,
}

/// A send in progress; its buffer is occupied until it completes.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingSend {
    connect: ConnectId,
    side: usize,
    piece: Piece,
}

/// One direction of a connection to a server, which may be gone by now.
#[derive(Clone, Copy, Debug)]
pub(super) struct SideOf {
    connect: ConnectId,
    side: usize,
}

fn mark(connect: ConnectId, side: usize) -> Mark {
    Mark::Receive { connect, side: side as u8 }
}

fn source(connection: &Connection, side: usize) -> Option<&OwnedFd> {
    if side == 0 { Some(&connection.client) } else { connection.server_socket() }
}

impl Tcp {
    /// Begins to relay a connection in the ring, after the server is connected.
    pub(super) fn adopt(&mut self, cx: &mut Context, key: ConnectionKey) {
        self.connections[key].ring = Some(Box::default());
        (0..2).for_each(|side| self.arm(cx, key, side));
    }

    fn arm(&mut self, cx: &mut Context, key: ConnectionKey, side: usize) {
        let connection = &mut self.connections[key];
        let Some(connect) = connection.connect_id(key) else { return };
        let mark = mark(connect, side);
        let Some(ring) = &mut cx.ring else { return };
        let Some(socket) = source(connection, side) else { return };
        ring.receive(socket, mark);
        if let Some(state) = &mut connection.ring {
            state.sides[side].armed = true;
        }
    }

    /// Handles a completion.
    pub(crate) fn on_completion(&mut self, cx: &mut Context, completion: Completion) {
        match completion.mark() {
            Mark::Receive { connect, side } => self.on_received(cx, connect, usize::from(side), &completion),
            Mark::Send(key) => self.on_sent(cx, key, completion.result()),
            Mark::Connect(connect) => {
                if let Some(key) = self.current(connect) {
                    self.on_connect_completed(cx, key, completion.result());
                }
            }
            Mark::Epoll | Mark::Nothing => {}
        }
    }

    /// The open connection that `connect` belongs to; `None` if that connection is closed, or has another
    /// connection to a server now.
    fn current(&self, connect: ConnectId) -> Option<ConnectionKey> {
        let key = self.connections.key_at(connect.slot())?;
        let connection = &self.connections[key];
        let is_current = connection.connect_id(key) == Some(connect) && connection.stage != Stage::Over;
        is_current.then_some(key)
    }

    fn on_received(&mut self, cx: &mut Context, connect: ConnectId, side: usize, completion: &Completion) {
        let Some(ring) = &mut cx.ring else { return };
        let received = ring.take_received(completion);
        let current = self.current(connect);
        let state = current.and_then(|key| self.connections[key].ring.as_mut().map(|state| (key, state)));
        let Some((key, state)) = state else {
            if let Received::Bytes(piece) = received {
                ring.give_back(piece);
            }
            return;
        };
        let one = &mut state.sides[side];
        one.armed &= completion.continues();
        match received {
            Received::Bytes(piece) => {
                one.full = if piece.len() == BUFFER_BYTES { one.full + 1 } else { 0 };
                one.waiting.push_back(piece);
                if side == 0
                    && let Some(tap) = self.connections[key].tap(cx.id)
                {
                    tap.piece(ring.bytes(piece));
                }
            }
            Received::End => one.end = Some(End::Fin),
            Received::NoBuffers => {
                self.starved.push(SideOf { connect, side });
                return self.advance(cx, key, side, Arm::Later);
            }
            Received::Cancelled => {}
            Received::Failed(error) => one.end = Some(End::Error(error)),
        }
        self.list_side(key, SideOf { connect, side });
    }

    /// Continues a side after all present completions, because the end of its source is often among them.
    fn list_side(&mut self, key: ConnectionKey, of: SideOf) {
        let Some(state) = &mut self.connections[key].ring else { return };
        if !std::mem::replace(&mut state.sides[of.side].listed, true) {
            self.listed.push(of);
        }
    }

    /// Continues the sides with completions: sends, receives or ends.
    pub(super) fn forward(&mut self, cx: &mut Context) {
        let mut listed = std::mem::take(&mut self.listed);
        for SideOf { connect, side } in listed.drain(..) {
            let Some(key) = self.current(connect) else { continue };
            if let Some(state) = &mut self.connections[key].ring {
                state.sides[side].listed = false;
                self.advance(cx, key, side, Arm::Now);
            }
        }
        self.listed = listed;
    }
}

/// Time of the next receive, after a receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arm {
    Now,
    Later,
}

impl Tcp {
    /// Continues one side: sends, receives or ends.
    fn advance(&mut self, cx: &mut Context, key: ConnectionKey, side: usize, arming: Arm) {
        let Some(state) = &mut self.connections[key].ring else { return };
        if state.leaving {
            return self.finish_leaving(cx, key);
        }
        let one = &state.sides[side];
        let (ended, sending, armed) = (one.end, one.sending.is_some(), one.armed);
        if one.full >= FULL_MAX || one.waiting.len() > WAITING_MAX + usize::from(!sending) {
            return self.leave(cx, key);
        }
        if !sending && ended == Some(End::Fin) && !self.connections[key].ends_both(side == 0, side == 1) {
            return self.send_last(cx, key, side);
        }
        if !sending
            && !self.send_next(cx, key, side)
            && let Some(end) = ended
        {
            return self.conclude(cx, key, side, Pumped::Ended(end));
        }
        if !armed && ended.is_none() && arming == Arm::Now {
            self.arm(cx, key, side);
        }
    }

    /// Sends the first piece that waits; returns false when there is none.
    fn send_next(&mut self, cx: &mut Context, key: ConnectionKey, side: usize) -> bool {
        let Some(connect) = self.connections[key].connect_id(key) else { return false };
        let Some(piece) = self.next_piece(key, side) else { return false };
        let connection = &mut self.connections[key];
        let Some(state) = &mut connection.ring else { return false };
        let send = self.sends.insert(PendingSend { connect, side, piece });
        state.sides[side].sending = Some(send);
        if let (Some(ring), Some(sink)) = (&mut cx.ring, source(connection, 1 - side)) {
            ring.send(sink, piece, Mark::Send(send));
        }
        true
    }

    /// Sends the last pieces of a side, and ends its sink. The kernel holds the pieces back (`MSG_MORE`) until the
    /// end follows, so that both share a packet, and the peer wakes up once.
    fn send_last(&mut self, cx: &mut Context, key: ConnectionKey, side: usize) {
        while let Some(piece) = self.next_piece(key, side) {
            let (Some(ring), Some(sink)) = (&mut cx.ring, source(&self.connections[key], 1 - side)) else {
                return;
            };
            let flags = SendFlags::MORE | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let result = rustix::net::send(sink, ring.bytes(piece), flags).map(|sent| sent as u32);
            let sent = result.unwrap_or(0);
            if piece.after(sent).is_none() {
                ring.give_back(piece);
            }
            self.note_sent(cx, key, side, (piece, sent));
            match result {
                Ok(_) if piece.after(sent).is_none() => {}
                Ok(_) => return self.leave(cx, key),
                Err(error) => return self.on_send_failed(cx, key, side, error),
            }
        }
        self.conclude(cx, key, side, Pumped::Ended(End::Fin));
    }

    /// Takes the first piece that waits.
    fn next_piece(&mut self, key: ConnectionKey, side: usize) -> Option<Piece> {
        self.connections[key].ring.as_mut()?.sides[side].waiting.pop_front()
    }

    fn on_sent(&mut self, cx: &mut Context, send: SendKey, result: Result<u32, Errno>) {
        let Some(PendingSend { connect, side, piece }) = self.sends.remove(send) else { return };
        let sent = result.unwrap_or(0);
        let alive = self.current(connect).filter(|&key| self.connections[key].ring.is_some());
        if alive.is_none() || piece.after(sent).is_none() {
            cx.ring.iter_mut().for_each(|ring| ring.give_back(piece));
        }
        let Some(key) = alive else { return };
        self.note_sent(cx, key, side, (piece, sent));
        match result {
            Ok(_) => self.list_side(key, SideOf { connect, side }),
            Err(error) => self.on_send_failed(cx, key, side, error),
        }
    }

    /// Counts the sent bytes of a piece. The rest of it waits.
    fn note_sent(&mut self, cx: &Context, key: ConnectionKey, side: usize, (piece, sent): (Piece, u32)) {
        let connection = &mut self.connections[key];
        let (bytes_in, bytes_out) = if side == 0 { (sent, 0) } else { (0, sent) };
        connection.count(u64::from(bytes_in), u64::from(bytes_out), cx.id, cx.now);
        let Some(state) = &mut connection.ring else { return };
        state.sides[side].sending = None;
        if let Some(rest) = piece.after(sent) {
            state.sides[side].waiting.push_front(rest);
        }
    }

    fn on_send_failed(&mut self, cx: &mut Context, key: ConnectionKey, side: usize, error: Errno) {
        match error {
            // The send was cancelled because the connection leaves the ring, or the sink blocks (EAGAIN).
            Errno::CANCELED | Errno::AGAIN | Errno::INTR => self.leave(cx, key),
            error => self.conclude(cx, key, side, Pumped::SinkClosed(error)),
        }
    }

    /// Handles the end of a direction, or the close of its sink.
    fn conclude(&mut self, cx: &mut Context, key: ConnectionKey, side: usize, outcome: Pumped) {
        let (up, down) = if side == 0 { (outcome, Pumped::Waiting) } else { (Pumped::Waiting, outcome) };
        let ended = outcome == Pumped::Ended(End::Fin);
        if ended && self.connections[key].ends_both(side == 0, side == 1) {
            // The epoll relay delivers the bytes of the other side.
            return self.leave(cx, key);
        }
        match self.connections[key].conclude(up, down, &mut self.scratch, cx.id) {
            // The server receives no more bytes: the epoll relay drains the client.
            Step::Again => self.leave(cx, key),
            Step::Linger => {
                self.follow(cx, key, Step::Linger);
                self.leave(cx, key);
            }
            step => self.follow(cx, key, step),
        }
    }

    /// Hands the connection over to the epoll relay, as soon as no operation is in progress.
    pub(super) fn leave(&mut self, cx: &mut Context, key: ConnectionKey) {
        self.cancel(cx, key);
        if let Some(state) = &mut self.connections[key].ring {
            state.leaving = true;
        }
        self.finish_leaving(cx, key);
    }

    /// Cancels all operations in progress.
    fn cancel(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &self.connections[key];
        let (Some(state), Some(ring)) = (&connection.ring, &mut cx.ring) else { return };
        let Some(connect) = connection.connect_id(key) else { return };
        if state.leaving {
            return;
        }
        for (side, one) in state.sides.iter().enumerate() {
            if one.armed {
                ring.cancel(mark(connect, side));
            }
            one.sending.into_iter().for_each(|send| ring.cancel(Mark::Send(send)));
        }
    }

    fn finish_leaving(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &mut self.connections[key];
        let busy = |state: &RingState| state.sides.iter().any(|one| one.armed || one.sending.is_some());
        let Some(mut state) = connection.ring.take_if(|state| !busy(state)) else { return };
        let Some(ring) = &mut cx.ring else { return };
        let directions = [&mut connection.from_client, &mut connection.from_server];
        for (one, direction) in state.sides.iter_mut().zip(directions) {
            let mut rest = Vec::new();
            for piece in one.waiting.drain(..) {
                rest.extend_from_slice(ring.bytes(piece));
                ring.give_back(piece);
            }
            direction.resume(rest, one.end);
        }
        let mut registered = cx.registry.register(&connection.client, Token::Client(key)).is_ok();
        if let Some(socket) = connection.server_socket() {
            registered &= cx.registry.register(socket, Token::Server(key)).is_ok();
        }
        if registered { self.relay(cx, key) } else { self.close(cx, key) }
    }

    /// Cancels an abandoned connection attempt. The operation holds the socket, so without this the kernel would
    /// continue the attempt after the close.
    pub(super) fn cancel_connect(&mut self, cx: &mut Context, key: ConnectionKey) {
        let connection = &self.connections[key];
        // Connections with a preamble use epoll.
        if connection.stage != Stage::Connecting || connection.has_preamble() {
            return;
        }
        if let (Some(connect), Some(ring)) = (connection.connect_id(key), &mut cx.ring) {
            ring.cancel(Mark::Connect(connect));
        }
    }

    /// Cancels the operations of a closed connection, and drops the pieces that wait.
    pub(super) fn abandon(&mut self, cx: &mut Context, key: ConnectionKey) {
        self.cancel_connect(cx, key);
        self.cancel(cx, key);
        let (Some(mut state), Some(ring)) = (self.connections[key].ring.take(), &mut cx.ring) else {
            return;
        };
        for piece in state.sides.iter_mut().flat_map(|one| one.waiting.drain(..)) {
            ring.give_back(piece);
        }
    }

    /// Restarts receives that ended because no buffer was free. If slow sinks occupy most buffers, the
    /// connections with these sinks change to the epoll relay first.
    pub(super) fn feed_starved(&mut self, cx: &mut Context) {
        if self.starved.is_empty() {
            return;
        }
        if cx.ring.as_ref().is_some_and(|ring| ring.buffers_left() < BUFFERS_LOW) {
            let holds = |connection: &Connection| {
                let holds = |state: &RingState| state.sides.iter().any(|one| one.sending.is_some());
                connection.stage != Stage::Over && connection.ring.as_deref().is_some_and(holds)
            };
            let holders = self.connections.keys(|connection| holds(connection));
            holders.into_iter().for_each(|key| self.leave(cx, key));
        }
        if cx.ring.as_ref().is_none_or(|ring| ring.buffers_left() == 0) {
            return;
        }
        for SideOf { connect, side } in std::mem::take(&mut self.starved) {
            if let Some(key) = self.current(connect) {
                let needs = |state: &RingState| {
                    !state.leaving && !state.sides[side].armed && state.sides[side].end.is_none()
                };
                if self.connections[key].ring.as_deref().is_some_and(needs) {
                    self.arm(cx, key, side);
                }
            }
        }
    }
}
