//! Datagrams from servers to clients: the responses of many flows of a listener are sent together.

use super::flow::{note_refusal, socket_of};
use super::{BATCHES_MAX, Udp};
use crate::context::Context;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey};
use crate::context::ready::Ready;
use crate::context::report::Report;
use crate::io::batch::{BATCH, Batch, Local, Senders};
use crate::io::connect::is_local_error;
use evener_core::Time;
use evener_core::attempt::{Attempt, FailedTry};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Responses that one listener will send.
#[derive(Debug)]
pub(super) struct Responses {
    batch: Batch,
    listener: DatagramListenerKey,
    count: usize,
}

impl Responses {
    fn new(listener: DatagramListenerKey) -> Self {
        Self { batch: Batch::new(BATCH), listener, count: 0 }
    }

    /// Returns whether responses of this listener can be added.
    fn has_room_for(&self, listener: DatagramListenerKey) -> bool {
        self.count == 0 || (self.count < BATCH && self.listener == listener)
    }
}

impl Udp {
    /// Receives the responses of a flow's server, or its refusal, up to [`BATCHES_MAX`] batches.
    pub(crate) fn on_flow_event(&mut self, cx: &mut Context, socket: FlowSocketKey) {
        for _ in 0..BATCHES_MAX {
            let flow = self.sockets.get(socket).filter(|flow| !flow.is_lent);
            let Some(at) = flow.map(|flow| flow.listener) else { return };
            let mut responses = self.responses.take().unwrap_or_else(|| Box::new(Responses::new(at)));
            if !responses.has_room_for(at) {
                self.send(cx, &mut responses);
            }
            responses.listener = at;
            let room = BATCH - responses.count;
            let from = self.sockets[socket].socket.as_fd();
            let received = responses.batch.receive(from, responses.count, Senders::Ignored, Local::Fixed);
            if let Ok(count) = received {
                self.add(cx, socket, &mut responses, count);
            }
            self.responses = Some(responses);
            match received {
                Ok(count) if count < room => return,
                Ok(_) => {}
                // No further event reports the responses that arrived after the error, so the flow is read
                // again.
                Err(error) => {
                    self.on_refused(cx, socket, error);
                    break;
                }
            }
        }
        cx.ready.push(Ready::Flow(socket));
    }

    /// Addresses and counts the datagrams that were received from a flow's server.
    fn add(&mut self, cx: &Context, socket: FlowSocketKey, responses: &mut Responses, count: usize) {
        if count == 0 {
            return;
        }
        let flow = &mut self.sockets[socket];
        let mut bytes = 0;
        for index in responses.count..responses.count + count {
            responses.batch.set_destination(index, flow.key.sender(), flow.key.local);
            bytes += responses.batch.len(index) as u64;
        }
        responses.count += count;
        let is_first = flow.responded_at == Time::ZERO;
        flow.responded_at = cx.now;
        let server = &flow.choice.server;
        let of_server = server.live.counters.of(cx.id);
        if is_first {
            of_server.response_seconds.record_since(flow.begun_at, cx.now);
        }
        of_server.datagrams_out.add(count as u64);
        of_server.bytes_out.add(bytes);
        if let Some(record) = &flow.identity.record {
            record.moved(0, bytes, cx.now);
        }
        if let Some(entry) = &flow.entry {
            entry.moved(0, bytes, cx.now);
        }
        let Some(listener) = self.listeners.get(responses.listener) else { return };
        listener.service.live.counters.of(cx.id).bytes_out.add(bytes);
        if server.live.suspect.load(Ordering::Relaxed) {
            let pool = flow.class.backend(&listener.service.settings.load()).pool.load().pool.clone();
            cx.report(Report::Success { pool, server: server.id, target: server.target.clone() });
        }
    }

    /// Moves a flow whose server refused a datagram (ICMP) to another server, before its client sends again.
    fn on_refused(&mut self, cx: &mut Context, socket: FlowSocketKey, error: Errno) {
        let Some(flow) = self.sockets.get(socket) else { return };
        let Some(listener) = self.listeners.get(flow.listener) else { return };
        // A flow that ended or moved while the present events were handled has another socket, or none. An
        // error about the size of packets concerns datagrams, not the server.
        let is_current = listener.flows.peek(&flow.key).is_some_and(|flow| socket_of(flow) == socket);
        if !is_current || error == Errno::MSGSIZE || is_local_error(error) {
            return;
        }
        let service = Arc::clone(&listener.service);
        let settings = service.settings.load_full();
        let snapshot = flow.class.backend(&settings).pool.load_full();
        let mut attempt = Attempt::uncounted(cx.id);
        attempt.failed(flow.choice.server.id, flow.choice.why, FailedTry::QUICK);
        note_refusal(cx, &snapshot, &flow.choice.server, error);
        // Without another server, `move_on` reports that and ends the flow.
        let _ = self.move_on(cx, socket, (&settings, &snapshot), &mut attempt);
    }

    /// Sends the queued responses.
    pub(crate) fn flush(&mut self, cx: &Context) {
        if let Some(mut responses) = self.responses.take() {
            self.send(cx, &mut responses);
            self.responses = Some(responses);
        }
    }

    fn send(&self, cx: &Context, responses: &mut Responses) {
        let count = std::mem::take(&mut responses.count);
        let Some(listener) = self.listeners.get(responses.listener).filter(|_| count > 0) else { return };
        let sent = responses.batch.send_addressed(listener.socket.as_fd(), 0..count);
        let counters = listener.service.live.counters.of(cx.id);
        counters.datagrams_out.add(sent.count() as u64);
        counters.drops.send_full.add((count - sent.count()) as u64);
    }
}
