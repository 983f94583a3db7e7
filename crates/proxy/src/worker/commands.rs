//! What the control thread wants of a worker: listeners that come, go and change hands, and the end.

use super::{Command, PoolIs, Worker};
use crate::context::registry::Token;
use crate::dns;
use crate::http::session::{self, Mode};
use crate::io::batch::Local;
use crate::io::listener::{StreamListener, UnixPath};
use crate::service::Service;
use crate::service::ending;
use crate::service::hops::FlowWatch;
use crate::service::open;
use crate::tcp;
use crate::tcp::connection::Stage;
use crate::udp::{self, DatagramListener};
use evener_core::flow::{FlowTable, Turns};
use evener_core::spec::{Protocol, Transport};
use rustix::fd::OwnedFd;
use std::sync::Arc;

impl Worker {
    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Listen { id, service, socket, transport, local, unix } => match transport {
                Transport::Stream => self.listen_for_streams(id, service, socket, unix),
                Transport::Datagram => self.listen_for_datagrams(id, service, socket, local),
            },
            Command::Unlisten { id } => self.unlisten(id),
            Command::Assign { id, service } => self.assign(id, &service),
            Command::Refresh { service, pool } => self.refresh(&service, pool),
            Command::List(question) => open::answer(self, &question),
            Command::Close { serial, hearer } => hearer.tell(open::close(self, serial)),
            Command::End(ending) => ending::end(self, &ending),
            Command::Tend => dns::tend(self),
            Command::Drain => self.drain(),
            Command::Cut => {
                let all: Vec<usize> = self.connections.iter().map(|(index, _)| index).collect();
                all.into_iter().for_each(|index| self.cut(index));
                let all: Vec<usize> = self.sessions.iter().map(|(index, _)| index).collect();
                all.into_iter().for_each(|index| self.cut_session(index));
                dns::cut_all(self);
            }
            Command::Stop => self.running = false,
        }
        self.warm.look_again(self.now);
    }

    fn cut(&mut self, index: usize) {
        let connection = &self.connections[index];
        if connection.stage != Stage::Over {
            connection.service.live.counters.of(self.id).cut.one();
            tcp::close(self, index);
        }
    }

    fn cut_session(&mut self, index: usize) {
        let session = &self.sessions[index];
        if !matches!(session.mode, Mode::Over) {
            session.service.live.counters.of(self.id).cut.one();
            session::close(self, index);
        }
    }

    fn listen_for_streams(
        &mut self,
        id: u64,
        service: Arc<Service>,
        socket: OwnedFd,
        unix: Option<Arc<UnixPath>>,
    ) {
        let index = self.streams.insert(StreamListener { id, service, socket, paused: None, _unix: unix });
        if self.registry.register(&self.streams[index].socket, Token::Stream(index)).is_ok() {
            tcp::accept(self, index);
        }
    }

    fn listen_for_datagrams(&mut self, id: u64, service: Arc<Service>, socket: OwnedFd, local: Local) {
        if service.protocol == Protocol::Dns {
            return dns::listen(self, id, &service, socket, local);
        }
        let settings = service.settings.load_full();
        let (size, idle) = (udp::table_size(&settings, self.workers), udp::flow_idle(&settings));
        let flows = FlowTable::new(size, idle, self.random.bits());
        let turns = Turns::new(size, self.random.bits());
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
        let index = self.datagrams.insert(listener);
        if self.registry.register(&self.datagrams[index].socket, Token::Datagrams(index)).is_ok() {
            udp::on_listener_event(self, index);
        }
    }

    fn unlisten(&mut self, id: u64) {
        if let Some(index) =
            self.streams.iter().find(|(_, listener)| listener.id == id).map(|(index, _)| index)
        {
            self.close_stream(index);
        }
        if let Some(index) =
            self.datagrams.iter().find(|(_, listener)| listener.id == id).map(|(index, _)| index)
        {
            udp::leave(self, index);
            udp::close_left(self);
        }
        dns::leave(self, id);
        dns::tend(self);
    }

    fn assign(&mut self, id: u64, service: &Arc<Service>) {
        for (_, listener) in self.streams.iter_mut().filter(|(_, listener)| listener.id == id) {
            listener.service = Arc::clone(service);
            listener.reconfigure();
        }
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
            self.datagrams.iter().find(|(_, listener)| listener.id == id).map(|(index, _)| index)
        else {
            return;
        };
        udp::end_all(self, index);
        if is_dns {
            udp::flush_answers(self);
            let DatagramListener { socket, local, .. } = self.datagrams.remove(index);
            self.registry.deregister(&socket);
            return dns::listen(self, id, service, socket, local);
        }
        self.datagrams[index].service = Arc::clone(service);
        self.refresh(&service.name, PoolIs::Same);
    }

    /// Takes in who already waits in the queue, then closes: nobody who was connected is lost.
    fn close_stream(&mut self, index: usize) {
        tcp::accept_rest(self, index);
        let listener = self.streams.remove(index);
        self.registry.deregister(&listener.socket);
    }

    fn refresh(&mut self, service: &str, pool: PoolIs) {
        self.streams.iter().filter(|(_, l)| &*l.service.name == service).for_each(|(_, l)| l.reconfigure());
        let of_service = self.datagrams.iter().filter(|(_, listener)| &*listener.service.name == service);
        let of_service: Vec<usize> = of_service.map(|(index, _)| index).collect();
        for index in of_service {
            if pool == PoolIs::Another {
                udp::end_all(self, index);
            }
            let settings = self.datagrams[index].service.settings.load_full();
            udp::end_astray(self, index, &settings, pool);
            let listener = &mut self.datagrams[index];
            if listener.leaving.is_none() {
                listener.flows.set_idle(udp::flow_idle(&settings));
            }
            listener.turns.resize(udp::table_size(&settings, self.workers));
            let ended = listener.flows.resize(udp::table_size(&settings, self.workers));
            listener.service.live.flows.fetch_sub(ended.len() as u32, std::sync::atomic::Ordering::Relaxed);
            self.retired.extend(ended.iter().map(|flow| flow.slot as usize));
        }
        dns::tend(self);
    }

    fn drain(&mut self) {
        let streams: Vec<usize> = self.streams.iter().map(|(index, _)| index).collect();
        streams.into_iter().for_each(|index| self.close_stream(index));
        self.draining = true;
        let sessions: Vec<usize> = self.sessions.iter().map(|(index, _)| index).collect();
        sessions.into_iter().for_each(|index| session::on_drain(self, index));
        dns::drain(self);
        let datagrams: Vec<usize> = self.datagrams.iter().map(|(index, _)| index).collect();
        datagrams.into_iter().for_each(|index| udp::leave(self, index));
        udp::close_left(self);
    }
}
