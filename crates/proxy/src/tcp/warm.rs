//! Warm connections: opened to servers before clients need them, spread evenly over the first candidates of a
//! service's default pool. Each worker opens its share and checks each connection once a second. A client gets
//! a warm connection if there is one to its chosen server. This module neither chooses servers nor reads bytes.

use crate::context::Context;
use crate::context::descriptors::Unit;
use crate::io::connect::{connect, note_failure, open_socket};

use crate::service::{Service, Settings};
use arc_swap::ArcSwap;
use evener_core::limits::Lease;
use evener_core::snapshot::{Admission, Choice, Entry, Snapshot};
use evener_core::spec::ServiceOptions;
use evener_core::{ServerId, Time};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// Interval between checks of a connection, and pause before new connections are opened after a connection was
/// closed or failed.
const EVERY: Duration = Duration::from_secs(1);
/// Interval between checks of a pending connection attempt.
const SOON: Duration = Duration::from_millis(50);
/// Maximum number of connections that are checked in one turn.
const CHECKS_MAX: usize = 64;
/// Maximum number of connection attempts that begin in one turn.
const BEGUN_MAX: usize = 64;
/// Pause between turns, for other work.
const TURN: Duration = Duration::from_millis(1);

/// The warm connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Warm {
    parts: Vec<Part>,
    /// Time of the next check; `None` when no service has warm connections.
    due: Option<Time>,
}

/// This worker's part of the warm connections of a service.
#[derive(Debug)]
struct Part {
    service: Arc<Service>,
    pool: Arc<ArcSwap<Snapshot>>,
    /// Options with which the connections were opened.
    options: ServiceOptions,
    /// Connections by server, the oldest first.
    sockets: BTreeMap<ServerId, VecDeque<WarmSocket>>,
    open_at: Time,
}

/// One unused connection.
#[derive(Debug)]
struct WarmSocket {
    socket: OwnedFd,
    server: Arc<Entry>,
    /// Beginning of the connection attempt, while it is pending.
    since: Option<Time>,
    /// Time of the next check.
    check_at: Time,
    /// Slot among the warm connections of the server; clients have their own slots.
    _permit: Lease,
    /// Slot among the warm connections of the service, once the connection is established.
    counted: Option<Lease>,
    _descriptor: Unit,
}

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Connecting,
    /// Closed by the server, or failed after it was established.
    Ended,
    /// Failed to connect.
    Failed(Errno),
}

/// Number of connections of a worker, and of the workers before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    count: usize,
    before: usize,
}

impl Share {
    /// Returns the part of one worker, from its index and the number of workers.
    fn of(warm: u32, (worker, workers): (usize, usize)) -> Self {
        let (warm, workers) = (warm as usize, workers.max(1));
        let (each, rest) = (warm / workers, warm % workers);
        Self { count: each + usize::from(worker < rest), before: worker * each + worker.min(rest) }
    }

    /// Returns the part of one server, from its position and the number of servers. Each worker continues with
    /// the server after the last server of the previous worker.
    fn at(self, (position, servers): (usize, usize)) -> usize {
        let turn = (position + servers - self.before % servers) % servers;
        self.count / servers + usize::from(turn < self.count % servers)
    }
}

impl Warm {
    /// Schedules an immediate check, after a change of services or servers.
    pub(super) fn check_again(&mut self, now: Time) {
        self.due = Some(now);
    }

    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// Closes all connections, for clients that need descriptors, and returns their number. New connections are
    /// opened later.
    pub(super) fn shed(&mut self, now: Time) -> u32 {
        let mut closed = 0;
        for part in &mut self.parts {
            closed += part.sockets.values().map(|sockets| sockets.len() as u32).sum::<u32>();
            part.sockets.clear();
            part.open_at = now + EVERY;
        }
        closed
    }

    fn part(&mut self, service: &Arc<Service>, pool: &Arc<ArcSwap<Snapshot>>) -> Option<&mut Part> {
        let same = |part: &&mut Part| Arc::ptr_eq(&part.service, service) && Arc::ptr_eq(&part.pool, pool);
        self.parts.iter_mut().find(same)
    }
}

/// Returns the share of this worker. It is empty while the program drains, if servers get the client's address,
/// and for services with TLS or HTTP.
fn share(settings: &Settings, cx: &Context) -> Share {
    let personal = settings.default_backend.is_none_or(|backend| settings.is_personal(backend));
    let none = cx.draining || personal || settings.is_layered();
    Share::of(if none { 0 } else { settings.options.warm }, cx.position())
}

