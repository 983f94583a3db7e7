//! DNS beyond its bytes: answers that are kept, and how much the networks of clients ask.

mod cache;
mod rate;

pub use cache::{Cache, CacheStats, Freshness, Reach};
pub use rate::{RateLimit, RateVerdict, network};
