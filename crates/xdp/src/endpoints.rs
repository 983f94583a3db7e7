//! Tables of endpoints: who is behind an address and port. The program looks an endpoint up in two buckets of an array
//! (`bpf/hash.h`), so the loader decides in which bucket an entry is, and writes its words into mapped memory.

use crate::contract::{BUCKET_ENTRIES, BUCKETS_V4, BUCKETS_V6, ENDPOINT_FREE, EndpointV4, EndpointV6};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

const HASH_FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const HASH_SECOND: u64 = 0xd6e8_feb8_6659_fd93;

/// The key of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EndpointKey {
    pub(crate) address: SocketAddr,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub(crate) protocol: u8,
    /// `ENDPOINT_VIP` or `ENDPOINT_REAL`.
    pub(crate) kind: u8,
}

/// The value of an endpoint: `a` and `b` of the contract.
pub(crate) type EndpointValue = [u32; 2];

/// Address family of an array of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Position of an entry in the array of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Position {
    bucket: u32,
    entry: usize,
}

/// Both buckets of an endpoint are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketsFull;

impl EndpointKey {
    pub(crate) fn family(&self) -> Family {
        if self.address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Returns the entry of an IPv4 endpoint.
    pub(crate) fn entry_v4(&self, [a, b]: EndpointValue) -> EndpointV4 {
        let [address, ..] = words_of(self.address.ip());
        let (protocol, kind) = (self.protocol, self.kind);
        EndpointV4 { address, port: self.address.port().to_be(), protocol, kind, a, b }
    }

    /// Returns the entry of an IPv6 endpoint.
    pub(crate) fn entry_v6(&self, [a, b]: EndpointValue) -> EndpointV6 {
        let (address, port) = (words_of(self.address.ip()), self.address.port().to_be());
        EndpointV6 { address, port, protocol: self.protocol, kind: self.kind, a, b, reserved: 0 }
    }

    fn from_v4(entry: &EndpointV4) -> Option<(Self, EndpointValue)> {
        let EndpointV4 { address, port, protocol, kind, a, b } = *entry;
        let address = SocketAddr::new(ip_of(4, [address, 0, 0, 0]), u16::from_be(port));
        (kind != ENDPOINT_FREE).then_some((Self { address, protocol, kind }, [a, b]))
    }

    fn from_v6(entry: &EndpointV6) -> Option<(Self, EndpointValue)> {
        let EndpointV6 { address, port, protocol, kind, a, b, reserved: _ } = *entry;
        let address = SocketAddr::new(ip_of(6, address), u16::from_be(port));
        (kind != ENDPOINT_FREE).then_some((Self { address, protocol, kind }, [a, b]))
    }

    /// Returns the two buckets in which the program looks for the endpoint.
    pub(crate) fn buckets(&self) -> [u32; 2] {
        let (hash, count) = match self.family() {
            Family::V4 => (hash_v4(&self.entry_v4([0, 0])), BUCKETS_V4),
            Family::V6 => (hash_v6(&self.entry_v6([0, 0])), BUCKETS_V6),
        };
        [hash as u32 & (count - 1), (hash >> 32) as u32 & (count - 1)]
    }
}

/// Returns the words of an address in network order, as the program reads them from packets.
pub(crate) fn words_of(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => {
            let octets = address.octets();
            std::array::from_fn(|at| u32::from_ne_bytes(std::array::from_fn(|byte| octets[at * 4 + byte])))
        }
    }
}

/// Returns the address of these words.
pub(crate) fn ip_of(family: u8, words: [u32; 4]) -> IpAddr {
    if family == 4 {
        return IpAddr::from(words[0].to_ne_bytes());
    }
    let mut octets = [0; 16];
    octets.chunks_exact_mut(4).zip(words).for_each(|(part, word)| part.copy_from_slice(&word.to_ne_bytes()));
    IpAddr::from(octets)
}

fn hash_word(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(HASH_FIRST);
    hash ^ (hash >> 32)
}

fn hash_v4(entry: &EndpointV4) -> u64 {
    hash_word(0, key_word_v4(entry)).wrapping_mul(HASH_SECOND)
}

fn hash_v6(entry: &EndpointV6) -> u64 {
    let [high, low, last, _] = words_v6(entry);
    hash_word(hash_word(hash_word(0, high), low), last & 0xffff_ffff).wrapping_mul(HASH_SECOND)
}

