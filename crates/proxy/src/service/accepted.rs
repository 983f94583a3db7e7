//! A client that the listener's component accepted for another one, which speaks more than bytes: HTTP, TLS, DNS.

use super::{Place, Service, Settings};
use rustix::fd::OwnedFd;
use std::net::SocketAddr;
use std::sync::Arc;

/// A client on its way from the listener to the component that serves it.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) client: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) service: Arc<Service>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) place: Place,
}
