//! Sockets and bytes: listening, connecting, relaying, TLS, batches of datagrams. It knows of no service.

pub(crate) mod batch;
pub(crate) mod connect;
pub(crate) mod gso;
pub(crate) mod listener;
pub(crate) mod pipe;
pub(crate) mod relay;
pub(crate) mod request_log;
pub(crate) mod sys;
pub(crate) mod tls;
pub(crate) mod transport;
