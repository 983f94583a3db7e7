//! Copies the entries of hash maps in batches: 500 000 entries in a fraction of a second.

use crate::sys::{self, Batch, Position};
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;

/// Entries in a batch to begin with. A batch that is too small for a bucket of the map is repeated with more.
const BATCH: usize = 16_384;

/// Entries of a map, as bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Entries {
    fn new(key_size: usize, value_size: usize) -> Self {
        Self { key_size, value_size, keys: Vec::new(), values: Vec::new() }
    }

    /// Reads all entries of a hash map. Entries that the program adds meanwhile may be missing, and an entry can
    /// be there twice.
    pub(crate) fn read(map: BorrowedFd<'_>) -> io::Result<Self> {
        let info = sys::map_info(map)?;
        let room = BATCH.min((info.max_entries as usize).max(1));
        let mut position = Position::default();
        Self::collect(info.entry_size(), room, |keys, values, room| {
            sys::lookup_batch(map, &mut position, keys, values, room)
        })
    }

    /// Collects batches until the end. `read` reads the next entries, at most as many as it is called with, which are
    /// `room` to begin with.
    fn collect(
        (key_size, value_size): (usize, usize),
        mut room: usize,
        mut read: impl FnMut(&mut [u8], &mut [u8], usize) -> io::Result<Batch>,
    ) -> io::Result<Self> {
        let mut entries = Self::new(key_size, value_size);
        loop {
            let (key_end, value_end) = (entries.keys.len(), entries.values.len());
            entries.keys.resize(key_end + room * entries.key_size, 0);
            entries.values.resize(value_end + room * entries.value_size, 0);
            let keys = &mut entries.keys[key_end..];
            let values = &mut entries.values[value_end..];
            let (count, is_end) = match read(keys, values, room)? {
                Batch::Read(count, is_end) => (count, is_end),
                Batch::NoSpace => {
                    room *= 2;
                    (0, false)
                }
            };
            entries.keys.truncate(key_end + count * entries.key_size);
            entries.values.truncate(value_end + count * entries.value_size);
            if is_end {
                return Ok(entries);
            }
        }
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.keys.len() / self.key_size.max(1)
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.keys.chunks_exact(self.key_size).zip(self.values.chunks_exact(self.value_size))
    }

    /// Writes all entries into a map, over present ones.
    pub(crate) fn write(&self, map: BorrowedFd<'_>) -> io::Result<()> {
        let mut begin = 0;
        while begin < self.len() {
            let count = (self.len() - begin).min(BATCH);
            let keys = &self.keys[begin * self.key_size..];
            let values = &self.values[begin * self.value_size..];
            let (done, error) = sys::update_batch(map, keys, values, count);
            begin += done;
            match error {
                None => {}
                // The bucket or the free list was busy: the entry is repeated.
                Some(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Some(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the entries whose keys the map does not have. Returns their number.
    pub(crate) fn write_missing(&self, map: BorrowedFd<'_>) -> io::Result<usize> {
        let mut written = 0;
        for (key, value) in self.iter() {
            written += usize::from(sys::insert_missing(map, key, value)?);
        }
        Ok(written)
    }

    /// Writes the entries that `before` does not have with the same value, unless the map has another value than
    /// `before`. Returns their number.
    pub(crate) fn write_changed(&self, before: &Self, map: BorrowedFd<'_>) -> io::Result<usize> {
        let known: HashMap<&[u8], &[u8]> = before.iter().collect();
        let mut present = vec![0; self.value_size];
        let mut written = 0;
        for (key, value) in self.iter() {
            let old = known.get(key).copied();
            if old == Some(value) {
                continue;
            }
            let is_stale = old.is_some() && sys::lookup(map, key, &mut present)? && old == Some(&present[..]);
            let is_written = if is_stale {
                sys::update_batch(map, key, value, 1).1.is_none()
            } else {
                sys::insert_missing(map, key, value)?
            };
            written += usize::from(is_written);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads buckets of a map with these numbers of entries, as the kernel does: a bucket is read as a whole or not.
    fn read_buckets(buckets: &[usize], room: usize) -> (Entries, Vec<usize>) {
        let (mut at, mut number, mut rooms) = (0, 0_u16, Vec::new());
        let entries = Entries::collect((2, 4), room, |keys, values, room| {
            rooms.push(room);
            let mut count = 0;
            while at < buckets.len() && count + buckets[at] <= room {
                for entry in count..count + buckets[at] {
                    keys[2 * entry..][..2].copy_from_slice(&number.to_ne_bytes());
                    values[4 * entry..][..4].copy_from_slice(&(u32::from(number) * 3).to_ne_bytes());
                    number += 1;
                }
                count += buckets[at];
                at += 1;
            }
            let is_end = at == buckets.len();
            Ok(if count == 0 && !is_end { Batch::NoSpace } else { Batch::Read(count, is_end) })
        });
        (entries.expect("the model does not fail"), rooms)
    }

    #[test]
    fn a_bucket_that_does_not_fit_is_read_again_with_more_room() {
        let (entries, rooms) = read_buckets(&[2, 9, 1, 0, 3], 2);
        assert_eq!(rooms, [2, 2, 4, 8, 16], "the room doubles until the bucket of 9 entries fits");
        let read: Vec<_> = entries.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        let expected = (0..15_u16)
            .map(|number| (number.to_ne_bytes().to_vec(), (u32::from(number) * 3).to_ne_bytes().to_vec()));
        assert_eq!(read, expected.collect::<Vec<_>>(), "each entry is read once");
    }

    #[test]
    fn another_failure_ends_the_reading() {
        let failed = Entries::collect((2, 4), 2, |_, _, _| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