impl Warm {
    /// Checks the connections of these services where a check is due, closes unusable connections, and opens
    /// missing connections.
    pub(super) fn maintain<'a>(&mut self, cx: &Context, services: impl Iterator<Item = &'a Arc<Service>>) {
        let mut parts = Vec::new();
        for service in services {
            let settings = service.settings.load_full();
            let Some(pool) = settings.pool().filter(|_| share(&settings, cx).count > 0) else { continue };
            let known = self.parts.iter().position(|part| Arc::ptr_eq(&part.service, service));
            match known {
                Some(at) => parts.push(self.parts.swap_remove(at).with(pool, &settings.options)),
                None if parts.iter().any(|part: &Part| Arc::ptr_eq(&part.service, service)) => {}
                None => parts.push(Part::new(service, pool, &settings.options, cx.now)),
            }
        }
        // The rest belongs to services that were removed or have no warm connections now.
        self.parts = parts;
        self.due = self.parts.iter_mut().map(|part| part.maintain(cx)).min();
    }

    /// Takes a warm connection to the server that was chosen for a client, if there is one; another connection
    /// is opened in its place.
    pub(super) fn take(
        &mut self,
        cx: &Context,
        service: &Arc<Service>,
        pool: &Arc<ArcSwap<Snapshot>>,
        choice: &Choice,
    ) -> Option<OwnedFd> {
        let part = self.part(service, pool)?;
        let taken = part.take(&choice.server, cx.now)?;
        service.live.counters.of(cx.id).warm_used.one();
        part.replace(&choice.server, cx);
        Some(taken)
    }
}

impl Part {
    fn new(
        service: &Arc<Service>,
        pool: &Arc<ArcSwap<Snapshot>>,
        options: &ServiceOptions,
        now: Time,
    ) -> Self {
        Self {
            service: Arc::clone(service),
            pool: Arc::clone(pool),
            options: options.clone(),
            sockets: BTreeMap::new(),
            open_at: now,
        }
    }

    /// Applies the present settings; connections to another pool or with other options are closed.
    fn with(mut self, pool: &Arc<ArcSwap<Snapshot>>, options: &ServiceOptions) -> Self {
        let made = |options: &ServiceOptions| (options.source, options.nodelay, options.server_keepalive);
        if !Arc::ptr_eq(&self.pool, pool) || made(&self.options) != made(options) {
            self.sockets.clear();
        }
        self.pool = Arc::clone(pool);
        self.options.clone_from(options);
        self
    }

    /// Closes connections that are no longer needed or usable, opens missing ones, and returns the time of the
    /// next check.
    fn maintain(&mut self, cx: &Context) -> Time {
        let (now, snapshot) = (cx.now, self.pool.load_full());
        let share = share(&self.service.settings.load(), cx);
        let servers: Vec<Arc<Entry>> = snapshot.first_choices().cloned().collect();
        let mut checks = CHECKS_MAX;
        let mut before = std::mem::take(&mut self.sockets);
        for (position, server) in servers.iter().enumerate() {
            let Some(mut sockets) = before.remove(&server.id) else { continue };
            sockets.retain_mut(|one| one.server.target == server.target && self.keeps(one, cx, &mut checks));
            sockets.truncate(share.at((position, servers.len())));
            // Clients may have taken permits in the meantime, so that the server permits fewer warm
            // connections.
            while server.live.warm.active() > server.warm_max() && sockets.pop_back().is_some() {}
            self.sockets.insert(server.id, sockets);
        }
        // Closes the connections to servers that are no longer candidates.
        drop(before);
        let has_more = self.open_at <= now && self.open(cx, &servers, share);
        // If all checks of this turn were used, more connections may be due.
        if has_more || checks == 0 { now + TURN } else { self.due(now) }
    }

    /// Time of the next check.
    fn due(&self, now: Time) -> Time {
        let of_socket =
            |one: &WarmSocket| if one.since.is_some() { now + SOON } else { one.check_at.max(now + SOON) };
        let check_at = self.sockets.values().flatten().map(of_socket).min();
        let open_at = Some(self.open_at).filter(|at| *at > now);
        [check_at, open_at].into_iter().flatten().min().unwrap_or(now + EVERY)
    }

    /// Returns whether a connection stays open. A pending connection attempt is always checked; an established
    /// connection is checked if its check is due and `checks` is not 0.
    fn keeps(&mut self, one: &mut WarmSocket, cx: &Context, checks: &mut usize) -> bool {
        if one.since.is_none() {
            if one.check_at > cx.now || *checks == 0 {
                return true;
            }
            *checks -= 1;
            one.check_at = cx.now + EVERY;
        }
        let state = match one.check(&self.service) {
            State::Connecting
                if one.since.is_some_and(|since| since + self.options.connect_timeout <= cx.now) =>
            {
                State::Failed(Errno::TIMEDOUT)
            }
            state => state,
        };
        match state {
            State::Ready | State::Connecting => return true,
            State::Ended => {}
            State::Failed(error) => {
                note_failure(cx, self.pool.load().pool.clone(), &one.server, error);
            }
        }
        self.open_at = cx.now + EVERY;
        false
    }

    /// Opens missing connections; returns whether more are missing after this turn.
    fn open(&mut self, cx: &Context, servers: &[Arc<Entry>], share: Share) -> bool {
        let mut begun = 0;
        for (position, server) in servers.iter().enumerate() {
            let wanted = share.at((position, servers.len()));
            while self.sockets.get(&server.id).map_or(0, VecDeque::len) < wanted {
                if begun == BEGUN_MAX {
                    return true;
                }
                if !self.begin(server, cx) {
                    break;
                }
                begun += 1;
            }
        }
        false
    }

