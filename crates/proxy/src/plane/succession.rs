//! The hand-over of listeners and relays to the next instance, and from the previous one. The workers copy the
//! descriptors of their listeners, then suspend them: queued clients and datagrams stay in the sockets, which the next
//! instance reads. If it fails, the listeners resume.

use super::Plane;
use crate::service::Service;
use crate::service::succession::{Lending, Lent, PassedFlow, Suspension};
use crate::tcp::passing::PassedRelay;
use crate::worker::{Command, Passage};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

impl Plane {
    /// Takes the relays of these services out, those that can pass to another process. `receive` is called on the
    /// threads of the workers, so it must not block.
    pub fn pass(
        &self,
        services: &Arc<BTreeSet<Arc<str>>>,
        receive: impl Fn(PassedRelay) + Send + Sync + 'static,
    ) {
        let passage = Arc::new(Passage::new(services, receive));
        self.send(|| Command::Pass(Arc::clone(&passage)));
    }

    /// Continues a relay of another process, at one of the workers.
    pub fn adopt(&mut self, service: &Arc<Service>, relay: PassedRelay) {
        self.adopted = self.adopted.wrapping_add(1);
        let inbox = &self.inboxes[self.adopted % self.inboxes.len()];
        self.count_command();
        let _ = inbox.send(Command::Adopt { service: Arc::clone(service), relay: Box::new(relay) });
        self.wake();
    }

    /// Lets listeners begin only after [`Plane::release`].
    pub fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Lets the held listeners begin, with the flows of the previous instance. Later listeners begin at once.
    pub fn release(&mut self, flows: Vec<PassedFlow>) {
        let mut by_listener: BTreeMap<u64, Vec<PassedFlow>> = BTreeMap::new();
        for flow in flows {
            by_listener.entry(flow.listener).or_default().push(flow);
        }
        for (id, service, bound) in self.held.take().unwrap_or_default() {
            self.begin_to_listen(id, &service, bound, &mut by_listener);
        }
    }

    /// Copies the descriptors of all listeners. `done` is called on a worker's thread, so it must not block.
    pub fn lend(&self, done: impl FnOnce(io::Result<Vec<Lent>>) + Send + 'static) {
        let lending = Arc::new(Lending::new(done));
        self.send(|| Command::Lend(Arc::clone(&lending)));
    }

    /// Reads nothing more from these listeners. They stay open, and [`Plane::resume`] lets them continue;
    /// [`Plane::drain`] leaves their queues to the next instance. `done` is called on a worker's thread as soon as
    /// no worker reads, with the flows for the next instance, so it must not block.
    pub fn suspend(&self, listeners: BTreeSet<u64>, done: impl FnOnce(Vec<PassedFlow>) + Send + 'static) {
        let suspension = Arc::new(Suspension::new(listeners, done));
        self.send(|| Command::Suspend(Arc::clone(&suspension)));
    }

    /// Continues the suspended listeners.
    pub fn resume(&self) {
        self.send(|| Command::Resume);
    }
}
