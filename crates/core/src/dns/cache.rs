//! Cached DNS responses, shared by all workers. The table is split into bounded shards. Each shard has a
//! lock. Lookups and stores hold it only to find or to insert an entry; bytes are parsed and copied without
//! the lock.

mod response;

use crate::hash::Keyed;
use crate::lock::lock;
use crate::lru::Lru;
use crate::spec::DnsCacheSpec;
use crate::time::Time;
use crate::wire::dns::is_name;

use crossbeam_utils::CachePadded;
use response::CachedResponse;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Minimum size of a shard, so that long responses fit, and small caches have one shard and evict exactly the
/// least recently used response.
const SHARD_ENTRIES_MIN: u64 = 1024;
const SHARD_BYTES_MIN: u64 = 1 << 20;
/// Maximum number of shards: enough for the cores of any machine, and for an expunge that holds each lock
/// only briefly.
const SHARDS_MAX: u64 = 1024;
/// Memory that a response takes in addition to its bytes: the entry with its reference counts, its part of
/// the LRU order and of the index, and the overhead of the allocator.
const ENTRY_BYTES: usize = size_of::<Entry>() + 128;

/// Use of expired responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Expired responses are not used.
    Fresh,
    /// Expired responses are used, too, for the time that the configuration allows (RFC 8767).
    Stale,
}

/// Names whose responses an expunge removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpungeScope {
    /// The name alone.
    Name,
    /// The name and all below it.
    Below,
}

/// Fill level of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Number of responses.
    pub entries: usize,
    /// Bytes that the responses take.
    pub bytes: u64,
}

/// A cache of DNS responses.
///
/// ```
/// use evener_core::Time;
/// use evener_core::dns::{Cache, Freshness};
/// use evener_core::spec::DnsCacheSpec;
/// use evener_core::wire::dns::Query;
///
/// let header = |qr: u8, count| [0, 7, qr | 1, 0, 0, 1, 0, count, 0, 0, 0, 0];
/// let name_and_type = *b"\x07example\x03org\0\0\x01\0\x01";
/// let record = *b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x01";
/// let query = [&header(0, 0)[..], &name_and_type].concat();
/// let response = [&header(0x80, 1)[..], &name_and_type, &record].concat();
///
/// let (mut key, mut out) = (Vec::new(), Vec::new());
/// assert!(Query::parse(&query)?.cache_key(&query, &mut key));
/// let cache = Cache::new(&DnsCacheSpec::default(), 1);
/// assert!(!cache.lookup(&key, Time::ZERO, Freshness::Fresh, &mut out));
/// assert!(cache.store(&key, &response, Time::ZERO));
/// assert!(cache.lookup(&key, Time::ZERO, Freshness::Fresh, &mut out));
/// assert_eq!(out[2..], response[2..]);
/// # Ok::<(), evener_core::wire::dns::QueryError>(())
/// ```
#[derive(Debug)]
pub struct Cache {
    spec: DnsCacheSpec,
    hasher: Keyed,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
}

#[derive(Debug)]
struct Shard {
    /// By the hash of the key. Of two keys with the same hash, the later one stays.
    responses: Lru<u64, Arc<Entry>>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    response: CachedResponse,
    stored_at: Time,
    expires_at: Time,
    /// End of the time for which the response may be used as a stale one.
    stale_until: Time,
}

