//! Listing of clients, and clients that are closed by commands.

use super::{Client, Stage};
use crate::context::Context;
use crate::context::keys::DnsClientKey;
use crate::dns::{Dns, Served};
use crate::service::open::{Collector, Open};
use evener_core::Time;
use evener_core::reason::Reason;
use rustix::fd::AsRawFd;
use rustix::net::{RecvFlags, recv};

impl Dns {
    /// Lists the clients that match a listing.
    pub(crate) fn list(&self, cx: &Context, collector: &mut Collector<'_>) {
        for (_, client) in self.clients.iter().filter(|(_, client)| client.stage != Stage::Over) {
            let served = &self.services[client.service];
            if collector.is_meant(&served.service.live.name) {
                collector.take(|| open_of(cx, client, served));
            }
        }
    }

    /// Closes idle clients that were served, the longest idle first, and returns their number.
    pub(crate) fn shed(&mut self, cx: &mut Context, wanted: u32) -> u32 {
        let is_quiet = |client: &Client| {
            let is_done = client.stage == Stage::Open && client.has_queried && client.is_idle();
            is_done && client.framed.pending().is_empty()
        };
        let idle = self.clients.iter().filter(|(_, client)| is_quiet(client));
        let mut idle: Vec<(Time, DnsClientKey)> = idle.map(|(key, client)| (client.active_at, key)).collect();
        idle.sort_unstable_by_key(|(active_at, _)| *active_at);
        let mut left = 0;
        for (_, key) in idle.into_iter().take(wanted as usize) {
            let client = &self.clients[key];
            // A query may have arrived in the meantime.
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            if recv(client.framed.socket(), &mut [0], flags).is_ok_and(|(_, length)| length > 0) {
                continue;
            }
            self.services[client.service].service.live.counters.of(cx.id).closed.idle_shed.one();
            self.close_client(cx, key);
            left += 1;
        }
        left
    }

    /// Closes all clients at the drain deadline.
    pub(crate) fn cut_all(&mut self, cx: &mut Context) {
        let all = self.clients.keys(|_| true);
        for key in all {
            let client = &self.clients[key];
            if client.stage != Stage::Over {
                let service = &self.services[client.service].service;
                service.live.counters.of(cx.id).closed.drain_timeout.one();
                client.note_end(cx, service, Reason::Drain);
                self.close_client(cx, key);
            }
        }
    }

    /// Closes the client with this number, and returns whether there was one.
    pub(crate) fn close_numbered(&mut self, cx: &mut Context, number: u32) -> bool {
        let found =
            self.clients.iter().find(|(_, client)| client.number == number && client.stage != Stage::Over);
        let Some((key, client)) = found else { return false };
        let service = &self.services[client.service].service;
        service.live.counters.of(cx.id).closed.operator.one();
        client.note_end(cx, service, Reason::Operator);
        self.close_client(cx, key);
        true
    }
}

fn open_of(cx: &Context, client: &Client, served: &Served) -> Open {
    let peer = client.origin.client();
    Open {
        number: cx.global_number(client.number),
        service: served.service.live.name.clone(),
        client: peer.ip(),
        client_port: (peer.port() > 0).then_some(peer.port()),
        server: None,
        stage: match client.stage {
            Stage::Preamble => "preamble",
            Stage::Tarpit => "tarpit",
            Stage::Open if client.outstanding > 0 => "dns queries",
            Stage::Open => "dns idle",
            Stage::Over => "over",
        },
        idle: cx.now.since(client.active_at),
        client_socket: Some(client.framed.socket().as_raw_fd()),
        server_socket: None,
        to_client: client.framed.waiting(),
        to_server: 0,
    }
}
