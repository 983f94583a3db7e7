//! Evener's userspace plane: workers that move TCP connections and UDP datagrams between clients and servers.
//!
//! Each worker is one thread with its own epoll, listeners (SO_REUSEPORT), buffers and timers. On the packet
//! path workers share only atomics and the published [`Snapshot`](evener_core::snapshot::Snapshot) of each
//! pool. The crate opens sockets and moves bytes; `evener-core` chooses the servers, and the program applies
//! changes of the configuration.

mod context;
mod dns;
mod http;
mod io;
mod plane;
mod service;
mod tcp;
mod udp;
mod worker;

pub use context::descriptors;
pub use context::report::{Report, Reporter};
pub use context::unserved::{Status, Traffic, Unserved};
pub use io::connect::is_resource_exhaustion;
pub use io::inherited::{Inherited, inherited_sockets};
pub use io::listener::{AdoptError, BindError, Bound, Sharing, bind, socket_number};
pub use io::relay::{PassedDirection, PassedPipe};
pub use io::request_log::{LogForm, Queued, RequestLog};
pub use io::source::may_be_transparent;
pub use io::tls::{TlsAcceptor, TlsConnector, failure_with_server};
pub use plane::Plane;
pub use service::ending::EndReason;
pub use service::open::{Closed, ListFilter, Listing, Open};
pub use service::succession::{Lent, PassedFlow};
pub use service::{Backend, Dns, Refusal, Service, Settings};
pub use tcp::passing::PassedRelay;
pub use worker::{Driver, PlaneOptions};
