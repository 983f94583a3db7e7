//! Wire formats: views over bytes and what they say, without any I/O. Whatever comes in may be hostile; nothing here
//! panics, and each parser gives the same answer however its bytes were cut into pieces.

/// So many instances of Evener pass on what goes on to a server; then it is taken to go round in a loop.
pub const HOPS_MAX: u8 = 10;

pub mod chunked;
pub mod dns;
pub mod forwarded;
pub mod hello;
pub mod http;
pub mod mname;
pub mod proxy;
