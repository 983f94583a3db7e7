//! Evener's userspace plane: workers that move TCP connections and UDP datagrams between clients and servers.
//!
//! Each worker is one thread with its own epoll, listeners (SO_REUSEPORT), buffers and timers; it shares nothing on the
//! way of a packet but atomics and the published [`Snapshot`](evener_core::snapshot::Snapshot) of each pool. The crate
//! opens sockets and moves bytes; what a client gets, `evener-core` decides; when things change, the program says.

mod batch;
mod connection;
mod listener;
mod pipe;
mod plane;
mod relay;
mod ring;
mod ring_relay;
mod service;
mod sys;
mod tcp;
mod timers;
mod udp;
mod worker;

pub use listener::{BindError, Bound, Sharing, bind};
pub use plane::{Driver, Plane, PlaneOptions};
pub use service::{Report, Reporter, Service, ServiceLive, Settings};
