//! Explanation of the choice of a server for a client: the decision of the service, the order in which
//! servers would be tried, and the reasons against the other servers. The same code makes the real choice; an
//! explanation takes neither a slot nor a turn.

use crate::ServerId;
use crate::acl::{Access, Acl};
use crate::hash;
use crate::limits::Known;
use crate::policy;
use crate::random::Random;
use crate::snapshot::{Admission, Entry, KnownOnly, NoServer, Quorum, Request, Snapshot, Why};
use crate::spec::{Policy, Protocol, QueueSpec};
use crate::throttle::{Exceeded, Throttle};
use crate::time::Time;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Maximum number of candidates with a rank. Later candidates are listed without a rank.
const CANDIDATES_MAX: usize = 64;

/// Checks before the choice of a server.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The protocol of the service.
    pub protocol: Protocol,
    /// Access list of the service.
    pub acl: Option<&'a Acl>,
    /// Denied clients are served from another pool.
    pub serves_denied: bool,
    /// Limits per client of the service.
    pub throttle: Option<&'a Throttle>,
}

/// Decision of a service on a client that connects now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// The client is admitted.
    Permitted,
    /// The access list refuses the client.
    Denied,
    /// The client reached a limit.
    Exceeded(Exceeded),
}

impl Gate<'_> {
    /// Returns the decision about the client's next connection and its first request. Neither is counted.
    #[must_use]
    pub fn entrance(&self, client: IpAddr, now: Time) -> Entrance {
        let denied = self.acl.is_some_and(|acl| acl.access(client) == Access::Deny);
        if denied && !self.serves_denied {
            return Entrance::Denied;
        }
        let used = self.throttle.map(|throttle| throttle.used(client, now));
        // Denied clients are served by their own pool, without limits of connections.
        let connection = used.and_then(|used| used.connection).filter(|_| !denied);
        let request = used.and_then(|used| used.request).filter(|_| self.protocol == Protocol::Http);
        match connection.or(request) {
            Some(exceeded) => Entrance::Exceeded(exceeded),
            None if denied => Entrance::Denied,
            None => Entrance::Permitted,
        }
    }
}

/// Explanation for one client.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The server to which the sticky table or a cookie assigns the client.
    pub sticky: Option<Arc<str>>,
    /// The policy is random, so the order is one of several possible orders.
    pub by_chance: bool,
    /// Every server: the candidates in their order, then the others.
    pub servers: Vec<Row>,
    /// Reason why the client gets no server now; `None` if there is a candidate.
    pub refusal: Option<NoServer>,
    /// The quorum of the pool, if it needs one.
    pub quorum: Option<Quorum>,
    /// The queue for clients while every server is at its limit, if there is one.
    pub queue: Option<QueueUse>,
}

/// Use of the queue of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueUse {
    /// Number of waiting clients and requests.
    pub waiting: u32,
    /// The queue as configured.
    pub spec: QueueSpec,
}

impl Explanation {
    /// Returns true if the client waits in the queue: every server is at its limit, or other clients wait.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.queue.is_some_and(|queue| {
            let has_room = queue.waiting < queue.spec.size;
            has_room
                && (self.refusal == Some(NoServer::Full) || (self.refusal.is_none() && queue.waiting > 0))
        })
    }
}

/// Returns the stable code of a reason why a client gets no server.
#[must_use]
pub const fn code_of(refusal: NoServer) -> &'static str {
    match refusal {
        NoServer::Empty => "no_servers",
        NoServer::Failed => "failed",
        NoServer::Full => "full",
        NoServer::Denied => "denied",
        NoServer::Down => "down",
        NoServer::NoDescriptor => "no_descriptor",
        NoServer::NoFailover => "no_failover",
        NoServer::RetryBudget => "retry_budget",
    }
}

/// One server of an explanation.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The server's name.
    pub server: Arc<str>,
    /// Tier of the server.
    pub tier: u8,
    /// The number by which the policy compares the server ([`policy::score`]), if there is one.
    pub score: Option<f64>,
    /// The reason for the server's rank.
    pub reason: Reason,
}

/// The reason for a server's rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The server would be tried as number `.0`, because of `.1`.
    Candidate(usize, Why),
    /// The server would be tried after the ranked servers.
    Further,
    /// The server is at its limit.
    Full {
        /// Number of present connections or flows.
        active: u32,
        /// The limit that holds for the client.
        bound: u32,
    },
    /// The server's access list refuses the client.
    Denied,
    /// The server drains, and the client is new there.
    Drain,
    /// The server has the weight 0, and the client is new there.
    Weightless,
    /// A check marked the server down.
    Down(Arc<str>),
    /// An operator put the server into maintenance.
    Maintenance,
    /// The server takes clients only while the pool is below its quorum.
    Sorry,
    /// Another server was chosen, and there is no failover.
    NoFailover,
}

