//! Evener's userspace plane: workers that move TCP connections and UDP datagrams between clients and servers.
//!
//! Each worker is one thread with its own epoll, listeners (SO_REUSEPORT), buffers and timers; it shares nothing on the
//! way of a packet but atomics and the published [`Snapshot`](evener_core::snapshot::Snapshot) of each pool. The crate
//! opens sockets and moves bytes; what a client gets, `evener-core` decides; when things change, the program says.

mod admission;
mod batch;
mod burst;
mod connect;
mod connection;
pub mod descriptors;
mod dns;
mod ending;
mod exchange;
mod greeting;
mod hops;
mod http1;
mod http2;
mod link;
mod listener;
mod message;
mod open;
mod pausing;
mod pipe;
mod plane;
mod pool_queue;
mod registry;
mod relay;
mod request_log;
mod ring;
mod ring_relay;
mod service;
mod session;
mod sys;
mod tcp;
mod timers;
mod tls;
mod tunnel;
mod udp;
mod warm;
mod worker;

pub use connect::is_want;
pub use ending::EndReason;
pub use listener::{BindError, Bound, Sharing, bind, may_be_transparent};
pub use open::{Closed, Listing, Open};
pub use plane::{Driver, Plane, PlaneOptions};
pub use request_log::{LogForm, Queued, RequestLog};
pub use service::{Backend, Dns, Refusal, Report, Reporter, Service, ServiceLive, Settings};
pub use tls::{TlsAcceptor, TlsConnector};
