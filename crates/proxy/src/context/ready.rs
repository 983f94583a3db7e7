//! The queue of those that have more to do without a new event.

use super::keys::{
    ConnectionKey, DatagramListenerKey, DnsClientKey, DnsListenerKey, DnsSocketKey, DnsStreamKey,
    FlowSocketKey, ListenerKey, PersistentKey, SessionKey,
};
use std::collections::VecDeque;

/// An entry of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ready {
    Accept(ListenerKey),
    Relay(ConnectionKey),
    Datagrams(DatagramListenerKey),
    Flow(FlowSocketKey),
    Session(SessionKey),
    DnsListener(DnsListenerKey),
    DnsSocket(DnsSocketKey),
    DnsClient(DnsClientKey),
    DnsStream(DnsStreamKey),
    DnsPersistent(PersistentKey),
}

/// The queue. Each entry has its turn once others had theirs.
#[derive(Debug, Default)]
pub(crate) struct ReadyQueue(VecDeque<Ready>);

impl ReadyQueue {
    pub(crate) fn push(&mut self, ready: Ready) {
        self.0.push_back(ready);
    }

    pub(crate) fn pop(&mut self) -> Option<Ready> {
        self.0.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
