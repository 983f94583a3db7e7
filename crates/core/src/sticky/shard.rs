//! A part of a sticky table: its clients in the order in which they were seen, and how many of them each server is the home
//! of, kept up so that nobody has to count.

use super::Seat;
use crate::ServerId;
use crate::lru::Lru;
use crate::time::Time;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The part of a table.
#[derive(Debug)]
pub(super) struct Shard {
    clients: Lru<IpAddr, Seat>,
    /// Only servers that have clients.
    homes: BTreeMap<ServerId, usize>,
}

impl Shard {
    /// Nobody, with room for `capacity` clients.
    pub(super) fn new(capacity: usize, key: u64) -> Self {
        Self { clients: Lru::new(capacity, key), homes: BTreeMap::new() }
    }

    /// How many clients there are.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// A client's seat, and when it was seen.
    pub(super) fn seat(&self, client: IpAddr) -> Option<(Seat, Time)> {
        self.clients.peek(&client).map(|(seat, seen)| (*seat, seen))
    }

    /// A client was seen and has this seat now. The least recently seen makes room for a new one.
    pub(super) fn put(&mut self, client: IpAddr, seat: Seat, now: Time) {
        let replaced = self.clients.insert(client, seat, now).map(|(_, before)| before.home);
        // Mostly a client comes back to where it was.
        if replaced != Some(seat.home) {
            replaced.into_iter().for_each(|home| self.leave(home));
            *self.homes.entry(seat.home).or_default() += 1;
        }
    }

    /// Forgets who belongs to a server, and that others are with it meanwhile.
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

    /// Forgets up to `count` clients of a server, the least recently seen first; how many these were.
    pub(super) fn forget_oldest(&mut self, home: ServerId, count: usize) -> usize {
        let of_home = self.clients.iter_oldest().filter(|(_, seat, _)| seat.home == home);
        let oldest: Vec<IpAddr> = of_home.take(count).map(|(client, ..)| *client).collect();
        oldest.iter().for_each(|client| self.remove(*client));
        oldest.len()
    }

    /// Takes out the least recently seen while their time is over, at most `max`; how many these were.
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

    /// How many clients a server is the home of.
    pub(super) fn clients_of(&self, home: ServerId) -> usize {
        self.homes.get(&home).copied().unwrap_or_default()
    }

    /// The servers that are homes, and of how many clients.
    pub(super) fn homes(&self) -> impl Iterator<Item = (ServerId, usize)> {
        self.homes.iter().map(|(home, clients)| (*home, *clients))
    }

    /// Every client with its seat and when it was seen, the newest first.
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

    /// Panics unless the counts are those of the clients, and nobody is away from home without failback.
    pub(super) fn check_invariants(&self, failback: bool) {
        self.clients.check_invariants();
        let mut homes: BTreeMap<ServerId, usize> = BTreeMap::new();
        for (_, seat, _) in self.clients() {
            assert_ne!(seat.meanwhile, Some(seat.home), "elsewhere is not at home");
            assert!(failback || seat.meanwhile.is_none());
            *homes.entry(seat.home).or_default() += 1;
        }
        assert_eq!(homes, self.homes, "the counts are right");
    }
}
