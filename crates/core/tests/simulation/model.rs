//! Expected content of the sticky table, in the simplest form: a plain map. Each rule is applied by iteration
//! over all clients. The table is never full in the simulation.

use evener_core::event::Event;
use evener_core::limits::Known;
use evener_core::pool::Pool;
use evener_core::snapshot::{Admission, Choice, Entry, Snapshot, Why};
use evener_core::spec::{Policy, StickySpec};
use evener_core::{ServerId, Time, acl::Access};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Home of a client, the substitute of the home, and the time at which the client was last seen.
type Assignment = (ServerId, Option<ServerId>, Time);

/// The table, and the history of its clients.
pub(crate) struct Model {
    spec: Option<StickySpec>,
    clients: BTreeMap<IpAddr, Assignment>,
    rebalance_due: Time,
    /// Number of clients that were rebalanced.
    rebalanced: usize,
    /// Number of times that a client returned to its home.
    returned: usize,
}

/// A client that chose a server. The slot that the client has just taken is not counted.
struct Requester<'a> {
    snapshot: &'a Snapshot,
    client: IpAddr,
    choice: &'a Choice,
    tried: &'a [ServerId],
}

impl Requester<'_> {
    fn has_room(&self, server: &Entry, known: Known) -> bool {
        let taken = u32::from(server.id == self.choice.server.id);
        let permits = server.acl.as_ref().is_none_or(|acl| acl.access(self.client) == Access::Permit);
        permits && server.live.occupancy.active() - taken < server.limits.bound(known)
    }

    /// Returns true if the client may return to an earlier server.
    fn may_return_to(&self, id: ServerId) -> bool {
        let Some(server) = self.snapshot.servers().iter().find(|server| server.id == id) else {
            return false;
        };
        let is_above = |other: &Entry| other.tier < server.tier && other.admission == Admission::Open;
        let taken_above = self.snapshot.servers().iter().any(|other| {
            is_above(other) && !self.tried.contains(&other.id) && self.has_room(other, Known::No)
        });
        let admits =
            matches!(server.admission, Admission::Open | Admission::Unchecked | Admission::KnownOnly(_));
        admits && !self.tried.contains(&id) && self.has_room(server, Known::Yes) && !taken_above
    }
}

impl Model {
    /// Returns the number of clients that were rebalanced, and the number of returns to a home.
    pub(crate) fn moves(&self) -> (usize, usize) {
        (self.rebalanced, self.returned)
    }

    /// Creates an empty table.
    pub(crate) fn new(spec: Option<&StickySpec>, now: Time) -> Self {
        let (clients, rebalance_due) = (BTreeMap::new(), Time::NEVER);
        let mut model = Self { spec: None, clients, rebalance_due, rebalanced: 0, returned: 0 };
        model.reload(spec, |_| true, now);
        model
    }

    fn assignment(&self, client: IpAddr, now: Time) -> Option<Assignment> {
        self.clients.get(&client).copied().filter(|assignment| self.is_alive(assignment, now))
    }

    fn is_alive(&self, &(.., seen): &Assignment, now: Time) -> bool {
        self.spec.as_ref().and_then(|spec| spec.ttl).is_none_or(|ttl| now.since(seen) < ttl)
    }

    /// Checks that the client is assigned its home if possible, otherwise its substitute, otherwise a new
    /// server.
    pub(crate) fn check_choice(
        &self,
        snapshot: &Snapshot,
        client: IpAddr,
        choice: &Choice,
        tried: &[ServerId],
        now: Time,
    ) {
        let requester = Requester { snapshot, client, choice, tried };
        let may = |id: Option<ServerId>| id.filter(|&id| requester.may_return_to(id));
        let (home, substitute) = self
            .assignment(client, now)
            .map_or((None, None), |(home, substitute, _)| (Some(home), substitute));
        let expected = may(home).or_else(|| may(substitute));
        assert_eq!(
            expected,
            (choice.why == Why::Sticky).then_some(choice.server.id),
            "{home:?} {substitute:?}"
        );
    }

    /// Records the server that a client uses now.
    pub(crate) fn remember(&mut self, snapshot: &Snapshot, client: IpAddr, server: ServerId, now: Time) {
        let Some(spec) = &self.spec else { return };
        let failback = spec.failback;
        let tier = |id| snapshot.servers().iter().find(|server| server.id == id).map(|server| server.tier);
        let assignment = match self.assignment(client, now).filter(|_| failback) {
            Some((home, ..)) if home != server && tier(home) <= tier(server) && tier(home).is_some() => {
                (home, Some(server), now)
            }
            Some((home, Some(_), _)) if home == server => {
                self.returned += 1;
                (home, None, now)
            }
            _ => (server, None, now),
        };
        self.clients.insert(client, assignment);
    }

