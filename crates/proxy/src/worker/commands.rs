//! What the control thread wants of a worker: listeners that come, go and change hands, and the end.

use super::{Command, Worker};
use crate::context::registry::Token;
use crate::dns;
use crate::http;
use crate::http::exchange;
use crate::http::session::{self, Mode};
use crate::io::batch::Local;
use crate::service::ending::Ending;
use crate::service::hops::FlowWatch;
use crate::service::open::{Closed, Collector, Question};
use crate::service::{PoolIs, Service};
use crate::udp::{self, DatagramListener};
use evener_core::flow::{FlowTable, Turns};
use evener_core::spec::{Protocol, Transport};
use rustix::fd::OwnedFd;
use std::sync::Arc;

impl Worker {
    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Listen { id, service, socket, transport, local, unix } => match transport {
                Transport::Stream => self.tcp.listen(&mut self.cx, id, service, socket, unix),
                Transport::Datagram => self.listen_for_datagrams(id, service, socket, local),
            },
            Command::Unlisten { id } => self.unlisten(id),
            Command::Assign { id, service } => self.assign(id, &service),
            Command::Refresh { service, pool } => self.refresh(&service, pool),
            Command::List(question) => self.list(&question),
            Command::Close { serial, hearer } => hearer.tell(self.close_numbered(serial)),
            Command::End(ending) => self.end_server(&ending),
            Command::Tend => dns::tend(self),
            Command::Drain => self.drain(),
            Command::Cut => {
                self.tcp.cut_all(&mut self.cx);
                let all: Vec<usize> = self.http.sessions.iter().map(|(index, _)| index).collect();
                all.into_iter().for_each(|index| self.cut_session(index));
                dns::cut_all(self);
            }
            Command::Stop => self.running = false,
        }
        self.tcp.look_at_warm(self.cx.now);
    }

    fn list(&self, question: &Question) {
        let mut collector = Collector::new(question);
        self.tcp.list(&self.cx, &mut collector);
        self.http.list(&self.cx, &mut collector);
        self.udp.list(&self.cx, &mut collector);
        self.dns.list(&self.cx, &mut collector);
        collector.finish();
    }

    /// Closes the connection, session or flow with this number.
    fn close_numbered(&mut self, number: u32) -> Closed {
        let is_closed = self.tcp.close_numbered(&mut self.cx, number)
            || http::close_numbered(self, number)
            || udp::close(self, number)
            || dns::close_numbered(self, number);
        if is_closed { Closed::Done } else { Closed::Nobody }
    }

    /// Ends what this worker has of a server.
    fn end_server(&mut self, ending: &Ending) {
        let ended = self.tcp.end_server(&mut self.cx, ending)
            + exchange::end_server(self, ending)
            + udp::end_server(self, ending)
            + dns::end_server(self, ending);
        ending.add(ended);
    }

    fn cut_session(&mut self, index: usize) {
        let session = &self.http.sessions[index];
        if !matches!(session.mode, Mode::Over) {
            session.service.live.counters.of(self.cx.id).cut.one();
            session::close(self, index);
        }
    }

    fn listen_for_datagrams(&mut self, id: u64, service: Arc<Service>, socket: OwnedFd, local: Local) {
        if service.protocol == Protocol::Dns {
            return dns::listen(self, id, &service, socket, local);
        }
        let settings = service.settings.load_full();
        let (size, idle) = (udp::table_size(&settings, self.cx.workers), udp::flow_idle(&settings));
        let flows = FlowTable::new(size, idle, self.cx.random.bits());
        let turns = Turns::new(size, self.cx.random.bits());
        let listener = DatagramListener {
            id,
            service,
            socket,
            local,
            flows,
            turns,
            leaving: None,
            watch: FlowWatch::default(),
        };
        let index = self.udp.listeners.insert(listener);
        if self.cx.registry.register(&self.udp.listeners[index].socket, Token::Datagrams(index)).is_ok() {
            udp::on_listener_event(self, index);
        }
    }

    fn unlisten(&mut self, id: u64) {
        self.tcp.unlisten(&mut self.cx, id);
        if let Some(index) =
            self.udp.listeners.iter().find(|(_, listener)| listener.id == id).map(|(index, _)| index)
        {
            udp::leave(self, index);
            udp::close_left(self);
        }
        dns::leave(self, id);
        dns::tend(self);
    }

    fn assign(&mut self, id: u64, service: &Arc<Service>) {
        self.tcp.assign(id, service);
        self.assign_datagrams(id, service);
        dns::tend(self);
    }

    /// What a listener for datagrams becomes another one's may be spoken otherwise.
    fn assign_datagrams(&mut self, id: u64, service: &Arc<Service>) {
        let is_dns = service.protocol == Protocol::Dns;
        if is_dns && dns::assign(self, id, service) {
            return;
        }
        if let Some((socket, local)) = dns::release(self, id) {
            return self.listen_for_datagrams(id, Arc::clone(service), socket, local);
        }
        let Some(index) =
            self.udp.listeners.iter().find(|(_, listener)| listener.id == id).map(|(index, _)| index)
        else {
            return;
        };
        udp::end_all(self, index);
        if is_dns {
            udp::flush_answers(self);
            let DatagramListener { socket, local, .. } = self.udp.listeners.remove(index);
            self.cx.registry.deregister(&socket);
            return dns::listen(self, id, service, socket, local);
        }
        self.udp.listeners[index].service = Arc::clone(service);
        self.refresh(&service.name, PoolIs::Same);
    }

    fn refresh(&mut self, service: &str, pool: PoolIs) {
        self.tcp.refresh(service);
        let of_service = self.udp.listeners.iter().filter(|(_, listener)| &*listener.service.name == service);
        let of_service: Vec<usize> = of_service.map(|(index, _)| index).collect();
        for index in of_service {
            if pool == PoolIs::Another {
                udp::end_all(self, index);
            }
            let settings = self.udp.listeners[index].service.settings.load_full();
            udp::end_astray(self, index, &settings, pool);
            let listener = &mut self.udp.listeners[index];
            if listener.leaving.is_none() {
                listener.flows.set_idle(udp::flow_idle(&settings));
            }
            listener.turns.resize(udp::table_size(&settings, self.cx.workers));
            let ended = listener.flows.resize(udp::table_size(&settings, self.cx.workers));
            listener.service.live.flows.fetch_sub(ended.len() as u32, std::sync::atomic::Ordering::Relaxed);
            self.udp.retired.extend(ended.iter().map(|flow| flow.slot as usize));
        }
        dns::tend(self);
    }

    fn drain(&mut self) {
        self.tcp.unlisten_all(&mut self.cx);
        self.hand_over();
        self.cx.draining = true;
        let sessions: Vec<usize> = self.http.sessions.iter().map(|(index, _)| index).collect();
        sessions.into_iter().for_each(|index| session::on_drain(self, index));
        dns::drain(self);
        let datagrams: Vec<usize> = self.udp.listeners.iter().map(|(index, _)| index).collect();
        datagrams.into_iter().for_each(|index| udp::leave(self, index));
        udp::close_left(self);
    }
}
