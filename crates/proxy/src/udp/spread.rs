//! Datagrams of one client that go to several servers in turn. The client has a flow to each of these servers:
//! responses reach the client, and the next turn needs no new socket.

use super::client_class::{ClientClass, Pools};
use super::flow::{BeginError, socket_of};
use super::{NewFlow, Udp};
use crate::context::Context;
use crate::context::keys::{DatagramListenerKey, FlowSocketKey};
use crate::service::note_no_server;
use evener_core::ServerId;
use evener_core::attempt::{Attempt, AttemptLimits};
use evener_core::flow::FlowKey;
use evener_core::snapshot::Request;
use std::sync::Arc;

impl Udp {
    /// Returns the socket for the next datagram of a client. A server gets `datagrams` datagrams in each of its
    /// turns. `None` when the datagram is dropped.
    pub(super) fn spread(
        &mut self,
        cx: &mut Context,
        at: DatagramListenerKey,
        (key, ttl): (FlowKey, Option<u8>),
        datagrams: u32,
        pools: &Pools<'_>,
    ) -> Option<FlowSocketKey> {
        let listener = &mut self.listeners[at];
        let service = Arc::clone(&listener.service);
        let last = listener.turns.last(&key);
        if let Some(server) = listener.turns.datagram(&key, cx.now)
            && let Some(socket) = self.lane(cx, at, key, server, pools)
        {
            return Some(socket);
        }
        let client = key.client.ip();
        let class = ClientClass::at_begin(cx, &service, client, pools.settings, last.is_none())?;
        let snapshot = pools.of(class);
        let request = Request::of(client, cx.now);
        let mut attempt = Attempt::uncounted(cx.id);
        let choice = match attempt.next(snapshot, &request, &AttemptLimits::NONE, &mut cx.random) {
            Ok(choice) => choice,
            // Every server may be at its limit of flows, one of which belongs to the client.
            Err(reason) => {
                let socket = last.and_then(|server| self.lane(cx, at, key, server, pools));
                if socket.is_none() {
                    note_no_server(cx, &service, reason);
                    BeginError::NoServer(reason).note(cx, &service, client, (&attempt, snapshot));
                }
                return socket;
            }
        };
        let (server, why) = (choice.server.id, choice.why);
        self.listeners[at].turns.begin(key, server, datagrams, cx.now);
        if let Some(socket) = self.lane(cx, at, key, server, pools) {
            return Some(socket);
        }
        let key = FlowKey { lane: Some(server), ..key };
        let new = NewFlow { key, ttl, class, identity: None, settings: pools.settings, snapshot };
        let begun = self.begin_at(cx, at, &new, choice).unwrap_or_else(|failed| {
            attempt.failed(server, why, failed);
            self.begin(cx, at, &new, &mut attempt)
        });
        begun.inspect_err(|error| error.note(cx, &service, client, (&attempt, snapshot))).ok()
    }

    /// Returns the socket of a client's flow to a server, if there is one and it may continue.
    fn lane(
        &mut self,
        cx: &Context,
        at: DatagramListenerKey,
        key: FlowKey,
        server: ServerId,
        pools: &Pools<'_>,
    ) -> Option<FlowSocketKey> {
        let key = FlowKey { lane: Some(server), ..key };
        let flow = self.listeners[at].flows.datagram(&key, cx.now)?;
        let socket = self.sockets.get(socket_of(flow))?;
        let snapshot = pools.of(socket.class);
        let continues = flow.generation == snapshot.generation
            || snapshot.keeps_flow(flow.server, &socket.choice.server.target, key.client.ip());
        if !continues {
            self.end(at, &key);
            return None;
        }
        flow.generation = snapshot.generation;
        Some(socket_of(flow))
    }
}
