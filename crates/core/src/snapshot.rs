//! Read-only view of a pool for the planes. A snapshot never changes; the supervisor publishes a new snapshot
//! instead. The state that changes ([`ServerLive`] and [`PoolLive`]: counters, occupancy, the sticky table)
//! is shared by all snapshots.

mod entry;
mod placement;
mod quorum;
mod request;
mod takes;

pub use entry::{Admission, Entry, KnownOnly, PoolLive, ServerLive};
pub use placement::Placement;
pub use quorum::Quorum;
pub use request::{Choice, NoServer, Request, Why};
pub use takes::{Role, Takes};

use crate::ServerId;
use crate::address::Target;
use crate::attempt::work;
use crate::budget::RetryBudget;
use crate::hash;
use crate::limits::{Known, Lease};
use crate::policy::{self, Draw, Table};
use crate::random::Random;
use crate::spec::{Failover, Policy, QueueSpec};
use crate::sticky::{Assignment, Sticky};
use crate::time::Time;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The servers of a tier that can get new clients.
#[derive(Debug)]
struct Tier {
    members: Vec<Arc<Entry>>,
    table: Table,
}

/// The state of a pool at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Name of the pool.
    pub pool: Arc<str>,
    /// Number of the publication, which increases.
    pub generation: u64,
    /// The policy.
    pub policy: Policy,
    /// Name of the cookie that identifies clients.
    pub cookie: Option<Arc<str>>,
    /// Queue for clients while every server is at its limit.
    pub queue: Option<QueueSpec>,
    /// Bound on the retries.
    pub retry_budget: RetryBudget,
    entries: Vec<Arc<Entry>>,
    /// Positions of the entries, in the order of their identities.
    by_id: Vec<(ServerId, u32)>,
    tiers: Vec<Tier>,
    /// Servers without a first check, by tier.
    unchecked: Vec<Tier>,
    /// Policy for servers without a first check.
    policy_of_unchecked: Policy,
    last_resort: Tier,
    /// Candidates without failover; `None` with failover. For policies by address they include servers that
    /// are down.
    only: Option<Tier>,
    /// The lowest tier number.
    first_tier: u8,
    quorum: Option<Quorum>,
    live: Arc<PoolLive>,
}

/// Input of a new snapshot.
#[derive(Debug)]
pub struct SnapshotParts {
    /// Name of the pool.
    pub pool: Arc<str>,
    /// Number of the publication, greater than the number of the previous snapshot.
    pub generation: u64,
    /// The policy.
    pub policy: Policy,
    /// Name of the cookie that identifies clients.
    pub cookie: Option<Arc<str>>,
    /// Treatment of clients whose server cannot take them.
    pub failover: Failover,
    /// The quorum, if the pool needs one.
    pub quorum: Option<Quorum>,
    /// Queue for clients while every server is at its limit.
    pub queue: Option<QueueSpec>,
    /// Bound on the retries.
    pub retry_budget: RetryBudget,
    /// Every server.
    pub entries: Vec<Entry>,
    /// State that outlives the snapshot.
    pub live: Arc<PoolLive>,
}

