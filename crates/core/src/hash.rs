//! Seeded hashing by folded multiplication: keyed for tables that outsiders can fill, with a fixed seed for
//! placing clients on servers, so that several instances agree. It is not for secrets.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const PLACEMENT_SEED: u64 = 0x6576_656e_6572_2031;

/// Builds hashers for `HashMap`. The key keeps outsiders from choosing collisions.
#[derive(Clone, Copy, Debug)]
pub struct Keyed(u64);

impl Keyed {
    /// Creates a builder with this key.
    #[must_use]
    pub const fn new(key: u64) -> Self {
        Self(key)
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0 ^ MULTIPLIER)
    }
}

/// The hasher of [`Keyed`].
#[derive(Clone, Debug)]
pub struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        fold(self.0, MULTIPLIER)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0 ^ value, MULTIPLIER ^ 0x5851_f42d_4c95_7f2d);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// Returns the placement hash of a client: the same in every instance and after every restart.
#[must_use]
pub fn of_client(client: IpAddr) -> u64 {
    let bits = match client {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    fold(fold(PLACEMENT_SEED ^ bits as u64, MULTIPLIER) ^ (bits >> 64) as u64, 0xd6e8_feb8_6659_fd93)
}

/// Returns the placement hash of a server's name; each `salt` gives another hash.
#[must_use]
pub fn of_name(name: &str, salt: u64) -> u64 {
    let mut hasher = Folded(PLACEMENT_SEED ^ salt.wrapping_mul(MULTIPLIER));
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// Mixes two values into one that depends on every bit of both.
#[must_use]
pub const fn mix(a: u64, b: u64) -> u64 {
    let folded = fold(a ^ MULTIPLIER, b ^ 0xd6e8_feb8_6659_fd93);
    fold(folded ^ a, 0x5851_f42d_4c95_7f2d)
}

const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    (product as u64) ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_the_key_and_the_length() {
        let hash = |key, bytes: &[u8]| Keyed::new(key).hash_one(bytes);
        assert_ne!(hash(1, b"abc"), hash(2, b"abc"));
        assert_ne!(hash(1, b"abc"), hash(1, b"abc\0"));
        assert_eq!(hash(1, b"abc"), hash(1, b"abc"));
    }

    #[test]
    fn the_hashes_of_neighbouring_clients_vary_in_every_bit() {
        for bit in 0..64 {
            let ones = (0..4096_u32)
                .filter(|n| of_client(IpAddr::from((0x0a00_0000 + n).to_be_bytes())) >> bit & 1 == 1)
                .count();
            assert!((1700..2400).contains(&ones), "bit {bit}: {ones} of 4096");
        }
    }
}
