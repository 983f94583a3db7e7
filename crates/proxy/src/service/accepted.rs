//! A client of HTTP, TLS or DNS that the TCP component accepted for another component.

use super::{Permits, Service, Settings};
use rustix::fd::OwnedFd;
use std::net::SocketAddr;
use std::sync::Arc;

/// An accepted client for the component that serves it.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) client: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) service: Arc<Service>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) permits: Permits,
}
