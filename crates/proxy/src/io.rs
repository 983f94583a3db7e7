//! Sockets and bytes: listening, connecting, relaying, TLS, batches of datagrams. Nothing here depends on
//! services.

pub(crate) mod batch;
mod buffer;
pub(crate) mod connect;
mod control_message;
pub(crate) mod gso;
pub(crate) mod inherited;
pub(crate) mod listener;
pub(crate) mod pipe;
pub(crate) mod relay;
pub(crate) mod request_log;
pub(crate) mod source;
pub(crate) mod sys;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tls;
pub(crate) mod transport;
