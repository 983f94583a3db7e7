//! The XDP plane: a program in the kernel forwards packets at the driver of the interface, from the tables that
//! this crate writes into its maps. Userspace decides, the program looks up.
//!
//! The program is in `bpf/`, in C. Its compiled object is committed beside it and embedded here, so that
//! building this crate needs no BPF compiler; `cargo xtask bpf` compiles it again.

pub mod associations;
pub mod attach;
mod batch;
pub mod capture;
pub mod check;
mod contents;
pub mod contract;
pub mod counting;
pub mod defence;
mod endpoints;
pub mod ethtool;
pub mod events;
mod foreign;
pub mod installation;
pub mod interface;
pub mod load;
pub mod maps;
pub mod memory;
mod neighbours;
mod netlink;
pub mod object;
pub mod pin;
pub mod plane;
pub mod reason;
mod slots;
mod sys;
