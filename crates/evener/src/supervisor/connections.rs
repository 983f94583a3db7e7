//! Lists and closes connections and flows. Only the admin client that sent the request waits for the responses
//! of the workers.

use super::{Handle, Supervisor};
use evener_core::event::Event;
use evener_core::snapshot::Entry;
use evener_proxy::{Closed, EndReason, Listing};
use std::sync::Arc;
use tokio::sync::oneshot;

impl Handle {
    /// Returns the connections and flows of a service or of all services, at most `most` from each worker, or
    /// an error if there is no such service. Returns `None` if the supervisor has ended.
    pub(crate) async fn connections(
        &self,
        service: Option<String>,
        most: usize,
    ) -> Option<Result<Listing, String>> {
        let (done, response) = oneshot::channel();
        let inspect = move |supervisor: &Supervisor| {
            service.as_deref().map_or(Ok(()), |service| supervisor.find_open_service(service))?;
            let done = move |listing| drop(done.send(listing));
            supervisor.plane.connections(service.map(Into::into), most, done);
            Ok(())
        };
        match self.inspect(inspect).await? {
            Ok(()) => response.await.ok().map(Ok),
            Err(why) => Some(Err(why)),
        }
    }

    /// Closes a connection or flow by its number.
    pub(crate) async fn close(&self, number: u64) -> Option<Closed> {
        let (done, response) = oneshot::channel();
        let inspect = move |supervisor: &Supervisor| {
            let events = supervisor.setting.events.clone();
            supervisor.plane.close(number, move |closed| {
                if closed == Closed::Done {
                    events.emit(&Event::ConnectionClosed { number });
                }
                let _ = done.send(closed);
            });
        };
        self.inspect(inspect).await?;
        response.await.ok()
    }

    /// Closes all connections and flows of a server: `pool/server`, or just the server if only one pool has it.
    /// Returns the full name of the server and the number of connections and flows, or the reason of the
    /// failure.
    pub(crate) async fn close_server(&self, wanted: String) -> Option<Result<(String, usize), String>> {
        let (done, response) = oneshot::channel();
        let inspect = move |supervisor: &Supervisor| {
            let (pool, id, full) = supervisor.find_server(&wanted)?;
            let snapshot = supervisor.pools.get(&pool).map(|running| running.slot.load_full());
            let server = snapshot.as_ref().and_then(|snapshot| snapshot.server(id));
            let server = server.ok_or_else(|| format!("server `{full}` is being added: try again"))?;
            let done = move |closed| {
                let _ = done.send(closed);
            };
            supervisor.end_server(&pool, server, EndReason::Operator, done);
            Ok(full)
        };
        match self.inspect(inspect).await? {
            Ok(full) => response.await.ok().map(|closed| Ok((full, closed))),
            Err(why) => Some(Err(why)),
        }
    }
}

impl Supervisor {
    /// Closes all connections and flows of a server. `done` is called with their number on the thread of a
    /// worker.
    pub(super) fn end_server(
        &self,
        pool: &Arc<str>,
        server: &Entry,
        reason: EndReason,
        done: impl FnOnce(usize) + Send + 'static,
    ) {
        let (events, pool, name) = (self.setting.events.clone(), Arc::clone(pool), Arc::clone(&server.name));
        self.plane.end_server(server, reason, move |closed| {
            if closed > 0 || reason == EndReason::Operator {
                events.emit(&Event::ServerClosed { pool, server: name, reason: reason.name(), closed });
            }
            done(closed);
        });
    }
}
