//! Tests of the data path: packets through `BPF_PROG_TEST_RUN`. What the program makes of a packet is compared with a
//! packet that is built from scratch, so that checksums are computed independently.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod associations;
mod damaged;
mod director;
mod egress;
mod events;
mod forwarding;
mod fragments;
mod icmp;
mod packet;
mod same_choice;
