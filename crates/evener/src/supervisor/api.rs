//! The address of the admin API over TCP. It is bound before a configuration is applied, and served by a task of its
//! own, which follows it here.

use crate::api_access::{ApiAccess, Endpoint};
use evener_core::event::Event;
use std::sync::Arc;
use tokio::sync::watch;

/// Receiver of the address at which the API has to be served.
pub(crate) type Endpoints = watch::Receiver<Option<Arc<Endpoint>>>;

/// The address in use.
#[derive(Default)]
pub(super) struct Api(watch::Sender<Option<Arc<Endpoint>>>);

impl Api {
    pub(super) fn subscribe(&self) -> Endpoints {
        self.0.subscribe()
    }

    /// Opens the address of a new configuration. Nothing changes yet.
    pub(super) fn open(&self, wanted: Option<&Arc<ApiAccess>>) -> Result<Option<Arc<Endpoint>>, String> {
        let before = self.0.borrow().clone();
        wanted.map(|access| Endpoint::open(Arc::clone(access), before.as_ref())).transpose()
    }

    /// Begins to serve the API at an address. Returns the events.
    pub(super) fn serve(&self, wanted: Option<Arc<Endpoint>>) -> Vec<Event> {
        let address =
            |endpoint: &Option<Arc<Endpoint>>| endpoint.as_ref().map(|one| one.address().to_string());
        let opened = address(&wanted);
        let closed = address(&self.0.send_replace(wanted));
        if closed == opened {
            return Vec::new();
        }
        let closed = closed.map(|address| Event::ApiClosed { address });
        closed.into_iter().chain(opened.map(|address| Event::ApiListening { address })).collect()
    }
}