fn join(low: u32, high: u32) -> u64 {
    // The words of an entry, as they are in memory.
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&low.to_ne_bytes());
    bytes[4..].copy_from_slice(&high.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn key_half(port: u16, protocol: u8, kind: u8) -> u32 {
    let [first, second] = port.to_ne_bytes();
    u32::from_ne_bytes([first, second, protocol, kind])
}

fn key_word_v4(entry: &EndpointV4) -> u64 {
    join(entry.address, key_half(entry.port, entry.protocol, entry.kind))
}

/// Returns the two words of an entry in memory. The first is the key.
pub(crate) fn words_v4(entry: &EndpointV4) -> [u64; 2] {
    [key_word_v4(entry), join(entry.a, entry.b)]
}

/// Returns the four words of an entry in memory. The third has the port, the protocol, the kind and `a`.
pub(crate) fn words_v6(entry: &EndpointV6) -> [u64; 4] {
    let [first, second, third, fourth] = entry.address;
    let half = key_half(entry.port, entry.protocol, entry.kind);
    [join(first, second), join(third, fourth), join(half, entry.a), join(entry.b, entry.reserved)]
}

/// Splits a word of memory.
#[cfg(test)]
fn split(word: u64) -> (u32, u32) {
    let bytes = word.to_ne_bytes();
    let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    (half(0), half(4))
}

#[cfg(test)]
fn split_half(half: u32) -> (u16, u8, u8) {
    let [first, second, protocol, kind] = half.to_ne_bytes();
    (u16::from_ne_bytes([first, second]), protocol, kind)
}

/// Returns the entry of these words.
#[cfg(test)]
pub(crate) fn from_words_v4([key, value]: [u64; 2]) -> EndpointV4 {
    let ((address, half), (a, b)) = (split(key), split(value));
    let (port, protocol, kind) = split_half(half);
    EndpointV4 { address, port, protocol, kind, a, b }
}

/// Returns the entry of these words.
#[cfg(test)]
pub(crate) fn from_words_v6([high, low, last, value]: [u64; 4]) -> EndpointV6 {
    let ((first, second), (third, fourth)) = (split(high), split(low));
    let ((half, a), (b, reserved)) = (split(last), split(value));
    let (port, protocol, kind) = split_half(half);
    EndpointV6 { address: [first, second, third, fourth], port, protocol, kind, a, b, reserved }
}

impl Position {
    /// Returns the number of the entry in the array.
    pub(crate) fn index(self) -> usize {
        self.bucket as usize * BUCKET_ENTRIES + self.entry
    }
}

/// The endpoints of both families, with their positions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    known: HashMap<EndpointKey, (Position, EndpointValue)>,
    used: HashMap<(Family, u32), [bool; BUCKET_ENTRIES]>,
}

impl Endpoints {
    /// Creates the tables with the entries of an earlier process, by their numbers.
    pub(crate) fn taken_over(
        v4: impl Iterator<Item = (usize, EndpointV4)>,
        v6: impl Iterator<Item = (usize, EndpointV6)>,
    ) -> Self {
        let v4 = v4.filter_map(|(index, entry)| Some((index, EndpointKey::from_v4(&entry)?)));
        let v6 = v6.filter_map(|(index, entry)| Some((index, EndpointKey::from_v6(&entry)?)));
        let mut endpoints = Self::default();
        for (index, (key, value)) in v4.chain(v6) {
            let bucket = (index / BUCKET_ENTRIES) as u32;
            let position = Position { bucket, entry: index % BUCKET_ENTRIES };
            endpoints.known.insert(key, (position, value));
            endpoints.mark(&key, position, true);
        }
        endpoints
    }

