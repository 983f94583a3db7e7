//! The decisions of a load balancer. Other crates carry them out.
//!
//! This crate owns the model (services, pools, servers), the choice of a server, the health of servers,
//! stickiness, limits, access lists and the association of datagrams. It has no socket, clock, thread,
//! environment or randomness: time ([`Time`]) and randomness ([`Random`]) are arguments, so that a seeded
//! simulation replays any decision.

pub mod acl;
pub mod address;
pub mod attempt;
pub mod budget;
pub mod clients;
pub mod counters;
pub mod diff;
pub mod dns;
pub mod event;
pub mod explain;
pub mod flow;
pub mod hash;
pub mod health;
pub mod histogram;
pub mod limits;
pub mod lock;
pub mod lru;
pub mod pace;
pub mod policy;
pub mod pool;
pub mod random;
pub mod reason;
pub mod recent;
pub mod recording;
pub mod request_log;
pub mod route;
pub mod server_list;
pub mod service;
pub mod snapshot;
pub mod spec;
pub mod sticky;
pub mod table;
pub mod throttle;
pub mod time;
pub mod wire;

pub use address::{Endpoint, Target};
pub use random::Random;
pub use time::Time;

/// Identity of a server within its pool. It is never given to another server while the pool lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u32);
