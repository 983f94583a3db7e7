//! A part of a sticky table: its clients in the order in which they were seen, and the number of clients of
//! each home, which is kept up to date.

use super::Seat;
use crate::ServerId;
use crate::lru::Lru;
use crate::time::Time;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A part of a table.
#[derive(Debug)]
pub(super) struct Shard {
    clients: Lru<IpAddr, Seat>,
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

    /// Returns the seat of a client and the time at which it was seen.
    pub(super) fn seat(&self, client: IpAddr) -> Option<(Seat, Time)> {
        self.clients.peek(&client).map(|(seat, seen)| (*seat, seen))
    }

    /// Records that a client was seen and has this seat. A new client evicts the least recently seen one from
    /// a full shard.
    pub(super) fn put(&mut self, client: IpAddr, seat: Seat, now: Time) {
        let replaced = self.clients.insert(client, seat, now).map(|(_, before)| before.home);
        // Most clients come back to the same home.
        if replaced != Some(seat.home) {
            replaced.into_iter().for_each(|home| self.leave(home));
            *self.homes.entry(seat.home).or_default() += 1;
        }
    }

    /// Forgets the clients of a server, and that other clients use it meanwhile.
    pub(super) fn forget_server(&mut self, server: ServerId) {
        let concerned = |seat: &Seat| seat.home == server || seat.meanwhile == Some(server);
        let concerned: Vec<(IpAddr, Seat, Time)> =
            self.clients().filter(|(_, seat, _)| concerned(seat)).collect();
        for (client, seat, _) in concerned {
            if seat.home == server {
                self.remove(client);
            } else if let Some(seat) = self.clients.peek_mut(&client) {
                seat.meanwhile = None;
            }
        }
    }

    /// Forgets up to `count` clients of a server, the least recently seen first, and returns their number.
    pub(super) fn forget_oldest(&mut self, home: ServerId, count: usize) -> usize {
        let of_home = self.clients.iter_oldest().filter(|(_, seat, _)| seat.home == home);
        let oldest: Vec<IpAddr> = of_home.take(count).map(|(client, ..)| *client).collect();
        oldest.iter().for_each(|client| self.remove(*client));
        oldest.len()
    }

    /// Removes at most `max` expired clients, the least recently seen first, and returns their number.
    pub(super) fn sweep(&mut self, max: usize, is_over: impl Fn(Time) -> bool) -> usize {
        let over = |shard: &Self| shard.clients.oldest().filter(|&(_, seen)| is_over(seen));
        let mut swept = 0;
        while swept < max
            && let Some((client, _)) = over(self)
        {
            self.remove(client);
            swept += 1;
        }
        swept
    }

    /// Returns the number of clients whose home is a server.
    pub(super) fn clients_of(&self, home: ServerId) -> usize {
        self.homes.get(&home).copied().unwrap_or_default()
    }

    /// Returns the homes with the number of their clients.
    pub(super) fn homes(&self) -> impl Iterator<Item = (ServerId, usize)> {
        self.homes.iter().map(|(home, clients)| (*home, *clients))
    }

    /// Returns every client with its seat and the time at which it was seen, the newest first.
    pub(super) fn clients(&self) -> impl Iterator<Item = (IpAddr, Seat, Time)> {
        self.clients.iter().map(|(client, seat, seen)| (*client, *seat, seen))
    }

    fn remove(&mut self, client: IpAddr) {
        let seat = self.clients.remove(&client);
        seat.into_iter().for_each(|seat| self.leave(seat.home));
    }

    fn leave(&mut self, home: ServerId) {
        if let Some(clients) = self.homes.get_mut(&home) {
            *clients -= 1;
            if *clients == 0 {
                self.homes.remove(&home);
            }
        }
    }

    /// Panics unless the counts are right and no client is away from its home without failback.
    pub(super) fn check_invariants(&self, failback: bool) {
        self.clients.check_invariants();
        let mut homes: BTreeMap<ServerId, usize> = BTreeMap::new();
        for (_, seat, _) in self.clients() {
            assert_ne!(seat.meanwhile, Some(seat.home), "meanwhile is another server than home");
            assert!(failback || seat.meanwhile.is_none());
            *homes.entry(seat.home).or_default() += 1;
        }
        assert_eq!(homes, self.homes, "the counts are right");
    }
}
