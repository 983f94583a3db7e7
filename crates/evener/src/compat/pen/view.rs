//! The state of the running instance in terms of pen: servers by number, clients, and connections with small,
//! stable numbers. Its output is in `page.rs`.

mod page;

pub(super) use page::{ROWS_MAX, out_of_range, socket};

use super::settings::{ABUSE, EMERGENCY, NAME, PenSettings, SlotTraffic};
use crate::planes::RunningService;
use crate::supervisor::Supervisor;
use evener_core::clients::{ClientSeen, LastServer};
use evener_core::pool::Pool;
use evener_proxy::Open;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// pen's number of the emergency server.
const EMERGENCY_NUMBER: i64 = -1;
/// pen's number of the abuse server.
const ABUSE_NUMBER: i64 = -2;
/// pen's number for a client without a server.
const NO_SERVER: i64 = -3;

/// A client.
#[derive(Clone, Debug)]
struct ClientView {
    address: IpAddr,
    /// Seconds since the last connection or datagram of the client.
    age: u64,
    server: i64,
    connects: u64,
    sent: u64,
    received: u64,
}

/// The state of the instance at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct InstanceView {
    /// In the order of the table; unused slots have zeros.
    servers: Vec<SlotTraffic>,
    /// The most recently active client is the first.
    clients: Vec<ClientView>,
    /// Number of connections and flows of the service.
    connections: u32,
    /// Number of warm connections to servers.
    idlers: u32,
}

impl InstanceView {
    /// Reads the state of the running instance.
    pub(super) fn inspect(supervisor: &Supervisor, settings: &PenSettings) -> Self {
        let pool = supervisor.find_pool(NAME).ok();
        let mut servers = vec![SlotTraffic::default(); settings.slots().len()];
        for server in pool.into_iter().flat_map(Pool::servers) {
            let number = server.spec.name.parse::<usize>().ok();
            if let Some(slot) = number.and_then(|number| servers.get_mut(number)) {
                *slot = SlotTraffic::of(server, supervisor.now());
            }
        }
        let service = supervisor.find_service(NAME).ok();
        let clients =
            service.and_then(|RunningService::Proxy(service)| service.clients()).into_iter().flatten();
        let now = supervisor.now();
        let live = service.map(RunningService::live);
        Self {
            servers,
            clients: clients.map(|client| ClientView::of(&client, now.since(client.seen))).collect(),
            connections: live.map_or(0, |live| live.connections.active() + live.active_flows()),
            idlers: live.map_or(0, |live| live.warm.active()),
        }
    }
}

impl ClientView {
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
fn number_of(last_server: Option<&LastServer>) -> i64 {
    match last_server.map(|last| (&*last.pool, &*last.server)) {
        Some((NAME, EMERGENCY)) => EMERGENCY_NUMBER,
        Some((ABUSE, _)) => ABUSE_NUMBER,
        Some((_, number)) => number.parse().unwrap_or(NO_SERVER),
        None => NO_SERVER,
    }
}

/// Small numbers of connections. Each connection keeps its number, and a new one gets the lowest free number.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionNumbers(Vec<Option<u64>>);

impl ConnectionNumbers {
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

/// Returns the state of a connection as one of pen's bits: in progress until a server is connected, then
/// connected.
fn pen_state(open: &Open) -> u32 {
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
    fn a_connection_keeps_its_number_and_a_new_one_gets_the_lowest_free_number() {
        let mut numbers = ConnectionNumbers::default();
        let mut check = |open_now: &[u64], expected: &[(usize, u64)]| {
            let numbered = numbers.number(open_now.iter().map(|number| open(*number)).collect());
            let numbered: Vec<(usize, u64)> =
                numbered.iter().map(|(number, open)| (*number, open.number)).collect();
            assert_eq!(numbered, expected);
        };
        check(&[10, 11, 12], &[(0, 10), (1, 11), (2, 12)]);
        check(&[10, 12], &[(0, 10), (2, 12)]);
        check(&[10, 12, 15, 16], &[(0, 10), (1, 15), (2, 12), (3, 16)]);
        check(&[16], &[(3, 16)]);
        check(&[], &[]);
    }
}
