//! Listeners of a worker for connections.

mod succession;

use super::Tcp;
use crate::context::Context;
use crate::context::keys::ListenerKey;
use crate::context::registry::Token;
use crate::io::listener::{self, UnixPath};
use crate::service::hops::save_first_packets;
use crate::service::{Service, preamble};
use evener_core::Time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use std::net::SocketAddr;
use std::sync::Arc;

/// A listener of a worker for connections.
#[derive(Debug)]
pub(super) struct StreamListener {
    id: u64,
    service: Arc<Service>,
    /// Path of a unix socket. The path is removed with the last worker's listener, before the socket is closed,
    /// so that the next instance finds no path without a listener.
    unix: Option<Arc<UnixPath>>,
    socket: OwnedFd,
    /// End of the pause, while accepting is paused.
    paused: Option<Time>,
    /// The next instance is about to take the socket over, or has taken it: clients in the queue are left to it.
    suspended: bool,
}

impl StreamListener {
    /// The service of the listener.
    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Returns whether the next instance takes the socket over.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// End of the pause, while accepting is paused.
    pub(super) fn paused_until(&self) -> Option<Time> {
        self.paused.filter(|_| !self.suspended)
    }

    /// Accepts a client. An empty queue ends a pause.
    pub(super) fn accept(&mut self) -> Result<(OwnedFd, SocketAddr), Errno> {
        match acceptfrom_with(&self.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((client, address)) => Ok((client, preamble::client_address(address))),
            Err(error) => {
                if error == Errno::AGAIN {
                    self.paused = None;
                }
                Err(error)
            }
        }
    }

    /// Pauses accepting. Returns false if accepting was paused already.
    pub(super) fn pause(&mut self, until: Time) -> bool {
        self.paused.replace(until).is_none()
    }

    /// Returns whether the queue of the kernel is empty. If so, a pause ends: the next client will cause an
    /// event.
    pub(super) fn is_queue_empty(&mut self) -> bool {
        let mut queue = [PollFd::new(&self.socket, PollFlags::IN)];
        let is_empty = poll(&mut queue, Some(&Timespec::default())) == Ok(0);
        if is_empty {
            self.paused = None;
        }
        is_empty
    }

    /// Applies the options of a new configuration.
    pub(super) fn reconfigure(&self) {
        listener::reconfigure(&self.socket, &self.service.settings.load().options);
    }
}

/// The paused listeners that resume accepting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paused {
    /// Listeners whose pause has ended.
    Due,
    /// All paused listeners, because a slot became free.
    All,
}

impl Tcp {
    /// Accepts clients at a socket from now on.
    pub(crate) fn listen(
        &mut self,
        cx: &mut Context,
        id: u64,
        service: Arc<Service>,
        socket: OwnedFd,
        unix: Option<Arc<UnixPath>>,
    ) {
        let listener = StreamListener { id, service, unix, socket, paused: None, suspended: false };
        let key = self.listeners.insert(listener);
        if cx.registry.register(&self.listeners[key].socket, Token::Stream(key)).is_ok() {
            self.accept(cx, key);
        }
    }

    /// Closes the listener with this number.
    pub(crate) fn unlisten(&mut self, cx: &mut Context, id: u64) {
        let found = self.listeners.keys(|listener| listener.id == id);
        found.into_iter().for_each(|key| self.close_listener(cx, key));
    }

    /// Closes all listeners.
    pub(crate) fn unlisten_all(&mut self, cx: &mut Context) {
        self.listeners.keys(|_| true).into_iter().for_each(|key| self.close_listener(cx, key));
    }

    /// Accepts the clients in the queue, then closes the listener, so that no connected client is lost. The queue
    /// of a suspended listener belongs to the next instance.
    fn close_listener(&mut self, cx: &mut Context, key: ListenerKey) {
        if !self.listeners[key].suspended {
            self.accept_rest(cx, key);
        }
        if let Some(listener) = self.listeners.remove(key) {
            if let Some(unix) = listener.unix.as_ref().filter(|_| listener.suspended) {
                unix.pass_on();
            }
            cx.registry.deregister(&listener.socket);
        }
    }

    /// Gives the listener with this number to another service.
    pub(crate) fn assign(&mut self, id: u64, service: &Arc<Service>) {
        for (_, listener) in self.listeners.iter_mut().filter(|(_, listener)| listener.id == id) {
            listener.service = Arc::clone(service);
            listener.reconfigure();
        }
    }

    /// The services that have a listener for connections here.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.listeners.iter().map(|(_, listener)| &listener.service)
    }

    /// Applies the present options of a service to its listeners.
    pub(crate) fn refresh(&self, service: &str) {
        let matching = self.listeners.iter().filter(|(_, listener)| *listener.service.live.name == *service);
        matching.for_each(|(_, listener)| listener.reconfigure());
    }

    /// Resumes accepting at paused listeners.
    pub(crate) fn resume_accepting(&mut self, cx: &mut Context, which: Paused) {
        let ready = |paused: Time| which == Paused::All || paused <= cx.now;
        let waiting = self.listeners.keys(|listener| listener.paused_until().is_some_and(ready));
        waiting.into_iter().for_each(|key| self.accept(cx, key));
    }

    /// Makes the listeners of crowded services keep the first packet of each connection, which the detection of
    /// loops needs.
    pub(super) fn watch_crowded(&self, cx: &mut Context) {
        for service in cx.take_crowded() {
            let matching =
                self.listeners.iter().filter(|(_, listener)| listener.service.live.name == service);
            matching.for_each(|(_, listener)| save_first_packets(&listener.socket));
        }
    }
}
