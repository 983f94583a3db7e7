//! What is open: connections, sessions and flows, told of on demand, and ended one by one. Nothing is kept for it but a
//! number each.

use evener_core::clients::Had;
use rustix::fd::RawFd;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A connection of a client, or its flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// What it is called as long as it lives; no other one has had it, or will (before 4 billion others of its worker).
    pub number: u64,
    /// Its service.
    pub service: Arc<str>,
    /// Its client; clients of a unix socket count as loopback.
    pub client: IpAddr,
    /// The client's port, where it is known.
    pub client_port: Option<u16>,
    /// The server that it has, or is about to have.
    pub server: Option<Had>,
    /// How far it is, in words.
    pub stage: &'static str,
    /// For how long nothing has moved.
    pub idle: Duration,
    /// The socket to the client; flows share one.
    pub client_socket: Option<RawFd>,
    /// The socket to the server.
    pub server_socket: Option<RawFd>,
    /// Bytes that wait for the client to take them, the kernel's not counted.
    pub to_client: usize,
    /// Bytes that wait for the server to take them, the kernel's not counted.
    pub to_server: usize,
}

/// What all workers have open.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// How many there are, listed or not.
    pub total: usize,
    /// Those that are listed, by their numbers.
    pub open: Vec<Open>,
}

/// What became of the wish to close one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Both sides are closed.
    Done,
    /// Nobody has that number.
    Nobody,
}

/// Gets the answer.
type Done = Box<dyn FnOnce(Listing) + Send>;
