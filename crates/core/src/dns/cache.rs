//! Answers that are kept for whoever asks the same: all workers share them. The table is split into shards, each bounded and
//! behind a lock that is held for a look or a note alone; bytes are copied and judged outside of it.

mod answer;

use crate::hash::Keyed;
use crate::lru::Lru;
use crate::spec::DnsCacheSpec;
use crate::time::Time;
use crate::wire::dns::is_name;
use answer::{Kept, Kind};
use crossbeam_utils::CachePadded;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A shard has no fewer answers, and no fewer bytes, so that small caches evict exactly and long answers fit.
const SHARD_ENTRIES_MIN: u64 = 1024;
const SHARD_BYTES_MIN: u64 = 1 << 20;
/// So many are enough for the cores of any machine, and for an expunge to hold no lock for long.
const SHARDS_MAX: u64 = 1024;
/// What an answer takes beside its bytes: the entry, its counts, its place in the order and the index, and what the
/// allocator adds.
const ENTRY_BYTES: usize = size_of::<Entry>() + 128;

/// Whether expired answers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// They do not.
    Fresh,
    /// They do, as far as the configuration allows (RFC 8767).
    Stale,
}

/// How far an expunge reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The name alone.
    Name,
    /// The name and all below it.
    Below,
}

/// How full a cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Answers.
    pub entries: usize,
    /// Bytes that they take.
    pub bytes: u64,
}

/// What is kept.
#[derive(Debug)]
pub struct Cache {
    spec: DnsCacheSpec,
    hasher: Keyed,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
}

#[derive(Debug)]
struct Shard {
    /// By the hash of their key. Where two keys have one hash, the later one is kept.
    answers: Lru<u64, Arc<Entry>>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    answer: Kept,
    stored_at: Time,
    expires_at: Time,
    /// Not even stale it is given from then on.
    dead_at: Time,
}