impl Reason {
    /// Returns the stable code of the reason, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Candidate(1, _) => "chosen",
            Self::Candidate(..) => "candidate",
            Self::Further => "later_candidate",
            Self::Full { .. } => "full",
            Self::Denied => "denied",
            Self::Drain => "draining",
            Self::Weightless => "weight_zero",
            Self::Down(_) => "down",
            Self::Maintenance => "maintenance",
            Self::Sorry => "sorry_server",
            Self::NoFailover => "no_failover",
        }
    }

    /// Returns the rank and the reason for it, if the server is a candidate with a rank.
    #[must_use]
    pub const fn rank(&self) -> Option<(usize, Why)> {
        match self {
            Self::Candidate(rank, why) => Some((*rank, *why)),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Candidate(1, Why::Sticky) => write!(out, "chosen: the client used it before"),
            Self::Candidate(1, Why::Policy) => write!(out, "chosen by the policy"),
            Self::Candidate(1, Why::Unchecked) => {
                write!(out, "chosen: not checked yet, but no checked server can take the client")
            }
            Self::Candidate(1, Why::LastResort) => {
                write!(out, "chosen: traffic failed to reach it, but no other server is left")
            }
            Self::Candidate(rank, why) => {
                match rank {
                    2 => write!(out, "would be tried next")?,
                    rank => write!(out, "would be tried as number {rank}")?,
                }
                match why {
                    Why::Unchecked => write!(out, ", not checked yet"),
                    Why::LastResort => write!(out, ", as a last resort"),
                    Why::Sticky | Why::Policy => Ok(()),
                }
            }
            Self::Further => write!(out, "would be tried later"),
            Self::Full { active, bound } => write!(out, "full: {active} of {bound}"),
            Self::Denied => write!(out, "its access list refuses the client"),
            Self::Drain => write!(out, "draining: no new clients"),
            Self::Weightless => write!(out, "weight 0: no new clients"),
            Self::Down(reason) => write!(out, "down: {reason}"),
            Self::Maintenance => write!(out, "in maintenance"),
            Self::Sorry => write!(out, "sorry server: no clients while the pool has its quorum"),
            Self::NoFailover => write!(out, "not this client's server, and there is no failover"),
        }
    }
}

/// Explains the choice for a client.
#[must_use]
pub fn explain(snapshot: &Snapshot, request: &Request, random: &mut Random) -> Explanation {
    let turn = snapshot.next_turn();
    let row = |server: &Entry, reason| Row {
        server: server.name.clone(),
        tier: server.tier,
        score: policy::score(snapshot.policy, server, hash::of_client(request.client), request.now),
        reason,
    };
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
        refusal: tried.is_empty().then(|| snapshot.refusal(request, 0, |_| false)),
        quorum: snapshot.quorum().copied(),
        queue: snapshot.queue.map(|spec| QueueUse { waiting: snapshot.queued(), spec }),
        servers,
    }
}

