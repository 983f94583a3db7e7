//! The program's defence of services and its tarpit, frame by frame.

#![allow(clippy::unwrap_used, reason = "a test ends with the panic")]

mod flood;
mod lists;
mod network;
mod packet;
mod plane;
mod rate;
mod syn;
mod tarpit;