impl Cache {
    /// An empty cache as `spec` says; `key` seeds its hashing.
    #[must_use]
    pub fn new(spec: &DnsCacheSpec, key: u64) -> Self {
        let entries = u64::from(spec.entries).max(1);
        let most = (entries / SHARD_ENTRIES_MIN).min(spec.bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        // A power of two, so that a hash finds its shard by a mask.
        let shards = 1_u64 << most.ilog2();
        let shard = || Shard {
            answers: Lru::new((entries / shards) as usize, key),
            bytes: 0,
            bytes_max: usize::try_from(spec.bytes / shards).unwrap_or(usize::MAX),
        };
        let shards = (0..shards).map(|_| CachePadded::new(Mutex::new(shard()))).collect();
        Self { spec: spec.clone(), hasher: Keyed::new(key), shards }
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &DnsCacheSpec {
        &self.spec
    }

    /// Writes the answer that is kept for `key` to `out` (emptied first), its TTLs counted down; whether there is one.
    /// Its ID is 0 and its question as it was asked first. The TTLs of a stale one are 30 s (RFC 8767, section 4).
    pub fn lookup(&self, key: &[u8], now: Time, freshness: Freshness, out: &mut Vec<u8>) -> bool {
        out.clear();
        let hash = self.hash(key);
        let Some(entry) = self.shard(hash).find(hash, now) else { return false };
        if *entry.key != *key {
            return false;
        }
        if now < entry.expires_at {
            entry.answer.emit(now.since(entry.stored_at), out);
        } else if freshness == Freshness::Stale {
            entry.answer.emit_stale(out);
        }
        !out.is_empty()
    }

    /// Keeps an answer to the question of `key` (as [`crate::wire::dns::Query::cache_key`] has it, perhaps with more after
    /// that), if it is one to keep; whether it was. That a server failed never takes the place of what could still be given.
    pub fn store(&self, key: &[u8], answer: &[u8], now: Time) -> bool {
        let Some(kept) = Kept::new(key, answer, &self.spec) else { return false };
        let expires_at = now + kept.lifetime;
        let stale = if kept.kind == Kind::Failure { Duration::ZERO } else { self.spec.stale };
        let dead_at = expires_at + stale;
        let entry = Entry { key: key.into(), answer: kept, stored_at: now, expires_at, dead_at };
        let hash = self.hash(key);
        self.shard(hash).keep(hash, entry, now)
    }

    /// Takes out what is kept for a name (wire form, in any case); with `Below`, for all names below it, too. How many.
    pub fn expunge(&self, name: &[u8], reach: Reach) -> usize {
        // A name ends by its root, so that what begins with it begins with just this name; other bytes are none.
        if !is_name(name) {
            return 0;
        }
        let name = name.to_ascii_lowercase();
        self.expunge_where(|entry| match reach {
            Reach::Name => entry.key.starts_with(&name),
            Reach::Below => is_below(&entry.key, &name),
        })
    }

    /// Takes out everything. How many.
    pub fn clear(&self) -> usize {
        self.expunge_where(|_| true)
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.shards.iter().map(|shard| lock(shard)).fold(CacheStats::default(), |sum, shard| CacheStats {
            entries: sum.entries + shard.answers.len(),
            bytes: sum.bytes + shard.bytes as u64,
        })
    }

    fn expunge_where(&self, is_out: impl Fn(&Entry) -> bool) -> usize {
        self.shards.iter().map(|shard| lock(shard).expunge(&is_out)).sum()
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[hash as usize & (self.shards.len() - 1)])
    }

    /// Panics unless what is counted is what there is, within bounds, and where its key says.
    pub fn check_invariants(&self) {
        let stats = self.stats();
        assert!(stats.entries <= (self.spec.entries as usize).max(1), "within the entries");
        assert!(stats.bytes <= self.spec.bytes, "within the bytes");
        for (at, shard) in self.shards.iter().enumerate() {
            let shard = lock(shard);
            shard.answers.check_invariants();
            assert_eq!(shard.bytes, shard.answers.iter().map(|(_, entry, _)| entry.bytes()).sum::<usize>());
            assert!(shard.bytes <= shard.bytes_max, "within the shard's bytes");
            for (&hash, entry, _) in shard.answers.iter() {
                assert_eq!(hash, self.hash(&entry.key), "by the hash of its key");
                assert_eq!(hash as usize & (self.shards.len() - 1), at, "in the shard of its hash");
                assert!(entry.stored_at < entry.expires_at && entry.expires_at <= entry.dead_at);
            }
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A shard is sound between its methods, so a panic elsewhere while it was locked leaves it usable.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// What has this hash, now the newest; what is dead is taken out.
    fn find(&mut self, hash: u64, now: Time) -> Option<Arc<Entry>> {
        let entry = self.answers.touch(&hash, now)?;
        if now < entry.dead_at {
            return Some(Arc::clone(entry));
        }
        self.remove(hash);
        None
    }

    fn keep(&mut self, hash: u64, entry: Entry, now: Time) -> bool {
        if entry.bytes() > self.bytes_max || self.has_better(hash, &entry, now) {
            return false;
        }
        self.bytes += entry.bytes();
        if let Some((_, evicted)) = self.answers.insert(hash, Arc::new(entry), now) {
            self.bytes -= evicted.bytes();
        }
        while self.bytes > self.bytes_max {
            // The new entry alone fits, so that it is not thrown out.
            let Some((_, evicted)) = self.answers.pop_oldest() else { break };
            self.bytes -= evicted.bytes();
        }
        true
    }

    /// Whether an entry says that a server failed, where there is an answer that may be given, be it stale (RFC 8767,
    /// section 5).
    fn has_better(&self, hash: u64, entry: &Entry, now: Time) -> bool {
        entry.answer.kind == Kind::Failure
            && self.answers.peek(&hash).is_some_and(|(known, _)| {
                known.key == entry.key && known.answer.kind == Kind::Answer && now < known.dead_at
            })
    }

    fn remove(&mut self, hash: u64) {
        if let Some(entry) = self.answers.remove(&hash) {
            self.bytes -= entry.bytes();
        }
    }

    fn expunge(&mut self, is_out: impl Fn(&Entry) -> bool) -> usize {
        let out: Vec<u64> =
            self.answers.iter().filter(|(_, entry, _)| is_out(entry)).map(|(hash, ..)| *hash).collect();
        out.iter().for_each(|hash| self.remove(*hash));
        out.len()
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        self.key.len() + self.answer.bytes() + ENTRY_BYTES
    }
}

/// Whether the name that a key begins with is `name` or below it.
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