impl Cache {
    /// Creates an empty cache according to `spec`. `key` seeds its hashing.
    #[must_use]
    pub fn new(spec: &DnsCacheSpec, key: u64) -> Self {
        let entries = u64::from(spec.entries).max(1);
        let most = (entries / SHARD_ENTRIES_MIN).min(spec.bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        // A power of two, so that a hash finds its shard by a mask.
        let shards = 1_u64 << most.ilog2();
        let shard = || Shard {
            responses: Lru::new((entries / shards) as usize, key),
            bytes: 0,
            bytes_max: usize::try_from(spec.bytes / shards).unwrap_or(usize::MAX),
        };
        let shards = (0..shards).map(|_| CachePadded::new(Mutex::new(shard()))).collect();
        Self { spec: spec.clone(), hasher: Keyed::new(key), shards }
    }

    /// Returns the configuration of the cache.
    #[must_use]
    pub fn spec(&self) -> &DnsCacheSpec {
        &self.spec
    }

    /// Writes the cached response for `key` to `out` and returns true if there is one. Empties `out` first in
    /// either case. The TTLs are counted down; the TTLs of a stale response are 30 s (RFC 8767, section 4).
    /// The ID is 0. The question section is a copy of the stored response's question section, so the letter
    /// case of its name may differ from the query.
    pub fn lookup(&self, key: &[u8], now: Time, freshness: Freshness, out: &mut Vec<u8>) -> bool {
        out.clear();
        let hash = self.hash(key);
        let Some(entry) = self.shard(hash).find(hash, now) else { return false };
        if *entry.key != *key {
            return false;
        }
        if now < entry.expires_at {
            entry.response.emit(now.since(entry.stored_at), out);
        } else if freshness == Freshness::Stale {
            entry.response.emit_stale(out);
        }
        !out.is_empty()
    }

    /// Stores a response to the query of `key`. Returns false if the response is not stored, because it may
    /// not be cached or does not fit, or because it is a failure and a cached response can still be used. The
    /// key is the result of [`crate::wire::dns::Query::cache_key`], perhaps with more bytes after it.
    pub fn store(&self, key: &[u8], response: &[u8], now: Time) -> bool {
        let Some(cached) = CachedResponse::new(key, response, &self.spec) else { return false };
        let expires_at = now + cached.lifetime();
        let stale = if cached.is_failure() { Duration::ZERO } else { self.spec.stale };
        let stale_until = expires_at + stale;
        let entry = Entry { key: key.into(), response: cached, stored_at: now, expires_at, stale_until };
        let hash = self.hash(key);
        self.shard(hash).insert(hash, entry, now)
    }

    /// Removes the responses for a name (wire form, in any case) and, with `Below`, for all names below it.
    /// Returns their number.
    pub fn expunge(&self, name: &[u8], scope: ExpungeScope) -> usize {
        // A name ends with the root label, so a key that begins with the bytes of a name begins with exactly
        // this name.
        if !is_name(name) {
            return 0;
        }
        let name = name.to_ascii_lowercase();
        self.expunge_where(|entry| match scope {
            ExpungeScope::Name => entry.key.starts_with(&name),
            ExpungeScope::Below => is_below(&entry.key, &name),
        })
    }

    /// Removes all responses. Returns their number.
    pub fn clear(&self) -> usize {
        self.expunge_where(|_| true)
    }

    /// Returns the most recently used responses that can still be used, of at most `bytes_max` bytes in total, for
    /// [`Cache::store`] in another process. Of each shard, the least recently used one is first.
    #[must_use]
    pub fn responses(&self, now: Time, bytes_max: usize) -> Vec<StoredResponse> {
        let most = bytes_max / self.shards.len();
        self.shards.iter().flat_map(|shard| lock(shard).newest(now, most).into_iter().rev()).collect()
    }

    /// Returns the fill level.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.shards.iter().map(|shard| lock(shard)).fold(CacheStats::default(), |sum, shard| CacheStats {
            entries: sum.entries + shard.responses.len(),
            bytes: sum.bytes + shard.bytes as u64,
        })
    }

    fn expunge_where(&self, is_match: impl Fn(&Entry) -> bool) -> usize {
        self.shards.iter().map(|shard| lock(shard).expunge(&is_match)).sum()
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[hash as usize & (self.shards.len() - 1)])
    }

    /// Panics unless the counts are right, within bounds, and every response is in the shard of its key.
    pub fn check_invariants(&self) {
        let stats = self.stats();
        assert!(
            stats.entries <= (self.spec.entries as usize).max(1),
            "the number of entries is at most its maximum"
        );
        assert!(stats.bytes <= self.spec.bytes, "the number of bytes is at most its maximum");
        for (at, shard) in self.shards.iter().enumerate() {
            let shard = lock(shard);
            shard.responses.check_invariants();
            assert_eq!(shard.bytes, shard.responses.iter().map(|(_, entry, _)| entry.bytes()).sum::<usize>());
            assert!(shard.bytes <= shard.bytes_max, "the bytes of a shard are at most their maximum");
            for (&hash, entry, _) in shard.responses.iter() {
                assert_eq!(hash, self.hash(&entry.key), "an entry is indexed by the hash of its key");
                assert_eq!(
                    hash as usize & (self.shards.len() - 1),
                    at,
                    "an entry is in the shard of its hash"
                );
                assert!(entry.stored_at < entry.expires_at && entry.expires_at <= entry.stale_until);
            }
        }
    }
}

