//! Whose flows are whose: clients that the access list refuses may have a pool of their own.

use super::Udp;
use crate::context::Context;
use crate::context::keys::DatagramListenerKey;
use crate::service::{Backend, Settings};
use evener_core::snapshot::Snapshot;
use std::net::IpAddr;
use std::sync::Arc;

/// Whose pool a flow goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    /// The service's own.
    Admitted,
    /// That of clients whom the access list refuses.
    Refused,
}

impl Party {
    /// The party of a client; `None` when it is dropped.
    pub(super) fn of(client: IpAddr, settings: &Settings) -> Option<Self> {
        if settings.permits(client) {
            return Some(Self::Admitted);
        }
        settings.refused().map(|_| Self::Refused)
    }

    /// Where its servers are.
    pub(super) fn backend(self, settings: &Settings) -> &Backend {
        let refused = settings.refused().filter(|_| self == Self::Refused);
        refused.unwrap_or(&settings.backends[0])
    }
}

/// The pools of a service, as they are for one batch.
pub(super) struct Pools<'a> {
    pub(super) settings: &'a Settings,
    own: Arc<Snapshot>,
    pub(super) refused: Option<Arc<Snapshot>>,
}

impl<'a> Pools<'a> {
    pub(super) fn load(settings: &'a Settings) -> Self {
        let own = settings.backends[0].pool.load_full();
        Self { settings, own, refused: settings.refused().map(|backend| backend.pool.load_full()) }
    }

    pub(super) fn of(&self, party: Party) -> &Snapshot {
        let refused = self.refused.as_deref().filter(|_| party == Party::Refused);
        refused.unwrap_or(&self.own)
    }
}

impl Udp {
    /// The party of a client that begins a flow; `None`, and its datagram counted, when that is dropped.
    pub(super) fn party_of(
        &self,
        cx: &Context,
        index: DatagramListenerKey,
        client: IpAddr,
        pools: &Pools<'_>,
        is_new: bool,
    ) -> Option<Party> {
        let counters = self.listeners[index].service.live.counters.of(cx.id);
        let party = Party::of(client, pools.settings);
        if party != Some(Party::Admitted) && is_new {
            counters.denied.one();
        }
        if party.is_none() {
            counters.drop_denied.one();
        }
        party
    }
}
