//! Unguessable IDs from the system's generator (RFC 5452, section 4.5), and the queries that have them.

use crate::context::keys::QueryKey;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddrV4;

/// Number of random bytes of one read from the system.
const BLOCK: usize = 2048;
/// Maximum number of IDs in use, out of 65 536 for each socket: a free one is found soon, and a guess rarely
/// hits.
const IN_USE_MAX: usize = 16_384;

/// Random bits from the system.
#[derive(Debug, Default)]
pub(in crate::dns) struct Secrets {
    block: Vec<u8>,
}

impl Secrets {
    /// Returns 16 random bits.
    pub(super) fn bits(&mut self) -> u16 {
        if self.block.len() < 2 {
            self.fill();
        }
        let (high, low) = (self.block.pop().unwrap_or_default(), self.block.pop().unwrap_or_default());
        u16::from_be_bytes([high, low])
    }

    fn fill(&mut self) {
        self.block.resize(BLOCK, 0);
        let mut filled = 0;
        while filled < BLOCK {
            match rustix::rand::getrandom(&mut self.block[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                // Without random bits, IDs could be guessed, so the worker panics instead of sending queries.
                Err(error) => unreachable!("getrandom(2) gives bits once the system is up: {error}"),
            }
        }
    }

    /// Returns a random number below `bound`.
    pub(in crate::dns) fn below(&mut self, bound: usize) -> usize {
        (usize::from(self.bits()) * bound) >> 16
    }
}

/// Hashes IDs, which are evenly distributed already.
#[derive(Debug, Default)]
pub(in crate::dns) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }

    fn write_u16(&mut self, id: u16) {
        // The table uses both the low and the high bits.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The queries that wait on one socket, by their IDs.
#[derive(Debug, Default)]
pub(in crate::dns) struct Ids(HashMap<u16, QueryKey, BuildHasherDefault<AsIs>>);

impl Ids {
    /// Returns an ID for a query; `None` if too many are in use.
    pub(in crate::dns) fn give(&mut self, key: QueryKey, secrets: &mut Secrets) -> Option<u16> {
        if self.0.len() >= IN_USE_MAX {
            return None;
        }
        loop {
            let id = secrets.bits();
            if let Entry::Vacant(vacant) = self.0.entry(id) {
                vacant.insert(key);
                return Some(id);
            }
        }
    }

    /// Returns the client's ID if it is free, or another one. Used only for streams of one client, on which no
    /// other peer can send a response.
    pub(super) fn keep(&mut self, id: u16, key: QueryKey, secrets: &mut Secrets) -> Option<u16> {
        if self.0.len() < IN_USE_MAX
            && let Entry::Vacant(vacant) = self.0.entry(id)
        {
            vacant.insert(key);
            return Some(id);
        }
        self.give(key, secrets)
    }

    /// Returns the query with an ID.
    pub(super) fn owner(&self, id: u16) -> Option<QueryKey> {
        self.0.get(&id).copied()
    }

    /// Frees an ID, and returns the query that had it.
    pub(super) fn free(&mut self, id: u16) -> Option<QueryKey> {
        self.0.remove(&id)
    }

    /// Returns all IDs with their queries.
    pub(super) fn owners(&self) -> Vec<(u16, QueryKey)> {
        self.0.iter().map(|(&id, &key)| (id, key)).collect()
    }

    pub(in crate::dns) fn len(&self) -> usize {
        self.0.len()
    }

    pub(in crate::dns) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Outstanding queries by the address of their client and their ID, for servers whose responses repeat both.
/// Clients keep their IDs if possible, since signatures may cover them.
#[derive(Debug, Default)]
pub(in crate::dns) struct ClientIds(HashMap<(SocketAddrV4, u16), QueryKey>);

impl ClientIds {
    /// Returns the client's ID for a query, or another one while an earlier query of the client has it;
    /// `None` if too many are in use.
    pub(super) fn keep(
        &mut self,
        client: SocketAddrV4,
        id: u16,
        key: QueryKey,
        secrets: &mut Secrets,
    ) -> Option<u16> {
        if self.0.len() >= IN_USE_MAX {
            return None;
        }
        let mut id = id;
        loop {
            if let Entry::Vacant(vacant) = self.0.entry((client, id)) {
                vacant.insert(key);
                return Some(id);
            }
            id = secrets.bits();
        }
    }

    /// Returns the query with an ID of a client.
    pub(super) fn owner(&self, client: SocketAddrV4, id: u16) -> Option<QueryKey> {
        self.0.get(&(client, id)).copied()
    }

    /// Frees an ID.
    pub(super) fn free(&mut self, client: SocketAddrV4, id: u16) {
        self.0.remove(&(client, id));
    }

    /// Returns the IDs of all queries.
    pub(super) fn owners(&self) -> Vec<(u16, QueryKey)> {
        self.0.iter().map(|(&(_, id), &key)| (id, key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::keys::Handle;

    fn query(number: u64) -> QueryKey {
        Handle::from_raw(number)
    }

    #[test]
    fn an_id_belongs_to_one_query_and_the_table_is_bounded() {
        let (mut ids, mut secrets) = (Ids::default(), Secrets::default());
        let given: Vec<u16> =
            (0..IN_USE_MAX as u64).map(|key| ids.give(query(key), &mut secrets).unwrap()).collect();
        assert_eq!(ids.give(query(0), &mut secrets), None);
        for (key, id) in (0..).zip(&given) {
            assert_eq!(ids.owner(*id), Some(query(key)));
        }
        ids.free(given[7]);
        assert_eq!((ids.owner(given[7]), ids.len()), (None, IN_USE_MAX - 1));
        assert!(ids.give(query(7), &mut secrets).is_some());
    }

    #[test]
    fn the_id_of_a_client_is_used_if_it_is_free() {
        let (mut ids, mut secrets) = (Ids::default(), Secrets::default());
        assert_eq!(ids.keep(7, query(1), &mut secrets), Some(7));
        let other = ids.keep(7, query(2), &mut secrets).unwrap();
        assert_ne!(other, 7);
        assert_eq!((ids.owner(7), ids.owner(other)), (Some(query(1)), Some(query(2))));
        ids.free(7);
        assert_eq!(ids.keep(7, query(3), &mut secrets), Some(7));
        while ids.len() < IN_USE_MAX {
            ids.give(query(9), &mut secrets).unwrap();
        }
        assert_eq!(
            (0..=u16::MAX).find_map(|id| ids.keep(id, query(9), &mut secrets)),
            None,
            "the table is full"
        );
    }

    #[test]
    fn clients_do_not_take_ids_from_each_other() {
        let (mut ids, mut secrets) = (ClientIds::default(), Secrets::default());
        let [one, other] = [1, 2].map(|port| SocketAddrV4::new([192, 0, 2, 1].into(), port));
        assert_eq!(ids.keep(one, 7, query(1), &mut secrets), Some(7));
        assert_eq!(ids.keep(other, 7, query(2), &mut secrets), Some(7));
        // The same query again, while the first is outstanding.
        let again = ids.keep(one, 7, query(3), &mut secrets).unwrap();
        assert_ne!(again, 7);
        assert_eq!(
            [ids.owner(one, 7), ids.owner(other, 7), ids.owner(one, again)],
            [1, 2, 3].map(|number| Some(query(number)))
        );
        assert_eq!((ids.owner(other, again), ids.owners().len()), (None, 3));
        ids.free(one, 7);
        assert_eq!((ids.owner(one, 7), ids.owner(other, 7)), (None, Some(query(2))));
        for key in 2..IN_USE_MAX as u64 {
            ids.keep(one, 7, query(key), &mut secrets).unwrap();
        }
        assert_eq!(ids.keep(other, 8, query(0), &mut secrets), None, "the table is full");
    }

    #[test]
    fn ids_are_evenly_distributed() {
        let mut secrets = Secrets::default();
        let mut seen = [0_u32; 16];
        (0..32_000).for_each(|_| seen[usize::from(secrets.bits() >> 12)] += 1);
        assert!(seen.iter().all(|count| (1_700..2_300).contains(count)), "{seen:?}");
    }
}
