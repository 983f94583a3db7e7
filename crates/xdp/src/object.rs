//! The compiled program.

use aya::include_bytes_aligned;

/// The object file, as `cargo xtask bpf` writes it.
pub const OBJECT: &[u8] = include_bytes_aligned!("../bpf/evener.bpf.o");
/// Name of the program in the object file.
pub const PROGRAM: &str = "evener";