    /// Returns the endpoints.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&EndpointKey, EndpointValue)> {
        self.known.iter().map(|(key, (_, value))| (key, *value))
    }

    /// Returns the value of an endpoint.
    pub(crate) fn value(&self, key: &EndpointKey) -> Option<EndpointValue> {
        self.known.get(key).map(|(_, value)| *value)
    }

    /// Returns the position of an endpoint.
    pub(crate) fn position(&self, key: &EndpointKey) -> Option<Position> {
        self.known.get(key).map(|(position, _)| *position)
    }

    /// Allocates an entry for a new endpoint, in the emptier of its two buckets. Its value is 0 until it is set.
    pub(crate) fn allocate(&mut self, key: EndpointKey) -> Result<(), BucketsFull> {
        let buckets = key.buckets().map(|bucket| (self.taken(&key, bucket), bucket));
        let bucket = buckets.iter().min_by_key(|(taken, _)| *taken).map_or(0, |(_, bucket)| *bucket);
        let entries = self.used.entry((key.family(), bucket)).or_default();
        let entry = entries.iter().position(|used| !used).ok_or(BucketsFull)?;
        let position = Position { bucket, entry };
        self.mark(&key, position, true);
        self.known.insert(key, (position, [0, 0]));
        Ok(())
    }

    /// Sets the value of an endpoint.
    pub(crate) fn set(&mut self, key: &EndpointKey, value: EndpointValue) {
        if let Some((_, old)) = self.known.get_mut(key) {
            *old = value;
        }
    }

    /// Frees the entry of an endpoint.
    pub(crate) fn remove(&mut self, key: &EndpointKey) {
        if let Some((position, _)) = self.known.remove(key) {
            self.mark(key, position, false);
        }
    }

    fn taken(&self, key: &EndpointKey, bucket: u32) -> usize {
        let entries = self.used.get(&(key.family(), bucket));
        entries.map_or(0, |entries| entries.iter().filter(|used| **used).count())
    }

    fn mark(&mut self, key: &EndpointKey, position: Position, is_used: bool) {
        self.used.entry((key.family(), position.bucket)).or_default()[position.entry] = is_used;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use crate::contract::{BucketV4, ENDPOINT_REAL, ENDPOINT_VIP};

    fn key(text: &str, kind: u8) -> EndpointKey {
        EndpointKey { address: text.parse().unwrap(), protocol: 17, kind }
    }

    #[test]
    fn words_are_the_memory_of_the_entries() {
        for text in ["192.0.2.1:5060", "[2001:db8::1]:443"] {
            let key = key(text, ENDPOINT_VIP);
            let (v4, v6) = (key.entry_v4([7, 9]), key.entry_v6([7, 9]));
            // SAFETY: both types are plain integers of this size.
            let memory: [u64; 2] = unsafe { std::mem::transmute(v4) };
            assert_eq!(words_v4(&v4), memory);
            // SAFETY: both types are plain integers of this size.
            let memory: [u64; 4] = unsafe { std::mem::transmute(v6) };
            assert_eq!(words_v6(&v6), memory);
            assert_eq!((from_words_v4(words_v4(&v4)), from_words_v6(words_v6(&v6))), (v4, v6));
        }
        let (v4, v6) = (key("192.0.2.1:5060", ENDPOINT_VIP), key("[2001:db8::1]:443", ENDPOINT_REAL));
        assert_eq!(EndpointKey::from_v4(&v4.entry_v4([1, 2])), Some((v4, [1, 2])));
        assert_eq!(EndpointKey::from_v6(&v6.entry_v6([1, 2])), Some((v6, [1, 2])));
    }

    #[test]
    fn an_endpoint_is_in_one_of_its_buckets_until_both_are_full() {
        let mut endpoints = Endpoints::default();
        let first = key("10.0.0.1:1", ENDPOINT_REAL);
        for bucket in first.buckets() {
            (0..BUCKET_ENTRIES).for_each(|entry| endpoints.mark(&first, Position { bucket, entry }, true));
        }
        assert_eq!(endpoints.allocate(first), Err(BucketsFull));
        assert_eq!(endpoints.value(&first), None, "a refused endpoint leaves nothing");
        let free = Position { bucket: first.buckets()[1], entry: 2 };
        endpoints.mark(&first, free, false);
        assert_eq!((endpoints.allocate(first), endpoints.position(&first)), (Ok(()), Some(free)));
        endpoints.remove(&first);
        assert_eq!((endpoints.allocate(first), endpoints.position(&first)), (Ok(()), Some(free)));
    }

    #[test]
    fn half_of_all_entries_can_be_allocated() {
        let mut endpoints = Endpoints::default();
        for number in 0..BUCKETS_V4 * 2 {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number / 4);
            endpoints.allocate(key(&format!("{address}:{}", 8000 + number % 4), ENDPOINT_REAL)).unwrap();
        }
        assert_eq!(size_of::<BucketV4>(), 16 * BUCKET_ENTRIES);
    }
}
