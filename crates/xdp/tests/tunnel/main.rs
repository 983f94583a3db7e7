//! Tests of forwarding without address translation, of ICMP errors, and of routing by connection IDs of QUIC: packets through
//! `BPF_PROG_TEST_RUN`, and real sockets in namespaces.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod decapsulator;
mod direct;
mod encapsulation;
mod end_to_end;
mod network;
mod packet;
mod plane;
mod quic;
mod responses;
mod too_big;
