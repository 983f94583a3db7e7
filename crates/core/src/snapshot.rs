//! The Snapshot: a pool as the planes see it. It never changes; the supervisor publishes another one instead. Only the
//! counters, the occupancy of servers and the sticky table behind it are shared and live.

mod entry;

pub use entry::{Admission, Entry, KnownOnly, PoolLive, ServerLive};

use crate::ServerId;
use crate::address::Target;
use crate::attempt::work;
use crate::hash;
use crate::limits::{Known, Lease};
use crate::policy::{self, Draw, Table};
use crate::random::Random;
use crate::spec::{Failover, Policy, QueueSpec};
use crate::time::Time;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Who asks for a server, and when.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The client. Clients of a unix socket count as 127.0.0.1.
    pub client: IpAddr,
    /// Now.
    pub now: Time,
    /// The server that the client's cookie names, by its [`Entry::token`].
    pub token: Option<u64>,
    /// The server that the client's connection has.
    pub stay: Option<ServerId>,
}

impl Request {
    /// Of a client that shows no cookie.
    #[must_use]
    pub fn of(client: IpAddr, now: Time) -> Self {
        Self { client, now, token: None, stay: None }
    }
}

/// The server that a client gets, and its place there.
#[derive(Debug)]
pub struct Choice {
    /// The server.
    pub server: Arc<Entry>,
    /// The place, given back when dropped.
    pub lease: Lease,
    /// Why this one.
    pub why: Why,
}

/// Why a server was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The client had it before.
    Sticky,
    /// The policy chose it.
    Policy,
    /// No checked server takes the client.
    Unchecked,
    /// Nobody else was left, though traffic lately failed to reach it.
    LastResort,
}

impl Why {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sticky => "sticky",
            Self::Policy => "policy",
            Self::Unchecked => "unchecked",
            Self::LastResort => "last_resort",
        }
    }
}

/// Why nobody was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoServer {
    /// The pool has no servers.
    #[error("the pool has no servers")]
    Empty,
    /// All were tried, and failed.
    #[error("every usable server failed")]
    Failed,
    /// Those that would do are full.
    #[error("every usable server is at its limit")]
    Full,
    /// The access lists of the servers refuse the client.
    #[error("no server admits this client")]
    Denied,
    /// None is up and ready.
    #[error("no server is up and ready")]
    Down,
    /// We have no descriptor for a connection to it.
    #[error("no descriptor is left for a connection to a server")]
    NoDescriptor,
    /// The one that was chosen does not take it, and there is no failover.
    #[error("its server does not take this client, and no other one may be tried")]
    NoFailover,
}

/// The servers of a tier that get new clients.
#[derive(Debug)]
struct Tier {
    members: Vec<Arc<Entry>>,
    table: Table,
}

/// A pool at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The pool's name.
    pub pool: Arc<str>,
    /// Grows with each publication of the pool.
    pub generation: u64,
    /// The policy.
    pub policy: Policy,
    /// The name of the cookie by which clients are known again.
    pub cookie: Option<Arc<str>>,
    /// Where clients wait while every server is at its limit.
    pub queue: Option<QueueSpec>,
    entries: Vec<Arc<Entry>>,
    /// Positions of the entries, in the order of their identities.
    by_id: Vec<(ServerId, u32)>,
    tiers: Vec<Tier>,
    /// Servers without a first check, by tier.
    unchecked: Vec<Tier>,
    /// How one of these is chosen.
    policy_of_unchecked: Policy,
    last_resort: Tier,
    /// Without failover: those of whom one is chosen, whether it can take the client or not.
    only: Option<Tier>,
    /// The lowest number of a tier.
    first_tier: u8,
    live: Arc<PoolLive>,
}

/// What a snapshot is made from.
#[derive(Debug)]
pub struct SnapshotParts {
    /// The pool's name.
    pub pool: Arc<str>,
    /// Greater than that of the snapshot before.
    pub generation: u64,
    /// The policy.
    pub policy: Policy,
    /// The name of the cookie by which clients are known again.
    pub cookie: Option<Arc<str>>,
    /// What becomes of a client whose server does not take it.
    pub failover: Failover,
    /// Where clients wait while every server is at its limit.
    pub queue: Option<QueueSpec>,
    /// Every server.
    pub entries: Vec<Entry>,
    /// What lives on.
    pub live: Arc<PoolLive>,
}