fn against(snapshot: &Snapshot, server: &Entry, request: &Request) -> Reason {
    // The limit for new clients does not hold at the client's own server.
    let is_assigned = snapshot.is_known_at(request, server.id);
    let bound = server.limits.bound(if is_assigned { Known::Yes } else { Known::No });
    let active = server.live.occupancy.active();
    match &server.admission {
        Admission::Maintenance => Reason::Maintenance,
        Admission::Down(reason) => Reason::Down(reason.clone()),
        Admission::Open | Admission::Unchecked | Admission::KnownOnly(_)
            if is_assigned && active >= bound =>
        {
            Reason::Full { active, bound }
        }
        Admission::Open | Admission::Unchecked | Admission::KnownOnly(_)
            if is_assigned && !server.permits(request.client) =>
        {
            Reason::Denied
        }
        Admission::KnownOnly(KnownOnly::Drain) => Reason::Drain,
        Admission::KnownOnly(KnownOnly::Weight) => Reason::Weightless,
        Admission::Open | Admission::LastResort(_) if server.is_sorry && !snapshot.lacks_quorum() => {
            Reason::Sorry
        }
        Admission::Open | Admission::Unchecked | Admission::LastResort(_) if snapshot.has_no_failover() => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::ThrottleSpec;
    use std::sync::Arc;

    /// Checks the decision after `before` connections and requests of the client.
    fn check(protocol: Protocol, denied: bool, serves_denied: bool, before: (u32, u32), expected: Entrance) {
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let access = if denied { Access::Deny } else { Access::Permit };
        let acl = Acl::new(&[], access);
        let rate = |rate: &str| Some(rate.parse().unwrap());
        let (connection_rate, request_rate) = (rate("4/s"), rate("2/s"));
        let spec = ThrottleSpec { connections: Some(3), connection_rate, request_rate, size: 16 };
        let throttle = Arc::new(Throttle::new(&spec, 1));
        let _slots: Vec<_> = (0..before.0).map(|_| throttle.enter(client, Time::ZERO).unwrap()).collect();
        (0..before.1).for_each(|_| assert!(throttle.admits_request(client, Time::ZERO)));
        let gate = Gate { protocol, acl: Some(&acl), serves_denied, throttle: Some(&throttle) };
        assert_eq!(gate.entrance(client, Time::ZERO), expected, "{protocol:?} {denied} {before:?}");
    }

    #[test]
    fn the_access_list_is_applied_before_the_limits() {
        use Entrance::{Denied, Exceeded as Limit, Permitted};
        check(Protocol::Tcp, false, false, (2, 2), Permitted);
        check(Protocol::Tcp, false, false, (3, 0), Limit(Exceeded::Connections));
        check(Protocol::Http, false, false, (3, 2), Limit(Exceeded::Connections));
        check(Protocol::Http, false, false, (2, 2), Limit(Exceeded::RequestRate));
        check(Protocol::Http, true, false, (3, 2), Denied);
        check(Protocol::Http, true, true, (3, 1), Denied);
        check(Protocol::Http, true, true, (3, 2), Limit(Exceeded::RequestRate));
    }

    /// A pool of one server with `max` 1 and `hard` 2, and `active` connections of the client 192.0.2.1, which is
    /// assigned to it.
    fn explained(client: &str, active: usize) -> Explanation {
        use crate::pool::{Pool, PoolSetting};
        use crate::spec::{PoolSpec, ServerSpec, StickyBy, StickySpec};
        let endpoint: crate::Endpoint = "10.0.0.1:80".parse().unwrap();
        let targets = vec![endpoint.target().unwrap()];
        let mut server = ServerSpec::new(endpoint);
        (server.limits.soft, server.limits.hard) = (Some(1), Some(2));
        let by = StickyBy::ClientIp;
        let sticky = Some(StickySpec { by, size: 8, ttl: None, failback: false, rebalance: None });
        let spec = PoolSpec { sticky, ..PoolSpec::new("web", vec![server]) };
        let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
        let mut pool = Pool::new(&spec, &targets, setting, Time::ZERO);
        let snapshot = pool.snapshot().unwrap();
        let assigned = Request::of("192.0.2.1".parse().unwrap(), Time::ZERO);
        let mut random = Random::seeded(1);
        let mut choices = Vec::new();
        for _ in 0..active {
            let choice = snapshot.pick(&assigned, &[], &mut random).unwrap();
            snapshot.remember(assigned.client, choice.server.id, Time::ZERO);
            choices.push(choice);
        }
        explain(&snapshot, &Request::of(client.parse().unwrap(), Time::ZERO), &mut random)
    }

    #[test]
    fn a_full_server_is_explained_with_the_limit_that_holds_for_the_client() {
        let check = |client, active, reason: Reason, refusal| {
            let explained = explained(client, active);
            assert_eq!(
                (&explained.servers[0].reason, explained.refusal),
                (&reason, refusal),
                "{client} {active}"
            );
        };
        check("192.0.2.1", 1, Reason::Candidate(1, Why::Sticky), None);
        check("192.0.2.1", 2, Reason::Full { active: 2, bound: 2 }, Some(NoServer::Full));
        check("192.0.2.2", 0, Reason::Candidate(1, Why::Policy), None);
        check("192.0.2.2", 1, Reason::Full { active: 1, bound: 1 }, Some(NoServer::Full));
        check("192.0.2.2", 2, Reason::Full { active: 2, bound: 1 }, Some(NoServer::Full));
    }

    #[test]
    fn a_client_waits_in_the_queue_unless_the_queue_is_full() {
        let explained = explained("192.0.2.2", 1);
        assert!(explained.waits());
        let spec = QueueSpec { size: 3, ..QueueSpec::DEFAULT };
        let queue = |waiting| Explanation { queue: Some(QueueUse { waiting, spec }), ..explained.clone() };
        assert!(queue(2).waits() && !queue(3).waits());
        assert!(!Explanation { queue: None, ..explained }.waits());
    }
}
