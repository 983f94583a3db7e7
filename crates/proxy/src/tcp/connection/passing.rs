//! A connection as it leaves for the next instance, and as it arrives from the previous one.

use super::{Connection, Stage, Upstream};
use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::context::ring::Generations;
use crate::io::relay::Direction;
use crate::service::admission::record_of;
use crate::service::{Permits, Service};
use crate::tcp::passing::PassedRelay;
use evener_core::attempt::Attempt;
use evener_core::snapshot::{Choice, Why};
use std::sync::Arc;

impl Connection {
    /// Returns whether the connection can pass to another process.
    pub(in crate::tcp) fn is_passable(&self) -> bool {
        let is_plain = self.admitted.as_ref().is_none_or(|admitted| admitted.is_passable());
        self.stage == Stage::Relaying && self.ring.is_none() && self.preamble.is_none() && is_plain
    }

    /// Takes the connection apart. Its permits are released.
    pub(in crate::tcp) fn into_passed(mut self) -> Option<PassedRelay> {
        let pool = Arc::clone(&self.backend().pool.load().pool);
        let Upstream { socket, choice, .. } = self.upstream.take()?;
        Some(PassedRelay {
            service: Arc::clone(&self.service.live.name),
            pool,
            server: Arc::clone(&choice.server.name),
            target: choice.server.target.clone(),
            client: self.address,
            active_at: self.active_at,
            relayed: self.relayed,
            from_client: self.from_client.pass(),
            from_server: self.from_server.pass(),
            sockets: [self.client, socket],
        })
    }

    /// Continues a connection of another process. Returns `None` if its server is not in a pool of the service.
    pub(in crate::tcp) fn adopt(
        service: &Arc<Service>,
        passed: PassedRelay,
        generations: &mut Generations,
        cx: &mut Context,
    ) -> Option<Self> {
        let settings = service.settings.load_full();
        let mut backends = settings.backends.iter().zip(0_u32..);
        let (snapshot, backend) = backends.find_map(|(backend, at)| {
            let snapshot = backend.pool.load_full();
            (snapshot.pool == passed.pool).then_some((snapshot, at))
        })?;
        let mut servers = snapshot.servers().iter();
        let server = servers.find(|one| one.name == passed.server && one.target == passed.target)?;
        // The client and the server are connected already, so no limit refuses them.
        let lease = server.live.occupancy.enter(u32::MAX)?;
        let choice = Choice { server: Arc::clone(server), lease, why: Why::Sticky, is_retry: false };
        let permits = Permits::new(service.enter(u32::MAX)?, Unit::take_two_beyond());
        let record = record_of(service, &settings, passed.client, cx.now);
        let [client, socket] = passed.sockets;
        let mut connection =
            Self::new(client, passed.client, Arc::clone(service), Arc::clone(&settings), permits, cx);
        if let Some(record) = record {
            connection.admitted.get_or_insert_default().record = Some(record);
        }
        connection.backend = backend;
        connection.upstream = Some(Upstream { socket, generation: generations.next(), choice });
        connection.from_client = Direction::adopt(passed.from_client);
        connection.from_server = Direction::adopt(passed.from_server);
        connection.attempt = Attempt::new(cx.id);
        connection.stage = Stage::Relaying;
        connection.active_at = passed.active_at.min(cx.now);
        connection.relayed = passed.relayed;
        Some(connection)
    }
}
