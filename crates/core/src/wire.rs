//! Wire formats: parsers and writers without I/O. Input may be hostile; nothing here panics, and each parser
//! returns the same result for any division of the input into pieces.

/// Number of instances of Evener that passed a message on at which a loop is assumed.
pub const HOPS_MAX: u8 = 10;

pub mod chunked;
pub mod dns;
pub mod forwarded;
pub mod hello;
pub mod http;
pub mod mname;
pub mod proxy;
