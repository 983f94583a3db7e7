//! Requests to the workers to leave their listeners to the next instance: copies of the descriptors, and the suspension
//! of the listeners. The outcome is sent when the last worker drops its request.

use evener_core::flow::FlowKey;
use evener_core::lock::lock;
use evener_core::{Target, Time};
use rustix::fd::OwnedFd;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

/// Maximum number of flows that pass to the next instance. Datagrams wait meanwhile.
const FLOWS_MAX: usize = 1 << 16;

/// A flow between two processes.
#[derive(Debug)]
pub struct PassedFlow {
    /// Number of the listening socket, by [`socket_number`](crate::socket_number).
    pub listener: u64,
    /// The client, and the address that it sends to. The lane is the id of the server in the process that passes the
    /// flow on.
    pub key: FlowKey,
    /// Name of the server.
    pub server: Arc<str>,
    /// Address of the server.
    pub target: Target,
    /// Time of the first datagram of the client.
    pub begun_at: Time,
    /// Time of the last datagram of the client.
    pub used_at: Time,
    /// Time of the last response; zero without one.
    pub responded_at: Time,
    /// The socket to the server.
    pub socket: OwnedFd,
}

/// A copied descriptor of a listener.
#[derive(Debug)]
pub struct Lent {
    /// Id of the listener, from the plane.
    pub listener: u64,
    /// The descriptor. The queue belongs to all copies.
    pub socket: OwnedFd,
}

/// Receives the copies of all workers.
type Done<T> = Box<dyn FnOnce(T) + Send>;

/// A request to all workers to copy the descriptors of their listeners. When the last worker drops the request,
/// the copies are sent.
pub(crate) struct Lending {
    lent: Mutex<io::Result<Vec<Lent>>>,
    done: Mutex<Option<Done<io::Result<Vec<Lent>>>>>,
}

impl Lending {
    pub(crate) fn new(done: impl FnOnce(io::Result<Vec<Lent>>) + Send + 'static) -> Self {
        Self { lent: Mutex::new(Ok(Vec::new())), done: Mutex::new(Some(Box::new(done))) }
    }

    /// Adds a copy of a descriptor. The first failure is the outcome of the request.
    pub(crate) fn add(&self, listener: u64, socket: &OwnedFd) {
        let mut lent = lock(&self.lent);
        match (socket.try_clone(), &mut *lent) {
            (Ok(socket), Ok(lent)) => lent.push(Lent { listener, socket }),
            (Err(error), Ok(_)) => *lent = Err(error),
            (_, Err(_)) => {}
        }
    }
}

impl Drop for Lending {
    fn drop(&mut self) {
        let lent = std::mem::replace(&mut *lock(&self.lent), Ok(Vec::new()));
        if let Some(done) = lock(&self.done).take() {
            done(lent);
        }
    }
}

impl fmt::Debug for Lending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lending").finish_non_exhaustive()
    }
}

/// A request to all workers to suspend listeners. When the last worker drops the request, the listeners are read
/// no more.
pub(crate) struct Suspension {
    listeners: BTreeSet<u64>,
    /// Flows that the next instance continues.
    flows: Mutex<Vec<PassedFlow>>,
    done: Mutex<Option<Done<Vec<PassedFlow>>>>,
}

impl Suspension {
    pub(crate) fn new(listeners: BTreeSet<u64>, done: impl FnOnce(Vec<PassedFlow>) + Send + 'static) -> Self {
        Self { listeners, flows: Mutex::default(), done: Mutex::new(Some(Box::new(done))) }
    }

    /// Adds a flow for the next instance. Returns false if there are too many.
    pub(crate) fn add(&self, flow: PassedFlow) -> bool {
        let mut flows = lock(&self.flows);
        let has_room = flows.len() < FLOWS_MAX;
        if has_room {
            flows.push(flow);
        }
        has_room
    }

    /// Returns whether the listener is to be suspended.
    pub(crate) fn includes(&self, listener: u64) -> bool {
        self.listeners.contains(&listener)
    }
}

impl Drop for Suspension {
    fn drop(&mut self) {
        if let Some(done) = lock(&self.done).take() {
            done(std::mem::take(&mut *lock(&self.flows)));
        }
    }
}

impl fmt::Debug for Suspension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspension").finish_non_exhaustive()
    }
}
