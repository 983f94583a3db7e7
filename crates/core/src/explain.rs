//! Why a client gets the server it gets: the order in which servers would be tried, and what speaks against the others.
//! It asks the same code that chooses, without taking a place or a turn.

use crate::ServerId;
use crate::limits::Known;
use crate::random::Random;
use crate::snapshot::{Admission, Entry, KnownOnly, Request, Snapshot, Why};
use crate::spec::Policy;
use std::fmt;
use std::sync::Arc;

/// So many candidates are put in order; further ones are only said to be candidates.
const CANDIDATES_MAX: usize = 64;

/// The whole answer.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The server that the sticky table names.
    pub sticky: Option<Arc<str>>,
    /// Whether chance decides, so that the order is one of several.
    pub by_chance: bool,
    /// Every server: the candidates in their order, then the others.
    pub servers: Vec<Row>,
}

/// What is said of one server.
#[derive(Clone, Debug)]
pub struct Row {
    /// The server's name.
    pub server: Arc<str>,
    /// Its tier.
    pub tier: u8,
    /// The reason for its place.
    pub reason: Reason,
}

/// The reason for a server's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It would be tried as number `.0`, because of `.1`.
    Candidate(usize, Why),
    /// It would be tried after those.
    Further,
    /// It is at its limit.
    Full {
        /// Connections or flows now.
        active: u32,
        /// The limit for this client.
        bound: u32,
    },
    /// Its access list refuses the client.
    Denied,
    /// It drains, and does not know the client.
    Drain,
    /// It has the weight 0, and does not know the client.
    Weightless,
    /// A check found it down.
    Down(Arc<str>),
    /// The operator took it out.
    Maintenance,
    /// Another one was chosen, and there is no failover.
    NoFailover,
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Candidate(1, Why::Sticky) => write!(out, "chosen: the client had it before"),
            Self::Candidate(1, Why::Policy) => write!(out, "chosen by the policy"),
            Self::Candidate(1, Why::Unchecked) => {
                write!(out, "chosen: not checked yet, but no checked server takes the client")
            }
            Self::Candidate(1, Why::LastResort) => {
                write!(out, "chosen: traffic failed to reach it, but nobody else is left")
            }
            Self::Candidate(place, Why::Unchecked) => write!(out, "candidate {place}, not checked yet"),
            Self::Candidate(place, Why::LastResort) => write!(out, "candidate {place}, as a last resort"),
            Self::Candidate(place, _) => write!(out, "candidate {place}"),
            Self::Further => write!(out, "a later candidate"),
            Self::Full { active, bound } => write!(out, "full: {active} of {bound}"),
            Self::Denied => write!(out, "its access list refuses the client"),
            Self::Drain => write!(out, "draining: no new clients"),
            Self::Weightless => write!(out, "weight 0: no new clients"),
            Self::Down(reason) => write!(out, "down: {reason}"),
            Self::Maintenance => write!(out, "in maintenance"),
            Self::NoFailover => write!(out, "not this client's server, and there is no failover"),
        }
    }
}

/// Explains the choice for a client.
#[must_use]
pub fn explain(snapshot: &Snapshot, request: &Request, random: &mut Random) -> Explanation {
    let turn = snapshot.next_turn();
    let mut tried: Vec<ServerId> = Vec::new();
    let mut servers = Vec::new();
    while tried.len() < CANDIDATES_MAX {
        let Some((server, why)) = snapshot.find(request, &tried, || turn, random) else { break };
        tried.push(server.id);
        servers.push(row(server, Reason::Candidate(tried.len(), why)));
    }
    let others = snapshot.servers().iter().filter(|server| !tried.contains(&server.id));
    servers.extend(others.map(|server| row(server, against(snapshot, server, request))));
    Explanation {
        sticky: snapshot.known_server(request).map(|server| server.name.clone()),
        by_chance: matches!(snapshot.policy, Policy::P2c | Policy::Ewma { .. }),
        servers,
    }
}

fn row(server: &Entry, reason: Reason) -> Row {
    Row { server: server.name.clone(), tier: server.tier, reason }
}

fn against(snapshot: &Snapshot, server: &Entry, request: &Request) -> Reason {
    let (active, bound) = (server.live.occupancy.active(), server.limits.bound(Known::No));
    match &server.admission {
        Admission::Maintenance => Reason::Maintenance,
        Admission::Down(reason) => Reason::Down(reason.clone()),
        Admission::KnownOnly(KnownOnly::Drain) => Reason::Drain,
        Admission::KnownOnly(KnownOnly::Weight) => Reason::Weightless,
        Admission::Open | Admission::Unchecked | Admission::LastResort(_) if snapshot.is_alone() => {
            Reason::NoFailover
        }
        Admission::Open | Admission::Unchecked | Admission::LastResort(_)
            if !server.permits(request.client) =>
        {
            Reason::Denied
        }
        Admission::Open | Admission::Unchecked | Admission::LastResort(_) if active >= bound => {
            Reason::Full { active, bound }
        }
        Admission::Open | Admission::Unchecked | Admission::LastResort(_) => Reason::Further,
    }
}
