//! Tests of the loader with the kernel: each in a network namespace and a BPF file system of its own.

mod harness;
mod take_over;
