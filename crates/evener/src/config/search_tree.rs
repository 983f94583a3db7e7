//! Verifies the search tree of a MaxMind database before the crate maxminddb walks the tree. In a damaged
//! database, the tree may have cycles or more paths than fit into memory, and the walk would not end. The data
//! of networks is not verified.

use maxminddb::Metadata;

/// Maximum number of networks, more than any real database has.
const NETWORKS_MAX: u64 = 64 << 20;

/// Progress of the verification of a node.
#[derive(Clone, Copy)]
enum NodeState {
    Unvisited,
    /// On the path from the root to the present node.
    OnPath,
    /// Verified, with the number of bits and networks below the node.
    Complete {
        depth: u8,
        networks: u64,
    },
}

/// Verifies that every path through the tree ends within the bits of an address, and that the tree has at most
/// [`NETWORKS_MAX`] networks.
pub(super) fn verify(bytes: &[u8], metadata: &Metadata) -> Result<(), String> {
    let tree = Tree { bytes, record_bits: metadata.record_size, nodes: metadata.node_count as usize };
    let bits_max = if metadata.ip_version == 4 { 32 } else { 128 };
    let size = match metadata.record_size {
        24 | 28 | 32 => tree.nodes.saturating_mul(usize::from(metadata.record_size) / 4),
        other => return Err(format!("records of {other} bits are not supported, only of 24, 28 and 32")),
    };
    if size > bytes.len() {
        return Err("damaged: the search tree is truncated".into());
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
        let mut states = vec![NodeState::Unvisited; self.nodes];
        let mut path: Vec<usize> = (0..self.nodes.min(1)).collect();
        while let Some(&node) = path.last() {
            match states[node] {
                NodeState::Complete { .. } => drop(path.pop()),
                NodeState::OnPath => {
                    states[node] = self.below(node, &states, bits_max)?;
                    path.pop();
                }
                NodeState::Unvisited => {
                    states[node] = NodeState::OnPath;
                    for child in self.children(node).into_iter().filter(|&child| child < self.nodes) {
                        match states[child] {
                            NodeState::Unvisited => path.push(child),
                            NodeState::OnPath => return Err("damaged: the search tree has a cycle".into()),
                            NodeState::Complete { .. } => {}
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the state of a node whose children are all complete.
    fn below(&self, node: usize, states: &[NodeState], bits_max: u8) -> Result<NodeState, String> {
        let (mut depth, mut networks) = (0, 0_u64);
        for child in self.children(node) {
            match states.get(child) {
                Some(&NodeState::Complete { depth: bits, networks: count }) => {
                    depth = depth.max(bits);
                    networks = networks.saturating_add(count);
                }
                _ => networks += 1,
            }
        }
        if depth >= bits_max || networks > NETWORKS_MAX {
            return Err("damaged: the search tree has too many networks".into());
        }
        Ok(NodeState::Complete { depth: depth + 1, networks })
    }

    /// Returns the two records of a node (MaxMind DB File Format Specification 2.0, "Node Layout").
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
        let result = Tree { bytes: &bytes, record_bits: 24, nodes }.verify(bits_max);
        assert_eq!(result.err().unwrap_or_default().split(" tree ").last(), Some(expected), "{records:?}");
    }

    #[test]
    fn cycles_long_paths_and_too_many_networks_are_refused() {
        check(&[], 32, "");
        check(&[[1, 9], [2, 2], [9, 9]], 32, "");
        check(&[[0, 9]], 32, "has a cycle");
        check(&[[1, 9], [9, 2], [9, 0]], 128, "has a cycle");
        check(&[[1, 9], [2, 9], [9, 9]], 2, "has too many networks");
        let doubled: Vec<[u8; 2]> = (1..=40).map(|next| [next, next]).collect();
        check(&doubled, 128, "has too many networks");
    }

    #[test]
    fn records_of_each_size_are_read() {
        let of = |record_bits, bytes: &[u8]| Tree { bytes, record_bits, nodes: 1 }.children(0);
        assert_eq!(of(24, &[1, 2, 3, 4, 5, 6]), [0x01_02_03, 0x04_05_06]);
        assert_eq!(of(28, &[1, 2, 3, 0x7a, 4, 5, 6]), [0x0701_0203, 0x0a04_0506]);
        assert_eq!(of(32, &[1, 2, 3, 4, 5, 6, 7, 8]), [0x0102_0304, 0x0506_0708]);
    }
}