/// A response that a cache holds.
#[derive(Clone, Debug)]
pub struct StoredResponse(Arc<Entry>);

impl StoredResponse {
    /// Returns the key of the query.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.0.key
    }

    /// Returns the response as it was stored, with the ID 0.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.0.response.message()
    }

    /// Returns the time at which it was stored.
    #[must_use]
    pub fn stored_at(&self) -> Time {
        self.0.stored_at
    }
}

impl Shard {
    /// Returns the most recently used responses of at most `bytes_max` bytes, the newest first.
    fn newest(&self, now: Time, bytes_max: usize) -> Vec<StoredResponse> {
        let mut bytes = 0;
        let usable = self.responses.iter().filter(|(_, entry, _)| now < entry.stale_until);
        let fitting = usable.take_while(|(_, entry, _)| {
            bytes += entry.bytes();
            bytes <= bytes_max
        });
        fitting.map(|(_, entry, _)| StoredResponse(Arc::clone(entry))).collect()
    }

    /// Returns the entry with this hash and makes the entry the newest. An entry that is too old even for
    /// stale use is removed.
    fn find(&mut self, hash: u64, now: Time) -> Option<Arc<Entry>> {
        let entry = self.responses.touch(&hash, now)?;
        if now < entry.stale_until {
            return Some(Arc::clone(entry));
        }
        self.remove(hash);
        None
    }

    fn insert(&mut self, hash: u64, entry: Entry, now: Time) -> bool {
        if entry.bytes() > self.bytes_max || self.has_better(hash, &entry, now) {
            return false;
        }
        self.bytes += entry.bytes();
        if let Some((_, evicted)) = self.responses.insert(hash, Arc::new(entry), now) {
            self.bytes -= evicted.bytes();
        }
        while self.bytes > self.bytes_max {
            // The new entry alone fits, so it is not evicted.
            let Some((_, evicted)) = self.responses.pop_oldest() else { break };
            self.bytes -= evicted.bytes();
        }
        true
    }

    /// Returns true if `entry` is a failure and there is a usable response, fresh or stale (RFC 8767,
    /// section 5).
    fn has_better(&self, hash: u64, entry: &Entry, now: Time) -> bool {
        entry.response.is_failure()
            && self.responses.peek(&hash).is_some_and(|(known, _)| {
                known.key == entry.key && !known.response.is_failure() && now < known.stale_until
            })
    }

    fn remove(&mut self, hash: u64) {
        if let Some(entry) = self.responses.remove(&hash) {
            self.bytes -= entry.bytes();
        }
    }

    fn expunge(&mut self, is_match: impl Fn(&Entry) -> bool) -> usize {
        let matching: Vec<u64> =
            self.responses.iter().filter(|(_, entry, _)| is_match(entry)).map(|(hash, ..)| *hash).collect();
        matching.iter().for_each(|hash| self.remove(*hash));
        matching.len()
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        self.key.len() + self.response.bytes() + ENTRY_BYTES
    }
}

/// Returns true if the name at the beginning of a key is `name` or below it.
fn is_below(key: &[u8], name: &[u8]) -> bool {
    let mut rest = key;
    while !rest.starts_with(name) {
        let Some((&length @ 1.., after)) = rest.split_first() else { return false };
        rest = after.get(usize::from(length)..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests;
