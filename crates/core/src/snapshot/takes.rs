//! The clients that each server takes now, from the tiers in which [`Snapshot::pick`] searches.

use super::{Snapshot, Tier};
use crate::ServerId;
use crate::limits::Known;

/// Clients that a server takes at one moment; a greater value takes more clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Takes {
    /// No clients: the server is down or in maintenance.
    None,
    /// Only clients that have a flow, a connection or a sticky assignment at the server: it drains, has the
    /// weight 0, is at its limit, or servers that come before it can take new clients.
    Known,
    /// New clients and known clients.
    New,
}

impl Takes {
    /// Returns the name for readers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Known => "known",
            Self::None => "none",
        }
    }
}

/// Role of a server in the choice for new clients at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Clients that the server takes.
    pub takes: Takes,
    /// The policy chooses among the candidates. A candidate that takes no new clients stays in the
    /// placement (in a Maglev table, for example): its clients get another server, or without failover none.
    pub is_candidate: bool,
}

impl Snapshot {
    /// Returns the role of each server, in the order of [`Snapshot::servers`].
    ///
    /// A new client gets a server that takes new clients. If no server of the pool has an access list, all
    /// these servers are in one tier. Servers of the next tier take new clients, too, if an access list at
    /// every server with a free slot may refuse the client.
    #[must_use]
    pub fn roles(&self) -> Vec<Role> {
        let before_search = |keeps: bool| {
            let takes = if keeps { Takes::Known } else { Takes::None };
            Role { takes, is_candidate: false }
        };
        let mut roles: Vec<Role> =
            self.entries.iter().map(|server| before_search(self.keeps_clients(server))).collect();
        match &self.only {
            Some(only) => {
                self.enter(only, &mut roles);
            }
            None => {
                let candidates = self.candidates();
                let mut tiers = candidates.iter().flat_map(|(tiers, ..)| *tiers);
                // The search for a client ends at the first tier that takes it.
                let _ = tiers.find(|tier| self.enter(tier, &mut roles));
            }
        }
        roles
    }

    /// Records the candidates of a tier. Returns true if the tier takes every new client.
    fn enter(&self, tier: &Tier, roles: &mut [Role]) -> bool {
        let mut takes_every_client = false;
        for server in &tier.members {
            let Some(at) = self.position(server.id) else { continue };
            roles[at].is_candidate = true;
            if (self.only.is_none() || server.admits_chosen()) && server.has_room(Known::No) {
                roles[at].takes = Takes::New;
                takes_every_client |= server.acl.is_none();
            }
        }
        takes_every_client
    }

    pub(super) fn position(&self, id: ServerId) -> Option<usize> {
        let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[at].1 as usize)
    }
}
