//! The commands of the control thread: listeners that are opened, closed or reassigned, and the end of the
//! worker.

use super::{Command, Worker};
use crate::io::batch::Local;
use crate::io::listener::ListeningSocket;
use crate::service::ending::Ending;
use crate::service::open::{Closed, Collector, ListRequest};
use crate::service::succession::PassedFlow;
use crate::service::{PoolChange, Service};
use evener_core::spec::Protocol;
use rustix::fd::OwnedFd;
use std::sync::Arc;

impl Worker {
    pub(super) fn execute(&mut self, command: Command) {
        match command {
            Command::Listen { id, service, socket, flows } => match socket {
                ListeningSocket::Stream(socket, unix) => {
                    self.tcp.listen(&mut self.cx, id, service, socket, unix);
                }
                ListeningSocket::Datagram(socket, local) => {
                    self.listen_for_datagrams(id, service, (socket, local), flows);
                }
            },
            Command::Unlisten { id } => self.unlisten(id),
            Command::Assign { id, service } => self.assign(id, &service),
            Command::Refresh { service, pool } => self.refresh(&service, pool),
            Command::List(request) => self.list(&request),
            Command::Close { serial, reply } => reply.send(self.close_numbered(serial)),
            Command::End(ending) => self.end_server(&ending),
            Command::Maintain => self.dns.note_change(),
            Command::Drain => self.drain(),
            Command::Lend(lending) => {
                self.tcp.lend(&lending);
                self.udp.lend(&lending);
                self.dns.lend(&lending);
            }
            Command::Suspend(suspension) => {
                self.cx.set_successor(true);
                self.tcp.suspend(&self.cx, &suspension);
                self.udp.suspend(&self.cx, &suspension);
                self.dns.suspend(&self.cx, &suspension);
            }
            Command::Resume => {
                self.cx.set_successor(false);
                self.tcp.resume_listeners(&mut self.cx);
                self.hand_over();
                self.udp.resume_listeners(&mut self.cx);
                self.dns.resume_listeners(&mut self.cx);
            }
            Command::Pass(passage) => {
                self.tcp.pass(&mut self.cx, |service| passage.includes(service), |relay| passage.give(relay));
            }
            Command::Adopt { service, relay } => self.tcp.adopt_relay(&mut self.cx, &service, *relay),
            Command::Cut => {
                self.tcp.cut_all(&mut self.cx);
                self.http.cut_all(&mut self.cx);
                self.dns.cut_all(&mut self.cx);
            }
            Command::Stop => self.running = false,
        }
        self.tcp.check_warm(self.cx.now);
        self.maintain_dns();
    }

    fn list(&self, request: &ListRequest) {
        let mut collector = Collector::new(request);
        self.tcp.list(&self.cx, &mut collector);
        self.http.list(&self.cx, &mut collector);
        self.udp.list(&self.cx, &mut collector);
        self.dns.list(&self.cx, &mut collector);
        collector.finish();
    }

    /// Closes the connection, session or flow with this number.
    fn close_numbered(&mut self, number: u32) -> Closed {
        let is_closed = self.tcp.close_numbered(&mut self.cx, number)
            || self.http.close_numbered(&mut self.cx, number)
            || self.udp.close_numbered(&self.cx, number)
            || self.dns.close_numbered(&mut self.cx, number);
        if is_closed { Closed::Done } else { Closed::NotFound }
    }

    /// Closes the connections, requests and flows that this worker has with a server.
    fn end_server(&mut self, ending: &Ending) {
        let ended = self.tcp.end_server(&mut self.cx, ending)
            + self.http.end_server(&mut self.cx, ending)
            + self.udp.end_server(&self.cx, ending)
            + self.dns.end_server(&mut self.cx, ending);
        ending.add(ended);
    }

    fn listen_for_datagrams(
        &mut self,
        id: u64,
        service: Arc<Service>,
        (socket, local): (OwnedFd, Local),
        flows: Vec<PassedFlow>,
    ) {
        if service.live.protocol == Protocol::Dns {
            return self.dns.listen(&mut self.cx, id, &service, socket, local);
        }
        self.udp.listen(&mut self.cx, id, service, (socket, local), flows);
    }

    fn unlisten(&mut self, id: u64) {
        self.tcp.unlisten(&mut self.cx, id);
        self.udp.unlisten(&mut self.cx, id);
        self.dns.leave(&self.cx, id);
        self.dns.note_change();
    }

    fn assign(&mut self, id: u64, service: &Arc<Service>) {
        self.tcp.assign(id, service);
        self.assign_datagrams(id, service);
        self.dns.note_change();
    }

    /// Assigns a listener for datagrams to another service, perhaps from UDP to DNS or back.
    fn assign_datagrams(&mut self, id: u64, service: &Arc<Service>) {
        let is_dns = service.live.protocol == Protocol::Dns;
        if is_dns && self.dns.assign(id, service) {
            return;
        }
        if !is_dns {
            self.udp.assign(&mut self.cx, id, service);
            while let Some((socket, local)) = self.dns.release(&mut self.cx, id) {
                self.listen_for_datagrams(id, Arc::clone(service), (socket, local), Vec::new());
            }
            return;
        }
        while let Some((socket, local)) = self.udp.release(&mut self.cx, id) {
            self.dns.listen(&mut self.cx, id, service, socket, local);
        }
    }

    fn refresh(&mut self, service: &str, pool: PoolChange) {
        self.tcp.refresh(service);
        self.udp.refresh(&mut self.cx, service, pool);
        self.dns.note_change();
    }

    fn drain(&mut self) {
        self.tcp.unlisten_all(&mut self.cx);
        self.hand_over();
        self.cx.draining = true;
        self.http.drain(&mut self.cx);
        self.dns.drain(&self.cx);
        self.udp.drain(&mut self.cx);
    }
}
