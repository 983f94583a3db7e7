//! The state of the running instance in terms of pen: servers by number, clients, and connections with small,
//! stable numbers. Its output is in `page.rs`.

mod page;

pub(super) use page::{ROWS_MAX, out_of_range, socket};

use super::settings::{ABUSE, EMERGENCY, NAME, PenSettings, SlotTraffic};
use crate::state::{self, ClientsView, ConnectionView, ServiceView, View};
use std::collections::BTreeMap;
use std::net::IpAddr;

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
    /// Describes the instance. `view` has the service and its pool.
    pub(super) fn new(view: &View, clients: &ClientsView, settings: &PenSettings) -> Self {
        let mut servers = vec![SlotTraffic::default(); settings.slots().len()];
        for server in view.servers() {
            let number = server.name().parse::<usize>().ok();
            if let Some(slot) = number.and_then(|number| servers.get_mut(number)) {
                *slot = SlotTraffic::of(server);
            }
        }
        let service = view.service(NAME);
        Self {
            servers,
            // pen has no refused clients in its table.
            clients: clients.clients().iter().filter(|one| one.connects() > 0).map(ClientView::of).collect(),
            connections: service.map_or(0, ServiceView::active),
            idlers: service.map_or(0, ServiceView::warm),
        }
    }
}

impl ClientView {
    fn of(client: &state::ClientView) -> Self {
        Self {
            address: client.address(),
            age: client.seen_s(),
            server: number_of(client.last_server()),
            connects: client.connects(),
            sent: client.bytes_out(),
            received: client.bytes_in(),
        }
    }
}

/// Returns pen's number of a server, which is given by its pool and name.
fn number_of(server: Option<(&str, &str)>) -> i64 {
    match server {
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
    pub(super) fn number(&mut self, open: Vec<ConnectionView>) -> Vec<(usize, ConnectionView)> {
        for slot in &mut self.0 {
            slot.take_if(|known| open.binary_search_by_key(&*known, ConnectionView::number).is_err());
        }
        let positions = self.0.iter().enumerate();
        let known: BTreeMap<u64, usize> =
            positions.filter_map(|(slot, number)| number.map(|number| (number, slot))).collect();
        let mut free = 0;
        let numbered = open.into_iter().map(|open| {
            let number = known.get(&open.number()).copied().unwrap_or_else(|| {
                while self.0.get(free).is_some_and(Option::is_some) {
                    free += 1;
                }
                if free == self.0.len() {
                    self.0.push(None);
                }
                self.0[free] = Some(open.number());
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
fn pen_state(open: &ConnectionView) -> u32 {
    const IN_PROGRESS: u32 = 1;
    const CONNECTED: u32 = 2;
    if open.is_connected() { CONNECTED } else { IN_PROGRESS }
}

/// Returns the name by which `set_state` finds a server.
pub(super) fn server_name(number: usize) -> String {
    format!("{NAME}/{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_proxy::Open;
    use std::time::Duration;

    fn open(number: u64) -> ConnectionView {
        ConnectionView::new(Open {
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
        })
    }

    #[test]
    fn a_connection_keeps_its_number_and_a_new_one_gets_the_lowest_free_number() {
        let mut numbers = ConnectionNumbers::default();
        let mut check = |open_now: &[u64], expected: &[(usize, u64)]| {
            let numbered = numbers.number(open_now.iter().map(|number| open(*number)).collect());
            let numbered: Vec<(usize, u64)> =
                numbered.iter().map(|(number, open)| (*number, open.number())).collect();
            assert_eq!(numbered, expected);
        };
        check(&[10, 11, 12], &[(0, 10), (1, 11), (2, 12)]);
        check(&[10, 12], &[(0, 10), (2, 12)]);
        check(&[10, 12, 15, 16], &[(0, 10), (1, 15), (2, 12), (3, 16)]);
        check(&[16], &[(3, 16)]);
        check(&[], &[]);
    }
}
