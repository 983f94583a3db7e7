//! Tests of the loader with the kernel: each in a network namespace and a BPF file system of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod attach;
mod crash;
mod examine;
mod frames;
mod harness;
mod loss;
mod take_over;