impl Snapshot {
    /// Prepares what the policy needs.
    #[must_use]
    pub fn new(parts: SnapshotParts) -> Self {
        let SnapshotParts { pool, generation, policy, cookie, failover, queue, entries, live } = parts;
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        let is_open = |entry: &Entry| entry.admission == Admission::Open;
        let is_unchecked = |entry: &Entry| entry.admission == Admission::Unchecked;
        let tier = |policy: Policy, keep: &dyn Fn(&Entry) -> bool| {
            let members: Vec<_> = entries.iter().filter(|entry| keep(entry)).cloned().collect();
            let table = Table::prepare(policy, &members);
            Tier { members, table }
        };
        let mut numbers: Vec<u8> = entries.iter().map(|entry| entry.tier).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let by_tier = |policy: Policy, keep: &dyn Fn(&Entry) -> bool| -> Vec<Tier> {
            let of = |&number: &u8| tier(policy, &|entry| entry.tier == number && keep(entry));
            numbers.iter().map(of).filter(|tier| !tier.members.is_empty()).collect()
        };
        let tiers = by_tier(policy, &is_open);
        // As long as the whole pool is unchecked its policy holds; beside servers that are open no table is worth it.
        let policy_of_unchecked = if tiers.is_empty() { policy } else { Policy::RoundRobin };
        let unchecked = by_tier(policy_of_unchecked, &is_unchecked);
        let members =
            entries.iter().filter(|e| matches!(e.admission, Admission::LastResort(_))).cloned().collect();
        let last_resort = Tier { members, table: Table::None };
        let only = numbers.first().filter(|_| failover == Failover::Never).map(|&first| {
            // A client's address leads to its server even when that is down; turns are taken by those that are there.
            let by_address = matches!(policy, Policy::Hash | Policy::Maglev { .. });
            let any_open = entries.iter().any(|entry| entry.tier == first && is_open(entry));
            tier(policy, &|entry| {
                let is_there = if any_open { is_open(entry) } else { is_unchecked(entry) };
                entry.tier == first && (by_address || is_there)
            })
        });
        let first_tier = numbers.first().copied().unwrap_or_default();
        let mut by_id: Vec<_> = entries.iter().zip(0..).map(|(entry, at)| (entry.id, at)).collect();
        by_id.sort_unstable();
        Self {
            pool,
            generation,
            policy,
            cookie,
            queue,
            entries,
            by_id,
            tiers,
            unchecked,
            policy_of_unchecked,
            last_resort,
            only,
            first_tier,
            live,
        }
    }

    /// Every server, in the order of the configuration.
    #[must_use]
    pub fn servers(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The server with this identity.
    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&Arc<Entry>> {
        let at = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.entries[self.by_id[at].1 as usize])
    }