    /// Applies another configuration; `stays` returns true for servers that remain.
    pub(crate) fn reload(&mut self, spec: Option<&StickySpec>, stays: impl Fn(ServerId) -> bool, now: Time) {
        let alive: BTreeMap<IpAddr, Assignment> = self
            .clients
            .iter()
            .filter(|(_, assignment)| self.is_alive(assignment, now))
            .map(|(c, s)| (*c, *s))
            .collect();
        if self.spec.as_ref() != spec {
            self.clients = alive;
            self.rebalance_due =
                spec.and_then(|spec| spec.rebalance).map_or(Time::NEVER, |every| now + every);
        }
        let failback = spec.is_some_and(|spec| spec.failback);
        self.clients.retain(|_, (home, ..)| spec.is_some() && stays(*home));
        for (_, substitute, _) in self.clients.values_mut() {
            *substitute = substitute.filter(|id| failback && stays(*id));
        }
        self.spec = spec.cloned();
    }

    /// Checks the events of the pool after time has passed.
    pub(crate) fn on_time(&mut self, pool: &Pool, snapshot: &Snapshot, events: &[Event], now: Time) {
        let rebalanced = events.iter().find_map(|event| match event {
            Event::ClientsRebalanced { server, clients, .. } => Some((server, *clients)),
            _ => None,
        });
        let due = self.rebalance_due <= now;
        if due {
            let every = self.spec.as_ref().and_then(|spec| spec.rebalance);
            self.rebalance_due = every.map_or(Time::NEVER, |every| now + every);
        }
        assert!(due || rebalanced.is_none(), "clients are rebalanced only when it is due");
        self.check_balance(pool, snapshot, rebalanced.map_or(0, |(_, clients)| clients), due, now);
        if let Some((name, clients)) = rebalanced {
            let server = pool.servers().iter().find(|server| server.spec.name == *name);
            self.forget(pool, server.expect("the server belongs to the pool").id, clients, now);
        }
    }

    /// Checks the number of rebalanced clients if each server should have the same number of clients.
    fn check_balance(&self, pool: &Pool, snapshot: &Snapshot, clients: usize, due: bool, now: Time) {
        let even = pool.spec().policy == Policy::RoundRobin && pool.spec().slow_start.is_none();
        let has_room = |server: &Entry| server.live.occupancy.active() < server.limits.bound(Known::No);
        let servers: Vec<_> = snapshot.first_choices().collect();
        if !due || !even || !servers.iter().all(|server| has_room(server)) || servers.is_empty() {
            return;
        }
        let count = |id: ServerId| {
            self.clients
                .values()
                .filter(|assignment| assignment.0 == id && self.is_alive(assignment, now))
                .count()
        };
        let counts = || servers.iter().map(|server| count(server.id));
        let difference = counts().max().unwrap_or(0) - counts().min().unwrap_or(0);
        assert_eq!(clients, difference.saturating_sub(servers.len()), "{:?}", counts().collect::<Vec<_>>());
    }

    /// Checks that the forgotten clients of a server are the clients that were seen the longest ago, and
    /// removes them from the model.
    fn forget(&mut self, pool: &Pool, home: ServerId, clients: usize, now: Time) {
        let sticky = pool.sticky().expect("a table was rebalanced");
        let of_home = self
            .clients
            .iter()
            .filter(|(_, assignment)| assignment.0 == home && self.is_alive(assignment, now));
        let (remaining, gone): (Vec<_>, Vec<_>) = of_home
            .map(|(client, assignment)| (*client, assignment.2))
            .partition(|(c, _)| sticky.lookup(*c, now).is_some());
        assert_eq!(gone.len(), clients, "the event reports the number of forgotten clients");
        let newest_gone = gone.iter().map(|(_, seen)| *seen).max();
        assert!(remaining.iter().all(|(_, seen)| Some(*seen) >= newest_gone), "recently seen clients stay");
        self.clients.retain(|client, _| !gone.iter().any(|(forgotten, _)| forgotten == client));
        self.rebalanced += gone.len();
    }

    /// Checks that the table equals the model.
    pub(crate) fn check(&self, pool: &Pool, now: Time) {
        assert_eq!(self.spec.is_some(), pool.sticky().is_some());
        let Some(sticky) = pool.sticky() else { return };
        sticky.check_invariants();
        let table: BTreeMap<IpAddr, Assignment> = sticky
            .clients(now, usize::MAX)
            .into_iter()
            .map(|one| (one.address, (one.assignment.home, one.assignment.substitute, one.seen_at)))
            .collect();
        let alive = self.clients.iter().filter(|(_, assignment)| self.is_alive(assignment, now));
        assert_eq!(
            table,
            alive.map(|(client, assignment)| (*client, *assignment)).collect::<BTreeMap<_, _>>()
        );
    }
}
