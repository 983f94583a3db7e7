//! DNS beyond its bytes: answers that are kept, and how much the networks of clients ask, and which
//! transports a server refuses.

mod cache;
mod rate;
mod transports;

pub use cache::{Cache, CacheStats, Freshness, Reach};
pub use rate::{RateLimit, RateVerdict, network};
pub use transports::Transports;
