//! The state of the running instance in terms of pen: servers by number, clients, and connections with small,
//! stable numbers.

use super::spec::{ABUSE, EMERGENCY, NAME};
use super::state::State;
use crate::supervisor::Supervisor;
use evener_core::Time;
use evener_core::clients::{ClientSeen, LastServer};
use evener_core::health::Verdict;
use evener_core::pool::Pool;
use evener_core::spec::AdminState;
use evener_proxy::Open;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// pen's numbers of the emergency server, the abuse server, and no server.
const EMERGENCY_NUMBER: i64 = -1;
const ABUSE_NUMBER: i64 = -2;
const NO_SERVER: i64 = -3;

/// One server.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    /// Number of connections and flows.
    pub(super) connections: u32,
    /// Bytes sent to the server.
    pub(super) sent: u64,
    /// Bytes received from the server.
    pub(super) received: u64,
    /// Time since when the server is excluded, in seconds since 1970; 0 when it is not.
    pub(super) out_since: u64,
}

/// One client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// Seconds since the client was last seen.
    pub(super) age: u64,
    pub(super) server: i64,
    pub(super) connects: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// The state at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// In the order of the table; unused slots have zeros.
    pub(super) servers: Vec<Server>,
    /// Most recently seen first.
    pub(super) clients: Vec<Client>,
    /// Number of connections and flows of all services.
    pub(super) connections: u32,
    /// Number of warm connections to servers.
    pub(super) idlers: u32,
}

impl Facts {
    /// Reads the state of the running instance.
    pub(super) fn inspect(supervisor: &Supervisor, state: &State) -> Self {
        let pool = supervisor.pools.get(NAME).map(|running| &running.pool);
        let mut servers = vec![Server::default(); state.servers.len()];
        for server in pool.into_iter().flat_map(Pool::servers) {
            let number = server.spec.name.parse::<usize>().ok();
            if let Some(slot) = number.and_then(|number| servers.get_mut(number)) {
                *slot = Server::of(server, supervisor.now());
            }
        }
        let service = supervisor.services.get(NAME);
        let clients = service.and_then(|service| service.clients()).into_iter().flatten();
        let now = supervisor.now();
        let flows = |live: &evener_proxy::ServiceLive| live.flows.load(std::sync::atomic::Ordering::Relaxed);
        Self {
            servers,
            clients: clients.map(|client| Client::of(&client, now.since(client.seen))).collect(),
            connections: service.map_or(0, |one| one.live.connections.active() + flows(&one.live)),
            idlers: service.map_or(0, |one| one.live.warm.active()),
        }
    }
}

impl Server {
    fn of(server: &evener_core::pool::Server, now: Time) -> Self {
        let since = match (server.state, server.health.verdict()) {
            (AdminState::Ready, Verdict::Up | Verdict::Unchecked) => None,
            (AdminState::Ready, Verdict::Down) => Some(server.since),
            _ => Some(server.state_since),
        };
        Self {
            // Warm connections to the server count, too.
            connections: server.live.occupancy.active() + server.live.warm.active(),
            sent: server.live.counters.total("bytes_in"),
            received: server.live.counters.total("bytes_out"),
            out_since: since.map_or(0, |since| epoch().saturating_sub(now.since(since).as_secs())),
        }
    }
}

impl Client {
    fn of(client: &ClientSeen, age: Duration) -> Self {
        Self {
            address: client.address,
            age: age.as_secs(),
            server: number_of(client.last_server.as_ref()),
            connects: client.connects,
            sent: client.bytes_out,
            received: client.bytes_in,
        }
    }
}

/// Returns pen's number of a server.
pub(super) fn number_of(had: Option<&LastServer>) -> i64 {
    match had.map(|had| (&*had.pool, &*had.server)) {
        Some((NAME, EMERGENCY)) => EMERGENCY_NUMBER,
        Some((ABUSE, _)) => ABUSE_NUMBER,
        Some((_, number)) => number.parse().unwrap_or(NO_SERVER),
        None => NO_SERVER,
    }
}

/// Returns the seconds since 1970.
fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Small numbers of connections. Each connection keeps its number, and a new one gets the lowest free number.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(Vec<Option<u64>>);

impl Numbers {
    /// Numbers the open connections.
    pub(super) fn number(&mut self, open: Vec<Open>) -> Vec<(usize, Open)> {
        for slot in &mut self.0 {
            slot.take_if(|known| open.binary_search_by_key(&*known, |open| open.number).is_err());
        }
        let positions = self.0.iter().enumerate();
        let known: BTreeMap<u64, usize> =
            positions.filter_map(|(slot, number)| number.map(|number| (number, slot))).collect();
        let mut free = 0;
        let numbered = open.into_iter().map(|open| {
            let number = known.get(&open.number).copied().unwrap_or_else(|| {
                while self.0.get(free).is_some_and(Option::is_some) {
                    free += 1;
                }
                if free == self.0.len() {
                    self.0.push(None);
                }
                self.0[free] = Some(open.number);
                free
            });
            (number, open)
        });
        let mut numbered: Vec<_> = numbered.collect();
        numbered.sort_by_key(|(number, _)| *number);
        numbered
    }
}

/// Returns the state of a connection in pen's bits, including one that is half open.
pub(super) fn pen_state(open: &Open) -> u32 {
    const IN_PROGRESS: u32 = 1;
    const CONNECTED: u32 = 2;
    if open.server_socket.is_none() || open.stage == "connecting" { IN_PROGRESS } else { CONNECTED }
}

/// Returns the name by which `set_state` finds a server.
pub(super) fn server_name(number: usize) -> String {
    format!("{NAME}/{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn open(number: u64) -> Open {
        Open {
            number,
            service: NAME.into(),
            client: IpAddr::from([127, 0, 0, 1]),
            client_port: None,
            server: None,
            stage: "relaying",
            idle: Duration::ZERO,
            client_socket: None,
            server_socket: None,
            to_client: 0,
            to_server: 0,
        }
    }

    #[test]
    fn a_connection_keeps_its_number_and_the_lowest_free_one_is_given() {
        let mut numbers = Numbers::default();
        let mut check = |open_now: &[u64], expected: &[(usize, u64)]| {
            let seen = numbers.number(open_now.iter().map(|number| open(*number)).collect());
            let seen: Vec<(usize, u64)> = seen.iter().map(|(number, open)| (*number, open.number)).collect();
            assert_eq!(seen, expected);
        };
        check(&[10, 11, 12], &[(0, 10), (1, 11), (2, 12)]);
        check(&[10, 12], &[(0, 10), (2, 12)]);
        check(&[10, 12, 15, 16], &[(0, 10), (1, 15), (2, 12), (3, 16)]);
        check(&[16], &[(3, 16)]);
        check(&[], &[]);
    }
}
