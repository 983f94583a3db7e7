//! The search tree of a MaxMind database, looked at before it is walked: in a damaged one the ways may go in a circle, or
//! be more than memory holds, and the crate that walks it would not end. It reads no data of networks.

use maxminddb::Metadata;

/// More networks than any real database has.
const NETWORKS_MAX: u64 = 64 << 20;

/// What is known of a node.
#[derive(Clone, Copy)]
enum Seen {
    Not,
    /// On the way from the root to the present node.
    Above,
    /// How many bits and how many networks are below it.
    Whole {
        depth: u8,
        networks: u64,
    },
}

/// Whether every way through the tree ends after the bits of an address, and there are not too many of them.
pub(super) fn verify(bytes: &[u8], metadata: &Metadata) -> Result<(), String> {
    let tree = Tree { bytes, record_bits: metadata.record_size, nodes: metadata.node_count as usize };
    let bits_max = if metadata.ip_version == 4 { 32 } else { 128 };
    let size = match metadata.record_size {
        24 | 28 | 32 => tree.nodes.saturating_mul(usize::from(metadata.record_size) / 4),
        other => return Err(format!("its records have {other} bits; 24, 28 and 32 are known")),
    };
    if size > bytes.len() {
        return Err("it is damaged: its search tree is cut off".into());
    }
    tree.verify(bits_max)
}

struct Tree<'a> {
    bytes: &'a [u8],
    record_bits: u16,
    nodes: usize,
}

impl Tree<'_> {
    fn verify(&self, bits_max: u8) -> Result<(), String> {
        let mut seen = vec![Seen::Not; self.nodes];
        let mut way: Vec<usize> = (0..self.nodes.min(1)).collect();
        while let Some(&node) = way.last() {
            match seen[node] {
                Seen::Whole { .. } => drop(way.pop()),
                Seen::Above => {
                    seen[node] = self.below(node, &seen, bits_max)?;
                    way.pop();
                }
                Seen::Not => {
                    seen[node] = Seen::Above;
                    for child in self.children(node).into_iter().filter(|&child| child < self.nodes) {
                        match seen[child] {
                            Seen::Not => way.push(child),
                            Seen::Above => return Err("it is damaged: its search tree has a circle".into()),
                            Seen::Whole { .. } => {}
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What a node has when all below it is known.
    fn below(&self, node: usize, seen: &[Seen], bits_max: u8) -> Result<Seen, String> {
        let (mut depth, mut networks) = (0, 0_u64);
        for child in self.children(node) {
            match seen.get(child) {
                Some(&Seen::Whole { depth: bits, networks: count }) => {
                    depth = depth.max(bits);
                    networks = networks.saturating_add(count);
                }
                _ => networks += 1,
            }
        }
        if depth >= bits_max || networks > NETWORKS_MAX {
            return Err("it is damaged: its search tree has more than there are networks".into());
        }
        Ok(Seen::Whole { depth: depth + 1, networks })
    }

    /// The two records of a node (MaxMind DB File Format Specification 2.0, "Node Layout").
    fn children(&self, node: usize) -> [usize; 2] {
        let size = usize::from(self.record_bits) / 4;
        let bytes = &self.bytes[node * size..(node + 1) * size];
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte));
        match self.record_bits {
            28 => {
                let middle = usize::from(bytes[3]);
                [(middle >> 4) << 24 | number(&bytes[..3]), (middle & 15) << 24 | number(&bytes[4..])]
            }
            _ => [number(&bytes[..size / 2]), number(&bytes[size / 2..])],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(records: &[[u8; 2]], bits_max: u8, expected: &str) {
        let nodes = records.len();
        let bytes: Vec<u8> = records.iter().flatten().flat_map(|&record| [0, 0, record]).collect();
        let said = Tree { bytes: &bytes, record_bits: 24, nodes }.verify(bits_max);
        assert_eq!(said.err().unwrap_or_default().split(" tree ").last(), Some(expected), "{records:?}");
    }

    #[test]
    fn ways_end_and_are_not_too_many() {
        check(&[], 32, "");
        check(&[[1, 9], [2, 2], [9, 9]], 32, "");
        check(&[[0, 9]], 32, "has a circle");
        check(&[[1, 9], [9, 2], [9, 0]], 128, "has a circle");
        check(&[[1, 9], [2, 9], [9, 9]], 2, "has more than there are networks");
        let doubled: Vec<[u8; 2]> = (1..=40).map(|next| [next, next]).collect();
        check(&doubled, 128, "has more than there are networks");
    }

    #[test]
    fn records_of_each_size_are_read() {
        let of = |record_bits, bytes: &[u8]| Tree { bytes, record_bits, nodes: 1 }.children(0);
        assert_eq!(of(24, &[1, 2, 3, 4, 5, 6]), [0x01_02_03, 0x04_05_06]);
        assert_eq!(of(28, &[1, 2, 3, 0x7a, 4, 5, 6]), [0x0701_0203, 0x0a04_0506]);
        assert_eq!(of(32, &[1, 2, 3, 4, 5, 6, 7, 8]), [0x0102_0304, 0x0506_0708]);
    }
}
