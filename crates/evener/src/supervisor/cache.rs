//! Removes responses from the caches of DNS services.

use super::{Handle, Request, Supervisor};
use evener_core::dns::{Cache, ExpungeScope};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Set of cached responses to remove.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExpungeExtent {
    All,
    /// A name in wire form and lower case, and the scope of the removal.
    Name(Vec<u8>, ExpungeScope),
}

impl ExpungeExtent {
    /// Removes the responses. Returns their number.
    fn expunge_from(&self, cache: &Cache) -> usize {
        match self {
            Self::All => cache.clear(),
            Self::Name(name, scope) => cache.expunge(name, *scope),
        }
    }
}

/// Reason why no response was removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExpungeError {
    /// The service does not exist.
    #[error("{0}")]
    NoService(String),
    #[error("service `{0}` has no cache: give it dns = {{ cache = true }}")]
    NoCache(String),
}

pub(super) type Done = oneshot::Sender<Result<usize, ExpungeError>>;

impl Handle {
    /// Removes cached responses of a service. Returns their number, or the reason of the failure; `None` if the
    /// supervisor has ended.
    pub(crate) async fn expunge(
        &self,
        service: String,
        extent: ExpungeExtent,
    ) -> Option<Result<usize, ExpungeError>> {
        self.request(|done| Request::Expunge { service, extent, done }).await
    }
}

impl Supervisor {
    /// Removes cached responses on another thread, because the whole cache may be searched, which takes time.
    pub(super) fn expunge(&self, service: &str, extent: ExpungeExtent, done: Done) {
        match self.cache_of(service) {
            Ok(cache) => {
                tokio::task::spawn_blocking(move || drop(done.send(Ok(extent.expunge_from(&cache)))));
            }
            Err(error) => drop(done.send(Err(error))),
        }
    }

    /// Returns the caches of all services, with the names of the services.
    pub(super) fn caches(&self) -> Vec<(Arc<str>, Arc<Cache>)> {
        let names = self.config.spec.services.iter().map(|service| Arc::clone(&service.name));
        names.filter_map(|name| self.cache_of(&name).ok().map(|cache| (name, cache))).collect()
    }

    pub(super) fn cache_of(&self, service: &str) -> Result<Arc<Cache>, ExpungeError> {
        let proxied = self.find_service(service).map_err(ExpungeError::NoService)?.of_workers();
        let settings = proxied.map(|proxied| proxied.settings.load());
        let cache = settings.and_then(|settings| settings.dns.as_ref()?.cache.clone());
        cache.ok_or_else(|| ExpungeError::NoCache(service.to_owned()))
    }
}
