//! The two classes of clients: clients that the access list permits, and clients that it refuses, which may
//! have a pool of their own.

use crate::context::Context;
use crate::context::unserved::Traffic;
use crate::service::admission::record_denied;
use crate::service::failures::note_client;
use crate::service::{Backend, Service, Settings};
use evener_core::reason::Reason;
use evener_core::snapshot::Snapshot;
use std::net::IpAddr;
use std::sync::Arc;

/// The class of a client, which determines its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientClass {
    /// Served by the service's own pool.
    Permitted,
    /// Served by the pool for clients that the access list refuses.
    Refused,
}

impl ClientClass {
    /// Returns the class of a client; `None` when its datagrams are dropped.
    pub(super) fn of(client: IpAddr, settings: &Settings) -> Option<Self> {
        if settings.permits(client) {
            return Some(Self::Permitted);
        }
        settings.refused().map(|_| Self::Refused)
    }

    /// Returns the class of a client that begins a flow. Counts a refused client, and a dropped datagram.
    pub(super) fn at_begin(
        cx: &Context,
        service: &Service,
        client: IpAddr,
        settings: &Settings,
        is_new: bool,
    ) -> Option<Self> {
        let counters = service.live.counters.of(cx.id);
        let class = Self::of(client, settings);
        if class != Some(Self::Permitted) && is_new {
            counters.denied.one();
            record_denied(cx, service, settings, client);
        }
        if class.is_none() {
            counters.drops.denied.one();
            note_client(cx, service, Traffic::Datagram, client, Reason::ClientDenied);
        }
        class
    }

    /// Returns the backend of this class.
    pub(super) fn backend(self, settings: &Settings) -> &Backend {
        let refused = settings.refused().filter(|_| self == Self::Refused);
        refused.unwrap_or(&settings.backends[0])
    }
}

/// The pools of a service during one batch.
pub(super) struct Pools<'a> {
    pub(super) settings: &'a Settings,
    permitted: Arc<Snapshot>,
    refused: Option<Arc<Snapshot>>,
}

impl<'a> Pools<'a> {
    pub(super) fn load(settings: &'a Settings) -> Self {
        let permitted = settings.backends[0].pool.load_full();
        Self { settings, permitted, refused: settings.refused().map(|backend| backend.pool.load_full()) }
    }

    /// Returns the pool of a class: the service's default pool if there is none for refused clients.
    pub(super) fn of(&self, class: ClientClass) -> &Snapshot {
        let refused = self.refused.as_deref().filter(|_| class == ClientClass::Refused);
        refused.unwrap_or(&self.permitted)
    }
}
