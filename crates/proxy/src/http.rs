//! HTTP and TLS: sessions with clients, exchanges with servers.

pub(crate) mod exchange;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod message;
pub(crate) mod session;
pub(crate) mod tunnel;
