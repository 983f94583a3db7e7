//! The queue of entries that have more work without a new event.

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

/// The ready queue, first in, first out.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::keys::Handle;

    #[test]
    fn entries_are_popped_in_order() {
        let mut queue = ReadyQueue::default();
        assert!(queue.pop().is_none() && queue.is_empty());
        (0..3).for_each(|raw| queue.push(Ready::Flow(Handle::from_raw(raw))));
        assert_eq!(queue.len(), 3);
        let Some(Ready::Flow(first)) = queue.pop() else { panic!("an entry of another kind") };
        // An entry with more work is queued after all others.
        queue.push(Ready::Flow(first));
        let order: Vec<u64> = std::iter::from_fn(|| queue.pop())
            .map(|ready| if let Ready::Flow(key) = ready { key.into_raw() } else { u64::MAX })
            .collect();
        assert_eq!(order, [1, 2, 0]);
    }
}
