//! What servers send, on its way to clients: the responses of many flows leave a listener together.

use super::flow::{Wish, socket_of};
use super::{BATCHES_MAX, Udp};
use crate::context::Context;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey};
use crate::context::ready::Ready;
use crate::context::report::Report;
use crate::io::batch::{BATCH, Batch, Local, Names};
use crate::io::connect::is_ours;
use evener_core::attempt::{Attempt, Cost};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The answers that wait to be sent by one listener.
#[derive(Debug)]
pub(crate) struct Answers {
    batch: Batch,
    listener: DatagramListenerKey,
    count: usize,
}

impl Answers {
    fn new(listener: DatagramListenerKey) -> Self {
        Self { batch: Batch::new(BATCH), listener, count: 0 }
    }
}

impl Udp {
    /// A server answered, or refused.
    pub(crate) fn on_flow_event(&mut self, cx: &mut Context, slot: FlowSocketKey) {
        for _ in 0..BATCHES_MAX {
            let Some(flow) = self.flows.get(slot) else { return };
            let index = flow.listener;
            let mut answers = self.answers.take().unwrap_or_else(|| Box::new(Answers::new(index)));
            if answers.count == BATCH || (answers.count > 0 && answers.listener != index) {
                self.flush(cx, &mut answers);
            }
            answers.listener = index;
            let room = BATCH - answers.count;
            let received = answers.batch.receive(
                self.flows[slot].socket.as_fd(),
                answers.count,
                Names::Unwanted,
                Local::Fixed,
            );
            if let Ok(count) = received {
                self.take_answers(cx, slot, &mut answers, count);
            }
            self.answers = Some(answers);
            match received {
                Ok(count) if count < room => return,
                Ok(_) => {}
                // What else is there makes no further event.
                Err(error) => {
                    self.on_refused(cx, slot, error);
                    break;
                }
            }
        }
        cx.ready.push(Ready::Flow(slot));
    }

    fn take_answers(&mut self, cx: &mut Context, slot: FlowSocketKey, answers: &mut Answers, count: usize) {
        let flow = &mut self.flows[slot];
        let mut bytes = 0;
        for at in answers.count..answers.count + count {
            answers.batch.address(at, flow.key.sender(), flow.key.local);
            bytes += answers.batch.len(at) as u64;
        }
        answers.count += count;
        if count > 0 {
            flow.answered_at = cx.now;
            let server = &flow.choice.server;
            if server.live.suspect.load(Ordering::Relaxed)
                && let Some(listener) = self.listeners.get(answers.listener)
            {
                let pool = flow.party.backend(&listener.service.settings.load()).pool.load().pool.clone();
                (cx.report)(Report::Success { pool, server: server.id, target: server.target.clone() });
            }
            let of_server = flow.choice.server.live.counters.of(cx.id);
            of_server.datagrams_out.add(count as u64);
            of_server.bytes_out.add(bytes);
            if let Some(record) = &flow.identity.record {
                record.moved(0, bytes, cx.now);
            }
            if let Some(listener) = self.listeners.get(answers.listener) {
                listener.service.live.counters.of(cx.id).bytes_out.add(bytes);
            }
        }
    }

    /// ICMP says that nobody is there: the flow goes on at another server, before its client sends again.
    fn on_refused(&mut self, cx: &mut Context, slot: FlowSocketKey, error: Errno) {
        let Some(flow) = self.flows.get(slot) else { return };
        let (index, key, party) = (flow.listener, flow.key, flow.party);
        let mut attempt = Attempt::new();
        attempt.failed(flow.choice.server.id, flow.choice.why, Cost::Quick);
        // A flow that ended or moved during the present events has another slot, or none. And what is said of the size of
        // packets on the way (ICMP) concerns datagrams, not the server.
        let current = self.listeners.get(index).and_then(|listener| listener.flows.peek(&key));
        if current.is_none_or(|flow| socket_of(flow) != slot) || error == Errno::MSGSIZE || is_ours(error) {
            return;
        }
        let service = Arc::clone(&self.listeners[index].service);
        let settings = service.settings.load_full();
        let snapshot = party.backend(&settings).pool.load_full();
        self.note_refusal(cx, &snapshot, slot, error);
        let identity = self.flows.get(slot).map(|flow| flow.identity.clone());
        let wish = Wish { key, ttl: None, party, identity, settings: &settings, snapshot: &snapshot };
        if self.begin(cx, index, &wish, &mut attempt).is_ok() {
            service.live.counters.of(cx.id).flows_moved.one();
        }
    }

    /// Sends the answers that wait.
    pub(crate) fn flush_answers(&mut self, cx: &mut Context) {
        if let Some(mut answers) = self.answers.take() {
            self.flush(cx, &mut answers);
            self.answers = Some(answers);
        }
    }

    fn flush(&mut self, cx: &mut Context, answers: &mut Answers) {
        let count = std::mem::take(&mut answers.count);
        let Some(listener) = self.listeners.get(answers.listener).filter(|_| count > 0) else { return };
        let sent = answers.batch.send_addressed(listener.socket.as_fd(), 0, count);
        let counters = listener.service.live.counters.of(cx.id);
        counters.datagrams_out.add(sent.taken as u64);
        counters.drop_send_full.add((count - sent.taken) as u64);
    }
}