impl Snapshot {
    /// Creates a snapshot and prepares the data of the policy.
    #[must_use]
    pub fn new(parts: SnapshotParts) -> Self {
        let SnapshotParts { pool, generation, policy, cookie, .. } = parts;
        let SnapshotParts { failover, quorum, queue, retry_budget, entries, live, .. } = parts;
        let has_quorum = quorum.is_none_or(|quorum| quorum.is_met);
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Arc::new).collect();
        let is_open = |entry: &Entry| entry.admission == Admission::Open && !entry.is_sorry;
        let is_sorry = |entry: &Entry| entry.admission == Admission::Open && entry.is_sorry;
        let is_unchecked = |entry: &Entry| entry.admission == Admission::Unchecked;
        let tier = |policy: Policy, keep: &dyn Fn(&Entry) -> bool| {
            let members: Vec<_> = entries.iter().filter(|entry| keep(entry)).cloned().collect();
            let table = Table::prepare(policy, &members);
            Tier { members, table }
        };
        let mut numbers: Vec<u8> =
            entries.iter().filter(|entry| !entry.is_sorry).map(|entry| entry.tier).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let by_tier = |policy: Policy, keep: &dyn Fn(&Entry) -> bool| -> Vec<Tier> {
            let of = |&number: &u8| tier(policy, &|entry| entry.tier == number && keep(entry));
            numbers.iter().map(of).filter(|tier| !tier.members.is_empty()).collect()
        };
        // Below the quorum the sorry servers come before the usable servers.
        let sorry = Some(tier(policy, &is_sorry)).filter(|tier| !has_quorum && !tier.members.is_empty());
        let uses_sorry = sorry.is_some();
        let tiers: Vec<Tier> = sorry.into_iter().chain(by_tier(policy, &is_open)).collect();
        // The policy applies while the whole pool is unchecked. While some servers are open, a table for the
        // unchecked servers is not worth its cost.
        let policy_of_unchecked = if tiers.is_empty() { policy } else { Policy::RoundRobin };
        let unchecked = by_tier(policy_of_unchecked, &is_unchecked);
        let is_last_resort = |entry: &&Arc<Entry>| {
            matches!(entry.admission, Admission::LastResort(_)) && !(entry.is_sorry && has_quorum)
        };
        let members = entries.iter().filter(is_last_resort).cloned().collect();
        let last_resort = Tier { members, table: Table::None };
        let only = numbers.first().filter(|_| failover == Failover::Never).map(|&first| {
            // With these policies the address of a client determines the server, even if that server is down.
            // Other policies choose among usable servers.
            let by_address = matches!(policy, Policy::Hash | Policy::Maglev { .. });
            if uses_sorry {
                return tier(policy, &is_sorry);
            }
            let any_open = entries.iter().any(|entry| entry.tier == first && is_open(entry));
            tier(policy, &|entry| {
                let is_usable = if any_open { is_open(entry) } else { is_unchecked(entry) };
                entry.tier == first && !entry.is_sorry && (by_address || is_usable)
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
            retry_budget,
            entries,
            by_id,
            tiers,
            unchecked,
            policy_of_unchecked,
            last_resort,
            only,
            first_tier,
            quorum,
            live,
        }
    }

    /// Returns every server, in the order of the configuration.
    #[must_use]
    pub fn servers(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// Returns the server with this identity.
    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&Arc<Entry>> {
        self.position(id).map(|at| &self.entries[at])
    }

    /// Returns the number of clients and requests that wait for a server, at all workers.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.live.queued.active()
    }

    /// Takes a slot in the queue, which is given back on drop. Returns `None` if there is no queue or the queue
    /// is full.
    #[must_use]
    pub fn enter_queue(&self) -> Option<Lease> {
        self.live.queued.enter(self.queue?.size)
    }

    /// Returns the sticky table, if there is one.
    #[must_use]
    pub fn sticky(&self) -> Option<&Sticky> {
        self.live.sticky.as_ref()
    }

    /// Returns true if any server can get new clients.
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

    /// Returns the first candidates for clients without a history: the open servers of the first tier with an
    /// open server. Without failover only the first tier counts.
    pub fn first_choices(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let tier = self.only.as_ref().or_else(|| self.tiers.first());
        let members = tier.map_or(&[][..], |tier| &tier.members);
        members.iter().filter(|entry| entry.admission == Admission::Open)
    }

    /// Returns true if there is no failover: a client gets the first server that is picked, or none.
    #[must_use]
    pub fn has_no_failover(&self) -> bool {
        self.only.is_some()
    }

    /// Picks a server for a client and takes a slot of that server. Servers in `tried` are excluded, so that
    /// after a failed connection attempt the next candidate is tried, until the tiers are exhausted.
    pub fn pick(
        &self,
        request: &Request,
        tried: &[ServerId],
        random: &mut Random,
    ) -> Result<Choice, NoServer> {
        // Only a client without a known server takes a turn. If known clients took turns, too, and each new
        // client connected twice, all new clients would get the same one of two servers.
        let mut taken = None;
        let turn = || *taken.get_or_insert_with(|| self.live.turn.fetch_add(1, Ordering::Relaxed));
        self.pick_by(request, tried, turn, random)
    }

    /// Picks another server for a client that a server in `tried` served already. The client takes no further
    /// turn: clients that leave a server are spread at random.
    pub(crate) fn pick_again(
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
        // Another worker may take the last slot in the meantime. The server is then full, so search again.
        for _ in 0..=self.entries.len() {
            let Some((server, why)) = self.find(request, tried, &mut turn, random) else { break };
            let known = if why == Why::Sticky { Known::Yes } else { Known::No };
            if let Some(lease) = server.live.occupancy.enter(server.limits.bound(known)) {
                return Ok(Choice { server: Arc::clone(server), lease, why, is_retry: false });
            }
        }
        Err(self.refusal(request, tried.len(), |id| tried.contains(&id)))
    }

    /// Takes a slot at a server from [`Snapshot::order`]. Returns `None` if the server may no longer be
    /// chosen for this reason or cannot take the client.
    pub(crate) fn take(&self, id: ServerId, request: &Request, why: Why) -> Option<Choice> {
        let server = self.server(id)?;
        let is_available = match server.admission {
            Admission::Open => true,
            Admission::Unchecked => why != Why::Policy,
            Admission::LastResort(_) => why == Why::LastResort,
            _ => false,
        };
        if !is_available || !server.has_room_for(request.client, Known::No) {
            return None;
        }
        let lease = server.live.occupancy.enter(server.limits.bound(Known::No))?;
        Some(Choice { server: Arc::clone(server), lease, why, is_retry: false })
    }

    /// Returns the servers for new clients in reverse order of picking: last resorts, unchecked servers, then
    /// open servers.
    pub(crate) fn order(
        &self,
        request: &Request,
        random: &mut Random,
        is_tried: impl Fn(ServerId) -> bool,
    ) -> Vec<(ServerId, Why)> {
        let client = hash::of_client(request.client);
        let mut draw = Draw { client, turn: self.next_turn(), now: request.now, random };
        let mut order = Vec::new();
        for (tiers, policy, why) in self.candidates() {
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

    /// Returns the server that [`Snapshot::pick`] would pick. Takes no slot. Calls `turn` unless a known
    /// server of the client is returned.
    pub(crate) fn find(
        &self,
        request: &Request,
        tried: &[ServerId],
        turn: impl FnOnce() -> u64,
        random: &mut Random,
    ) -> Option<(&Arc<Entry>, Why)> {
        self.find_with(self.known_servers(request), request, tried, turn, random)
    }

    /// Returns the server for a client whose known servers are `known`, the preferred one first.
    #[inline]
    fn find_with<'a>(
        &'a self,
        known: [Option<&'a Arc<Entry>>; 2],
        request: &Request,
        tried: &[ServerId],
        turn: impl FnOnce() -> u64,
        random: &mut Random,
    ) -> Option<(&'a Arc<Entry>, Why)> {
        let client = hash::of_client(request.client);
        let draw = || Draw { client, turn: turn(), now: request.now, random };
        if let Some(only) = &self.only {
            return self.find_only(only, known[0], request, tried, draw);
        }
        let known = known.into_iter().flatten().find(|server| {
            !tried.contains(&server.id)
                && server.takes_known(request.client)
                && (request.stay.is_some() || !self.has_preferred_tier(server, request, tried))
        });
        if let Some(server) = known {
            return Some((server, Why::Sticky));
        }
        let mut draw = draw();
        // The same order as in `candidates`, written out because that is faster.
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

    /// Returns the tiers for new clients in the order in which they are searched, with their policies.
    fn candidates(&self) -> [(&[Tier], Policy, Why); 3] {
        [
            (&self.tiers, self.policy, Why::Policy),
            (&self.unchecked, self.policy_of_unchecked, Why::Unchecked),
            (std::slice::from_ref(&self.last_resort), Policy::RoundRobin, Why::LastResort),
        ]
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

    /// Returns the only server that a client may use without failover, if that server can take the client.
    fn find_only<'a, 'd>(
        &'a self,
        only: &'a Tier,
        known: Option<&'a Arc<Entry>>,
        request: &Request,
        tried: &[ServerId],
        draw: impl FnOnce() -> Draw<'d>,
    ) -> Option<(&'a Arc<Entry>, Why)> {
        if !tried.is_empty() {
            return None;
        }
        // Without failover only servers of the first tier are used.
        let known = known.filter(|known| known.tier == self.first_tier);
        // The sorry server takes the clients of servers that are down.
        let known = known.filter(|known| !self.lacks_quorum() || known.takes_known(request.client));
        if let Some(known) = known {
            return known.takes_known(request.client).then_some((known, Why::Sticky));
        }
        let at = policy::choose(self.policy, &only.table, &only.members, &mut draw(), |_| true)?;
        let server = &only.members[at];
        let why = if server.admission == Admission::Unchecked { Why::Unchecked } else { Why::Policy };
        let takes = server.admits_chosen() && server.has_room_for(request.client, Known::No);
        takes.then_some((server, why))
    }

    /// Returns true if a server with a lower tier number than `known` can take the client. The client then
    /// leaves `known` and returns to the lower tier.
    fn has_preferred_tier(&self, known: &Entry, request: &Request, tried: &[ServerId]) -> bool {
        let above = self.tiers.iter().take_while(|tier| tier.members[0].tier < known.tier);
        above
            .flat_map(|tier| &tier.members)
            .any(|server| !tried.contains(&server.id) && server.has_room_for(request.client, Known::No))
    }

    /// Returns the server that the client is assigned to, if the server is still in the pool.
    pub(crate) fn known_server(&self, request: &Request) -> Option<&Arc<Entry>> {
        self.known_servers(request)[0]
    }

    /// Returns true if the client is assigned to the server.
    pub(crate) fn is_known_at(&self, request: &Request, id: ServerId) -> bool {
        self.known_servers(request).into_iter().flatten().any(|server| server.id == id)
    }

    /// Returns the servers to which the client is assigned, the preferred one first: the server that its
    /// connection or cookie names, or its home and its substitute in the sticky table.
    fn known_servers(&self, request: &Request) -> [Option<&Arc<Entry>>; 2] {
        if let Some(stay) = request.stay {
            return [self.server(stay), None];
        }
        if let Some(token) = request.token.filter(|_| self.cookie.is_some()) {
            // No client stays with a sorry server.
            return [self.entries.iter().find(|server| server.token == token && !server.is_sorry), None];
        }
        let sticky = self.live.sticky.as_ref();
        self.assigned(sticky.and_then(|sticky| sticky.lookup(request.client, request.now)))
    }

    /// Returns the servers of an assignment that are in the pool.
    fn assigned(&self, assignment: Option<Assignment>) -> [Option<&Arc<Entry>>; 2] {
        assignment.map_or([None; 2], |assignment| {
            [Some(assignment.home), assignment.substitute].map(|id| self.server(id?))
        })
    }

    /// Returns the entry of the client in the sticky table.
    pub(crate) fn assignment(&self, request: &Request) -> Option<Assignment> {
        self.live.sticky.as_ref()?.lookup(request.client, request.now)
    }

    /// Returns the number of the next choice.
    pub(crate) fn next_turn(&self) -> u64 {
        self.live.turn.load(Ordering::Relaxed)
    }

    /// Records the present server of a client in the sticky table, if there is one.
    pub fn remember(&self, client: IpAddr, server: ServerId, now: Time) {
        let Some(sticky) = &self.live.sticky else { return };
        if self.server(server).is_some_and(|server| server.is_sorry) {
            return;
        }
        let tier = |id| self.server(id).map(|server| server.tier);
        // A client does not return to a removed server, nor to a server with a higher tier number than its
        // present server has.
        let moves = |home| tier(home).is_none_or(|of_home| tier(server).is_some_and(|now| now < of_home));
        sticky.remember(client, server, now, moves);
    }

    /// Records the duration of a connection attempt or of a response, if the policy uses latencies.
    pub fn observe(&self, server: &Entry, took: Duration, now: Time) {
        let decay = match self.policy {
            Policy::Ewma { decay } => decay,
            Policy::LeastOutstanding => Policy::EWMA_DECAY,
            _ => return,
        };
        server.live.latency.observe(took, now, decay);
    }

    /// Returns true if a flow of this client may stay with its server, whose address was `target` when the
    /// flow began. A server that only passive checks marked down keeps its flows while no server is open:
    /// another socket would not help.
    #[must_use]
    pub fn keeps_flow(&self, id: ServerId, target: &Target, client: IpAddr) -> bool {
        self.server(id).is_some_and(|server| {
            server.target == *target && server.permits(client) && self.keeps_clients(server)
        })
    }

    fn keeps_clients(&self, server: &Entry) -> bool {
        let last_resort = matches!(server.admission, Admission::LastResort(_)) && self.tiers.is_empty();
        server.admits_known() || last_resort
    }

    /// Returns the reason why no server is left after `tried` servers failed.
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
        } else if self.has_no_failover() {
            // No other server is tried, even if one is usable.
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

    /// Returns true if the client may get another server than the servers that were tried, now or after
    /// waiting.
    pub(crate) fn has_untried(
        &self,
        request: &Request,
        last_resorts: bool,
        is_tried: impl Fn(ServerId) -> bool,
    ) -> bool {
        let last_resort = Some(&self.last_resort).filter(|_| last_resorts);
        let mut members =
            self.tiers.iter().chain(&self.unchecked).chain(last_resort).flat_map(|tier| &tier.members);
        !self.has_no_failover()
            && members.any(|server| !is_tried(server.id) && server.permits(request.client))
    }

    /// Returns true if a client for which no server was picked may get a server by waiting: the pool has a
    /// queue, and an untried server that admits the client is full.
    pub(crate) fn is_worth_waiting(&self, request: &Request, is_tried: impl Fn(ServerId) -> bool) -> bool {
        let members = self.tiers.iter().chain(&self.unchecked).flat_map(|tier| &tier.members);
        self.queue.is_some()
            && members.into_iter().any(|server| !is_tried(server.id) && server.permits(request.client))
    }

    /// Returns true if a new client may use a server that the waiting clients cannot use: the client is
    /// assigned to that server, or servers differ in the clients that they admit.
    #[must_use]
    pub fn may_pass_the_queue(&self, request: &Request) -> bool {
        let known = self.known_servers(request).into_iter().flatten();
        known.into_iter().any(|server| server.takes_known(request.client))
            || self.entries.iter().any(|server| server.acl.is_some())
    }

    /// Panics unless tiers, tables and servers are consistent.
    pub fn check_invariants(&self) {
        for tier in &self.tiers {
            assert!(tier.members.iter().all(|entry| entry.admission == Admission::Open && entry.share > 0));
            if let Table::Cycle(positions) | Table::Maglev(positions) = &tier.table {
                assert!(positions.iter().all(|&at| (at as usize) < tier.members.len()));
            }
        }
        for tier in &self.unchecked {
            assert!(tier.members.iter().all(|entry| entry.admission == Admission::Unchecked));
            assert!(
                tier.members.iter().all(|entry| entry.weight > 0),
                "the weight of an unchecked server is not 0"
            );
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
