//! The place of a client in a pool: the server that it would get, as far as this is certain. Takes no slot and changes
//! nothing.

use super::{Admission, Entry, Request, Snapshot, Tier, Why};
use crate::ServerId;
use crate::limits::Known;
use crate::random::Random;
use crate::spec::Policy;
use crate::sticky::Assignment;
use crate::time::Time;
use std::net::IpAddr;
use std::sync::Arc;

/// The server that a client would get now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The client's server in the sticky table.
    Assigned(ServerId),
    /// The server that the policy determines: by the address of the client, by a fixed order, or because it is the
    /// only one.
    Determined(ServerId),
    /// One of several servers, by turns, load or chance.
    Open,
    /// No server.
    None,
}

impl Placement {
    /// Returns the server, if it is certain.
    #[must_use]
    pub fn server(self) -> Option<ServerId> {
        match self {
            Self::Assigned(server) | Self::Determined(server) => Some(server),
            Self::Open | Self::None => None,
        }
    }
}

impl Snapshot {
    /// Returns the place of a client with an assignment in the sticky table.
    #[must_use]
    pub fn placement(&self, client: IpAddr, assignment: Option<Assignment>, now: Time) -> Placement {
        let request = Request::of(client, now);
        // The turn and the randomness decide only where the result is `Open`.
        let mut random = Random::seeded(0);
        let found = self.find_with(self.assigned(assignment), &request, &[], || 0, &mut random);
        match found {
            None => Placement::None,
            Some((server, Why::Sticky)) => Placement::Assigned(server.id),
            Some((server, why)) if self.determines(server, why, client) => Placement::Determined(server.id),
            Some(_) => Placement::Open,
        }
    }

    /// Returns true if the policy of new clients could choose a server for this client.
    #[must_use]
    pub fn may_choose(&self, server: ServerId, client: IpAddr) -> bool {
        let Some(server) = self.server(server) else { return false };
        let tier = self.tiers_searched().find(|tier| self.eligible(tier, client).next().is_some());
        tier.is_some_and(|tier| self.eligible(tier, client).any(|eligible| eligible.id == server.id))
    }

    /// Returns true if the address of a client alone decides the server of a new client.
    #[must_use]
    pub fn is_by_address(&self) -> bool {
        matches!(self.policy, Policy::Hash | Policy::Maglev { .. })
    }

    /// Returns true if every new client like this one would get the server that was found.
    fn determines(&self, server: &Entry, why: Why, client: IpAddr) -> bool {
        let policy = match why {
            Why::Unchecked if self.only.is_none() => self.policy_of_unchecked,
            Why::LastResort => Policy::RoundRobin,
            Why::Sticky | Why::Policy | Why::Unchecked => self.policy,
        };
        if matches!(policy, Policy::Hash | Policy::Maglev { .. } | Policy::First) {
            return true;
        }
        let mut tiers = self.tiers_searched();
        let tier = tiers.find(|tier| tier.members.iter().any(|member| member.id == server.id));
        tier.is_some_and(|tier| match &self.only {
            Some(_) => tier.members.len() == 1,
            None => self.eligible(tier, client).count() == 1,
        })
    }

    /// Returns the tiers in the order in which they are searched for new clients.
    fn tiers_searched(&self) -> impl Iterator<Item = &Tier> {
        let only = self.only.iter();
        let others = || self.tiers.iter().chain(&self.unchecked).chain([&self.last_resort]);
        only.chain(self.only.is_none().then(others).into_iter().flatten())
    }

    /// Returns the servers of a tier that can take a new client.
    fn eligible<'a>(&'a self, tier: &'a Tier, client: IpAddr) -> impl Iterator<Item = &'a Arc<Entry>> {
        let is_only = self.only.is_some();
        tier.members.iter().filter(move |server| {
            (!is_only || server.admits_chosen()) && server.has_room_for(client, Known::No)
        })
    }
}

impl Entry {
    /// Returns true if the servers differ in the clients that they can get.
    pub(crate) fn admits_otherwise_than(&self, other: &Self) -> bool {
        let rank = |admission: &Admission| match admission {
            Admission::Open => 0,
            Admission::KnownOnly(_) => 1,
            Admission::Unchecked => 2,
            Admission::LastResort(_) => 3,
            Admission::Down(_) | Admission::Maintenance => 4,
        };
        rank(&self.admission) != rank(&other.admission)
    }
}
