//! End to end: the real binary, real sockets, real peers. Each test has its own directory, ports and processes.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod checks;
mod commands;
mod harness;
mod limits;
mod reload;
mod tcp;
mod udp;
mod web;
