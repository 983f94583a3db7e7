//! TCP clients whose bytes are relayed, and the listeners for all connections. The path of a client is in
//! `five_hops.rs`; clients of HTTP, TLS and DNS are handed over.

mod connection;
mod deadline;
mod five_hops;
mod list;
mod listener;
pub(crate) mod passing;
mod pausing;
mod pending;
mod queued;
mod ring_relay;
#[cfg(test)]
mod tests;
mod warm;

pub(crate) use self::listener::Paused;

use self::listener::StreamListener;
use self::ring_relay::{PendingSend, SideOf};
use self::warm::Warm;
use crate::context::Context;
use crate::context::keys::{ConnectionKey, Table, of};
use crate::context::ring::Generations;
use crate::context::timers::Timers;
use crate::io::relay::Scratch;
use crate::service::accepted::Accepted;
use crate::service::pool_queue;
use crate::tcp::connection::{Connection, Stage};
use evener_core::Time;
use evener_core::limits::Lease;
use evener_core::reason::Reason;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The clients of one worker whose bytes are relayed, and the listeners for all connections.
pub(crate) struct Tcp {
    listeners: Table<of::Listener, StreamListener>,
    connections: Table<of::Connection, Box<Connection>>,
    timers: Timers<ConnectionKey>,
    scratch: Scratch,
    /// Sends in progress in the ring.
    sends: Table<of::Send, PendingSend>,
    /// Receives that ended because no buffer was free.
    starved: Vec<SideOf>,
    /// Sides that received or sent something while the present completions were handled.
    listed: Vec<SideOf>,
    /// Slot for the pending connection attempt of the client that is being accepted.
    pending: Option<Lease>,
    /// Pre-opened connections to servers.
    warm: Warm,
    generations: Generations,
    /// Clients for other components.
    handed_over: VecDeque<Accepted>,
    /// Connections that were closed while the present events were handled.
    closed: Vec<ConnectionKey>,
    /// Reused buffer for the keys of passed deadlines.
    due: Vec<ConnectionKey>,
}

impl Tcp {
    pub(crate) fn new() -> Self {
        Self {
            listeners: Table::default(),
            connections: Table::default(),
            timers: Timers::new(),
            scratch: Scratch::new(),
            sends: Table::default(),
            starved: Vec::new(),
            listed: Vec::new(),
            pending: None,
            warm: Warm::default(),
            generations: Generations::default(),
            handed_over: VecDeque::new(),
            closed: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Time until the next deadline; `None` when there is none.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        let paused = self.listeners.iter().filter_map(|(_, listener)| listener.paused_until()).min();
        let until = [paused, self.warm.due()].into_iter().flatten().min().map(|at| at.since(now));
        [self.timers.wait(now), until].into_iter().flatten().min()
    }

    /// Handles the deadlines that passed, resumes accepting after pauses, and maintains warm connections.
    pub(crate) fn on_deadlines(&mut self, cx: &mut Context) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.expire(cx.now, &mut due);
        due.drain(..).for_each(|key| self.on_deadline(cx, key));
        self.due = due;
        self.resume_accepting(cx, Paused::Due);
        if self.warm.due().is_some_and(|due| due <= cx.now) {
            let services = self.listeners.iter().map(|(_, listener)| listener.service());
            self.warm.maintain(cx, services);
        }
    }

    /// Checks warm connections soon, because services or servers may have changed.
    pub(crate) fn check_warm(&mut self, now: Time) {
        self.warm.check_again(now);
    }

    /// Finishes the handling of the present events: forwards received bytes, restarts receives that lacked a buffer,
    /// and makes the listeners of crowded services keep first packets.
    pub(crate) fn flush(&mut self, cx: &mut Context) {
        self.forward(cx);
        self.feed_starved(cx);
        self.watch_crowded(cx);
    }

    /// Takes the next client that was accepted for another component.
    pub(crate) fn take_accepted(&mut self) -> Option<Accepted> {
        self.handed_over.pop_front()
    }

    /// Closes warm connections and unused pipes; returns the number of freed descriptors.
    pub(crate) fn shed(&mut self, now: Time) -> u32 {
        self.warm.shed(now) + self.scratch.shed_pipes()
    }

    /// Closes all connections, and counts them as cut.
    pub(crate) fn cut_all(&mut self, cx: &mut Context) {
        for key in self.connections.keys(|connection| connection.stage != Stage::Over) {
            let connection = &self.connections[key];
            connection.service.live.counters.of(cx.id).closed.drain_timeout.one();
            connection.note_unserved(cx, Reason::Drain.into());
            self.close(cx, key);
        }
    }

    /// Frees the closed connections, and wakes the workers whose listeners wait for the slots.
    pub(crate) fn reap(&mut self, cx: &mut Context) {
        while let Some(key) = self.closed.pop() {
            let Some(mut connection) = self.connections.remove(key) else { continue };
            connection.from_client.release(&mut self.scratch);
            connection.from_server.release(&mut self.scratch);
            let service = Arc::clone(&connection.service);
            if connection.choice().is_some() {
                pool_queue::note_freed(cx, &connection.backend().pool);
            }
            connection.close(cx.ring.as_mut());
            service.wake_waiting(cx);
        }
    }

    /// Continues a connection from the ready queue.
    pub(crate) fn resume(&mut self, cx: &mut Context, key: ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.leave_ready_queue();
        if matches!(connection.stage, Stage::Relaying | Stage::Lingering) {
            self.relay(cx, key);
        }
    }
}
