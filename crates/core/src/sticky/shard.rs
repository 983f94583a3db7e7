//! A part of a sticky table: its clients in the order in which they were seen, and a running count of the
//! clients of each home.

use super::Assignment;
use crate::ServerId;
use crate::lru::Lru;
use crate::time::Time;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A part of a table.
#[derive(Debug)]
pub(super) struct Shard {
    clients: Lru<IpAddr, Assignment>,
    /// Only servers that have clients.
    homes: BTreeMap<ServerId, usize>,
}

impl Shard {
    /// Creates an empty shard for `capacity` clients.
    pub(super) fn new(capacity: usize, key: u64) -> Self {
        Self { clients: Lru::new(capacity, key), homes: BTreeMap::new() }
    }

    /// Returns the number of clients.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Returns the assignment of a client and the time at which it was seen.
    pub(super) fn assignment(&self, client: IpAddr) -> Option<(Assignment, Time)> {
        self.clients.peek(&client).map(|(assignment, seen)| (*assignment, seen))
    }

    /// Records the assignment of a client that was seen now. A new client evicts the least recently seen client
    /// of a full shard.
    pub(super) fn put(&mut self, client: IpAddr, assignment: Assignment, now: Time) {
        let replaced = self.clients.insert(client, assignment, now).map(|(_, before)| before.home);
        // Most clients return to the same home.
        if replaced != Some(assignment.home) {
            replaced.into_iter().for_each(|home| self.leave(home));
            *self.homes.entry(assignment.home).or_default() += 1;
        }
    }

    /// Forgets the clients whose home is a server, and removes the server as the substitute of other clients.
    pub(super) fn forget_server(&mut self, server: ServerId) {
        let uses_server =
            |assignment: &Assignment| assignment.home == server || assignment.substitute == Some(server);
        let concerned: Vec<(IpAddr, Assignment, Time)> =
            self.clients().filter(|(_, assignment, _)| uses_server(assignment)).collect();
        for (client, assignment, _) in concerned {
            if assignment.home == server {
                self.remove(client);
            } else if let Some(assignment) = self.clients.peek_mut(&client) {
                assignment.substitute = None;
            }
        }
    }

    /// Forgets up to `count` clients whose home is `home`, the least recently seen first, and returns their
    /// number.
    pub(super) fn forget_oldest(&mut self, home: ServerId, count: usize) -> usize {
        let of_home = self.clients.iter_oldest().filter(|(_, assignment, _)| assignment.home == home);
        let oldest: Vec<IpAddr> = of_home.take(count).map(|(client, ..)| *client).collect();
        oldest.iter().for_each(|client| self.remove(*client));
        oldest.len()
    }

    /// Removes at most `max` expired clients, the least recently seen first, and returns their number.
    pub(super) fn sweep(&mut self, max: usize, is_expired: impl Fn(Time) -> bool) -> usize {
        let expired = |shard: &Self| shard.clients.oldest().filter(|&(_, seen)| is_expired(seen));
        let mut swept = 0;
        while swept < max
            && let Some((client, _)) = expired(self)
        {
            self.remove(client);
            swept += 1;
        }
        swept
    }

    /// Returns the number of clients whose home is `home`.
    pub(super) fn clients_of(&self, home: ServerId) -> usize {
        self.homes.get(&home).copied().unwrap_or_default()
    }

    /// Returns the homes with the number of their clients.
    pub(super) fn homes(&self) -> impl Iterator<Item = (ServerId, usize)> {
        self.homes.iter().map(|(home, clients)| (*home, *clients))
    }

    /// Returns every client with its assignment and the time at which it was seen, the newest first.
    pub(super) fn clients(&self) -> impl Iterator<Item = (IpAddr, Assignment, Time)> {
        self.clients.iter().map(|(client, assignment, seen)| (*client, *assignment, seen))
    }

    fn remove(&mut self, client: IpAddr) {
        let assignment = self.clients.remove(&client);
        assignment.into_iter().for_each(|assignment| self.leave(assignment.home));
    }

    fn leave(&mut self, home: ServerId) {
        if let Some(clients) = self.homes.get_mut(&home) {
            *clients -= 1;
            if *clients == 0 {
                self.homes.remove(&home);
            }
        }
    }

    /// Panics unless the counts are right, and only a table with failback has substitutes.
    pub(super) fn check_invariants(&self, failback: bool) {
        self.clients.check_invariants();
        let mut homes: BTreeMap<ServerId, usize> = BTreeMap::new();
        for (_, assignment, _) in self.clients() {
            assert_ne!(
                assignment.substitute,
                Some(assignment.home),
                "a substitute is another server than the home"
            );
            assert!(failback || assignment.substitute.is_none());
            *homes.entry(assignment.home).or_default() += 1;
        }
        assert_eq!(homes, self.homes, "the count of each home is the number of its clients");
    }
}