    /// Returns the number of clients and requests that wait for a server, at all workers.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.live.queued.active()
    }

    /// A place in the queue, given back when dropped; `None` when it is full, or there is no queue.
    #[must_use]
    pub fn enter_queue(&self) -> Option<Lease> {
        self.live.queued.enter(self.queue?.size)
    }

    /// Whether anybody gets new clients.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        match &self.only {
            Some(only) => only.members.iter().any(|entry| entry.admits_chosen()),
            None => {
                let any = |tiers: &[Tier]| tiers.iter().any(|tier| !tier.members.is_empty());
                any(&self.tiers) || any(&self.unchecked) || !self.last_resort.members.is_empty()
            }
        }
    }

    /// The servers that clients without a history get first: those that are open, of the first tier that has any; without
    /// failover of the first tier only.
    pub fn first_choices(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let tier = self.only.as_ref().or_else(|| self.tiers.first());
        let members = tier.map_or(&[][..], |tier| &tier.members);
        members.iter().filter(|entry| entry.admission == Admission::Open)
    }

    /// Whether a client gets the one server that is chosen, or none.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.only.is_some()
    }

    /// Chooses a server for a client and takes a place there. Servers in `tried` are passed over, so that a connect that
    /// failed goes on with the next candidate, until the tiers are exhausted.
    pub fn pick(
        &self,
        request: &Request,
        tried: &[ServerId],
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        // Only a client that is nobody's takes a turn: where each comes twice, all would get the same server of two.
        let mut taken = None;
        let turn = || *taken.get_or_insert_with(|| self.live.turn.fetch_add(1, Ordering::Relaxed));
        self.pick_by(request, tried, turn, random)
    }

    /// The same for one that was given to a server of `tried` already. It takes no further turn, for the same reason: those who
    /// turn away from one server are spread by chance.
    pub fn pick_again(
        &self,
        request: &Request,
        tried: &[ServerId],
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        let turn = random.bits();
        self.pick_by(request, tried, || turn, random)
    }

    fn pick_by(
        &self,
        request: &Request,
        tried: &[ServerId],
        mut turn: impl FnMut() -> u64,
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        // A place that another worker took between look and grasp makes that server full: look again.
        for _ in 0..=self.entries.len() {
            let Some((server, why)) = self.find(request, tried, &mut turn, random) else { break };
            let known = if why == Why::Sticky { Known::Yes } else { Known::No };
            if let Some(lease) = server.live.occupancy.enter(server.limits.bound(known)) {
                return Ok(Choice { server: Arc::clone(server), lease, why });
            }
        }
        Err(self.refusal(request, tried.len(), |id| tried.contains(&id)))
    }

    /// Takes a place at a server of [`Snapshot::order`], if it is still to be had for this reason.
    pub(crate) fn take(&self, id: ServerId, request: &Request, why: Why) -> Option<Choice> {
        let server = self.server(id)?;
        let is_fit = match server.admission {
            Admission::Open => true,
            Admission::Unchecked => why != Why::Policy,
            Admission::LastResort(_) => why == Why::LastResort,
            _ => false,
        };
        if !is_fit || !server.has_room_for(request.client, Known::No) {
            return None;
        }
        let lease = server.live.occupancy.enter(server.limits.bound(Known::No))?;
        Some(Choice { server: Arc::clone(server), lease, why })
    }

    /// The servers that new clients get, unchecked ones and those that are a last resort after them, from the last to the
    /// first in the order in which they would be chosen.
    pub(crate) fn order(
        &self,
        request: &Request,
        random: &mut Random,
        is_tried: impl Fn(ServerId) -> bool,
    ) -> Vec<(ServerId, Why)> {
        let client = hash::of_client(request.client);
        let mut draw = Draw { client, turn: self.next_turn(), now: request.now, random };
        let parts = [
            (&self.tiers[..], self.policy, Why::Policy),
            (&self.unchecked[..], self.policy_of_unchecked, Why::Unchecked),
            (std::slice::from_ref(&self.last_resort), Policy::RoundRobin, Why::LastResort),
        ];
        let mut order = Vec::new();
        for (tiers, policy, why) in parts {
            for tier in tiers {
                work::add(tier.members.len());
                let positions = policy::order(policy, &tier.table, &tier.members, &mut draw);
                order.extend(positions.into_iter().map(|at| (tier.members[at as usize].id, why)));
            }
        }
        order.retain(|(id, _)| !is_tried(*id));
        order.reverse();
        order
    }

    /// The server that [`Snapshot::pick`] would choose; nothing changes but by `turn`, which is asked where turns count.
    pub(crate) fn find(
        &self,
        request: &Request,
        tried: &[ServerId],
        turn: impl FnOnce() -> u64,
        random: &mut Random,
    ) -> Option<(&Arc<Entry>, Why)> {
        let client = hash::of_client(request.client);
        let draw = || Draw { client, turn: turn(), now: request.now, random };
        if let Some(only) = &self.only {
            return self.find_only(only, request, tried, draw);
        }
        let known = self.known_servers(request).into_iter().flatten().find(|server| {
            !tried.contains(&server.id)
                && server.takes_known(request.client)
                && (request.stay.is_some() || !self.is_taken_above(server, request, tried))
        });
        if let Some(server) = known {
            return Some((server, Why::Sticky));
        }
        let mut draw = draw();
        let mut from = |tier, policy| self.find_in(tier, policy, request.client, tried, &mut draw);
        let by_policy = self.tiers.iter().find_map(|tier| from(tier, self.policy));
        let unchecked = || self.unchecked.iter();
        by_policy
            .map(|server| (server, Why::Policy))
            .or_else(|| {
                let server = unchecked().find_map(|tier| from(tier, self.policy_of_unchecked));
                server.map(|server| (server, Why::Unchecked))
            })
            .or_else(|| from(&self.last_resort, Policy::RoundRobin).map(|server| (server, Why::LastResort)))
    }

    fn find_in<'a>(
        &self,
        tier: &'a Tier,
        policy: Policy,
        client: IpAddr,
        tried: &[ServerId],
        draw: &mut Draw<'_>,
    ) -> Option<&'a Arc<Entry>> {
        let eligible = |at: usize| {
            let server = &tier.members[at];
            work::add(tried.len());
            !tried.contains(&server.id) && server.has_room_for(client, Known::No)
        };
        policy::choose(policy, &tier.table, &tier.members, draw, eligible).map(|at| &tier.members[at])
    }

    /// The one server that a client may have where there is no failover, if that takes it.
    fn find_only<'a, 'd>(
        &'a self,
        only: &'a Tier,
        request: &Request,
        tried: &[ServerId],
        draw: impl FnOnce() -> Draw<'d>,
    ) -> Option<(&'a Arc<Entry>, Why)> {
        if !tried.is_empty() {
            return None;
        }
        // One of another tier is nobody's only server.
        let known = self.known_server(request).filter(|known| known.tier == self.first_tier);
        if let Some(known) = known {
            return known.takes_known(request.client).then_some((known, Why::Sticky));
        }
        let at = policy::choose(self.policy, &only.table, &only.members, &mut draw(), |_| true)?;
        let server = &only.members[at];
        let why = if server.admission == Admission::Unchecked { Why::Unchecked } else { Why::Policy };
        let takes = server.admits_chosen() && server.has_room_for(request.client, Known::No);
        takes.then_some((server, why))
    }

    /// Whether somebody of a higher tier takes the client: then it returns there from the server that it had.
    fn is_taken_above(&self, known: &Entry, request: &Request, tried: &[ServerId]) -> bool {
        let above = self.tiers.iter().take_while(|tier| tier.members[0].tier < known.tier);
        above
            .flat_map(|tier| &tier.members)
            .any(|server| !tried.contains(&server.id) && server.has_room_for(request.client, Known::No))
    }

    /// The server that the client is known to belong to, if it is still in the pool.
    pub(crate) fn known_server(&self, request: &Request) -> Option<&Arc<Entry>> {
        self.known_servers(request)[0]
    }

    /// The servers that the client had before, the one to prefer first: its home, and whom it has while that is out.
    fn known_servers(&self, request: &Request) -> [Option<&Arc<Entry>>; 2] {
        if let Some(stay) = request.stay {
            return [self.server(stay), None];
        }
        if let Some(token) = request.token.filter(|_| self.cookie.is_some()) {
            return [self.entries.iter().find(|server| server.token == token), None];
        }
        let sticky = self.live.sticky.as_ref();
        let seat = sticky.and_then(|sticky| sticky.lookup(request.client, request.now));
        seat.map_or([None; 2], |seat| [Some(seat.home), seat.meanwhile].map(|id| self.server(id?)))
    }

    /// The number of the next choice.
    pub(crate) fn next_turn(&self) -> u64 {
        self.live.turn.load(Ordering::Relaxed)
    }

    /// A client is with a server now: the sticky table, if there is one, remembers it.
    pub fn remember(&self, client: IpAddr, server: ServerId, now: Time) {
        let Some(sticky) = &self.live.sticky else { return };
        let tier = |id| self.server(id).map(|server| server.tier);
        // Nobody returns to a server that left, nor to one of a lower tier than where it is now.
        let moves = |home| tier(home).is_none_or(|of_home| tier(server).is_some_and(|now| now < of_home));
        sticky.remember(client, server, now, moves);
    }

    /// A connect took so long; kept only where the policy looks at it.
    pub fn observe(&self, server: &Entry, took: Duration, now: Time) {
        let decay = match self.policy {
            Policy::Ewma { decay } => decay,
            Policy::LeastOutstanding => Policy::EWMA_DECAY,
            _ => return,
        };
        server.live.latency.observe(took, now, decay);
    }

    /// Whether a flow of this client may stay with the server that it has, which was at `target` when it began. A server
    /// that only traffic took out keeps its flows while nobody else is usable: another socket would be no better.
    #[must_use]
    pub fn keeps_flow(&self, id: ServerId, target: &Target, client: IpAddr) -> bool {
        self.server(id).is_some_and(|server| {
            let last_resort = matches!(server.admission, Admission::LastResort(_)) && self.tiers.is_empty();
            server.target == *target && server.permits(client) && (server.admits_known() || last_resort)
        })
    }

    /// Why no server is left, after so many that were tried.
    pub(crate) fn refusal(
        &self,
        request: &Request,
        tried: usize,
        is_tried: impl Fn(ServerId) -> bool,
    ) -> NoServer {
        let tiers = || self.tiers.iter().chain(&self.unchecked).chain([&self.last_resort]);
        let usable = || tiers().flat_map(|tier| &tier.members);
        let fresh = || usable().filter(|server| !is_tried(server.id));
        if self.entries.is_empty() {
            NoServer::Empty
        } else if self.is_alone() {
            // Nobody else is asked, whatever is usable.
            if self.is_usable() { NoServer::NoFailover } else { NoServer::Down }
        } else if fresh().any(|server| server.permits(request.client)) {
            NoServer::Full
        } else if tried > 0 {
            NoServer::Failed
        } else if usable().next().is_some() {
            NoServer::Denied
        } else {
            NoServer::Down
        }
    }

    /// Whether a client that gets no server now may get one by waiting in the queue: an untried one that admits it is full.
    pub(crate) fn is_worth_waiting(&self, request: &Request, is_tried: impl Fn(ServerId) -> bool) -> bool {
        let members = self.tiers.iter().chain(&self.unchecked).flat_map(|tier| &tier.members);
        self.queue.is_some()
            && members.into_iter().any(|server| !is_tried(server.id) && server.permits(request.client))
    }

    /// Whether a newcomer may have a server that those in the queue cannot have: it is known there, or servers differ in
    /// whom they admit.
    #[must_use]
    pub fn may_pass_the_queue(&self, request: &Request) -> bool {
        let known = self.known_servers(request).into_iter().flatten();
        known.into_iter().any(|server| server.takes_known(request.client))
            || self.entries.iter().any(|server| server.acl.is_some())
    }

    /// Panics unless tiers, tables and servers agree.
    pub fn check_invariants(&self) {
        for tier in &self.tiers {
            assert!(tier.members.iter().all(|entry| entry.admission == Admission::Open && entry.share > 0));
            if let Table::Cycle(positions) | Table::Maglev(positions) = &tier.table {
                assert!(positions.iter().all(|&at| (at as usize) < tier.members.len()));
            }
        }
        for tier in &self.unchecked {
            assert!(tier.members.iter().all(|entry| entry.admission == Admission::Unchecked));
            assert!(tier.members.iter().all(|entry| entry.weight > 0), "who is there takes clients");
        }
        for entry in &self.entries {
            if let Some(hard) = entry.limits.hard {
                assert!(entry.live.occupancy.active() <= hard, "{} exceeds its hard limit", entry.name);
            }
        }
        if let Some(sticky) = &self.live.sticky {
            sticky.check_invariants();
        }
    }
}