    /// Begins one more connection. Returns false if the limit of the server is reached, no descriptor is left,
    /// or the attempt fails.
    fn begin(&mut self, server: &Arc<Entry>, cx: &Context) -> bool {
        let Some(permits) = server.live.warm.enter(server.warm_max()) else { return false };
        let Some(unit) = Unit::take() else {
            // Clients have priority.
            self.open_at = cx.now + EVERY;
            return false;
        };
        // The address of the client does not matter: services whose servers see it have no warm connections.
        let no_client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let begun = open_socket(&server.target, &self.options, no_client).and_then(|socket| {
            match connect(&socket, &server.target) {
                Ok(()) => Ok((socket, None)),
                Err(Errno::INPROGRESS) => Ok((socket, Some(cx.now))),
                Err(error) => Err(error),
            }
        });
        match begun {
            Ok((socket, since)) => {
                let counted = if since.is_none() { self.service.live.warm.enter(u32::MAX) } else { None };
                let server = Arc::clone(server);
                let sockets = self.sockets.entry(server.id).or_default();
                let check_at = cx.now + EVERY;
                let (_permit, _descriptor) = (permits, unit);
                sockets.push_back(WarmSocket {
                    socket,
                    server,
                    since,
                    check_at,
                    _permit,
                    counted,
                    _descriptor,
                });
                true
            }
            Err(error) => {
                note_failure(cx, self.pool.load().pool.clone(), server, error);
                self.open_at = cx.now + EVERY;
                false
            }
        }
    }

    /// Takes the first usable connection; connections before it are closed.
    fn take(&mut self, server: &Entry, now: Time) -> Option<OwnedFd> {
        let sockets = self.sockets.get_mut(&server.id)?;
        while let Some(mut one) = sockets.pop_front() {
            match one.check(&self.service) {
                State::Ready if one.server.target == server.target => return Some(one.socket),
                State::Ready => {}
                State::Connecting => {
                    // The attempts of the next connections began even later.
                    sockets.push_front(one);
                    return None;
                }
                State::Ended | State::Failed(_) => self.open_at = now + EVERY,
            }
        }
        None
    }

    /// Opens another connection in place of a taken one, unless a connection attempt failed recently or the
    /// share is complete.
    fn replace(&mut self, server: &Entry, cx: &Context) {
        let snapshot = self.pool.load_full();
        let current = snapshot.server(server.id).filter(|entry| entry.admission == Admission::Open);
        let all: usize = self.sockets.values().map(VecDeque::len).sum();
        let wanted = share(&self.service.settings.load(), cx).count;
        if let Some(current) = current.filter(|_| self.open_at <= cx.now && all < wanted) {
            self.begin(current, cx);
        }
    }
}

impl WarmSocket {
    fn check(&mut self, service: &Service) -> State {
        if self.since.is_some() {
            let mut wanted = [PollFd::new(&self.socket, PollFlags::OUT)];
            if matches!(poll(&mut wanted, Some(&Timespec::default())), Ok(0) | Err(_)) {
                return State::Connecting;
            }
            if let Ok(Err(error)) | Err(error) = sockopt::socket_error(&self.socket) {
                return State::Failed(error);
            }
            self.since = None;
            self.counted = service.live.warm.enter(u32::MAX);
        }
        // Bytes that the server has sent already are for the client, so the connection is usable.
        match recv(&self.socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((1.., _)) | Err(Errno::AGAIN | Errno::INTR) => State::Ready,
            Ok(_) | Err(_) => State::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of connections of each server at each worker.
    fn spread(warm: u32, (workers, servers): (usize, usize)) -> Vec<Vec<usize>> {
        let shares = (0..workers).map(|worker| Share::of(warm, (worker, workers)));
        shares.map(|share| (0..servers).map(|position| share.at((position, servers))).collect()).collect()
    }

    #[test]
    fn warm_connections_are_split_evenly_between_workers_and_servers() {
        assert_eq!(spread(4, (2, 2)), [[1, 1], [1, 1]]);
        assert_eq!(spread(2, (2, 2)), [[1, 0], [0, 1]]);
        assert_eq!(spread(5, (2, 3)), [[1, 1, 1], [1, 1, 0]]);
        assert_eq!(spread(1, (3, 1)), [[1], [0], [0]]);
        for (warm, workers, servers) in [(100, 7, 9), (3, 8, 5), (0, 2, 2), (1000, 3, 16)] {
            let parts = spread(warm, (workers, servers));
            let of_server = |position: usize| parts.iter().map(|part| part[position]).sum::<usize>();
            let all: Vec<usize> = (0..servers).map(of_server).collect();
            assert_eq!(all.iter().sum::<usize>(), warm as usize);
            let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
            assert!(most - least <= 1, "{all:?}");
        }
    }
}
