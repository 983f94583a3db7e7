//! DNS beyond the wire format: cached responses, rates of client networks, and the transports that a server
//! refuses.

mod cache;
mod rate;
mod transports;

pub use cache::{Cache, CacheStats, ExpungeScope, Freshness, StoredResponse};
pub use rate::{RateLimit, RateVerdict, network};
pub use transports::Transports;
