//! What is open, as workers tell of it: nobody waits for them but who asked.

use super::{Handle, Supervisor};
use evener_core::event::Event;
use evener_proxy::{Closed, Listing};
use tokio::sync::oneshot;

impl Handle {
    /// What is open, of a service or of all, at most `most` of each worker; or why there is no such service. `None`
    /// when the supervisor is gone.
    pub(crate) async fn connections(
        &self,
        service: Option<String>,
        most: usize,
    ) -> Option<Result<Listing, String>> {
        let (done, answer) = oneshot::channel();
        let look = move |supervisor: &Supervisor| {
            if let Some(service) = service.as_deref().filter(|service| !supervisor.knows(service)) {
                return Err(format!("there is no service `{service}`; `evener status` lists them"));
            }
            let done = move |listing| drop(done.send(listing));
            supervisor.plane.connections(service.map(Into::into), most, done);
            Ok(())
        };
        match self.look(look).await? {
            Ok(()) => answer.await.ok().map(Ok),
            Err(why) => Some(Err(why)),
        }
    }

    /// Closes a connection or flow by its number.
    pub(crate) async fn close(&self, number: u64) -> Option<Closed> {
        let (done, answer) = oneshot::channel();
        let look = move |supervisor: &Supervisor| {
            let log = supervisor.setting.log.clone();
            supervisor.plane.close(number, move |closed| {
                if closed == Closed::Done {
                    log.event(&Event::ConnectionClosed { number });
                }
                let _ = done.send(closed);
            });
        };
        self.look(look).await?;
        answer.await.ok()
    }
}

impl Supervisor {
    /// Whether there is such a service, or was one that still has connections.
    fn knows(&self, service: &str) -> bool {
        self.services.contains_key(service) || self.retiring.iter().any(|one| &*one.name == service)
    }
}
