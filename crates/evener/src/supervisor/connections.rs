//! Lists and closes connections and flows. Only the client that sent the request waits for the workers'
//! responses.

use super::{Handle, Phase, Supervisor};
use evener_core::ServerId;
use evener_core::event::Event;
use evener_core::snapshot::Entry;
use evener_proxy::{Closed, EndReason, Listing};
use std::sync::Arc;
use tokio::sync::oneshot;

impl Handle {
    /// Returns the connections and flows of a service or of all, at most `most` from each worker, or an error
    /// if there is no such service. Returns `None` if the supervisor is gone.
    pub(crate) async fn connections(
        &self,
        service: Option<String>,
        most: usize,
    ) -> Option<Result<Listing, String>> {
        let (done, response) = oneshot::channel();
        let inspect = move |supervisor: &Supervisor| {
            if let Some(service) = service.as_deref().filter(|service| !supervisor.knows(service)) {
                return Err(format!("there is no service `{service}`; `evener status` lists them"));
            }
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
            let log = supervisor.setting.log.clone();
            supervisor.plane.close(number, move |closed| {
                if closed == Closed::Done {
                    log.event(&Event::ConnectionClosed { number });
                }
                let _ = done.send(closed);
            });
        };
        self.inspect(inspect).await?;
        response.await.ok()
    }
}

impl Handle {
    /// Closes all connections and flows of a server, `pool/server` or the server alone when only one pool has
    /// it. Returns its full name and their number, or the reason of the failure.
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
    /// Closes all connections and flows of a server. `done` gets their number on the thread of a worker.
    pub(super) fn end_server(
        &self,
        pool: &Arc<str>,
        server: &Entry,
        reason: EndReason,
        done: impl FnOnce(usize) + Send + 'static,
    ) {
        let (log, pool, name) = (self.setting.log.clone(), Arc::clone(pool), Arc::clone(&server.name));
        self.plane.end_server(server, reason, move |closed| {
            if closed > 0 || reason == EndReason::Operator {
                log.event(&Event::ServerClosed { pool, server: name, reason: reason.name(), closed });
            }
            done(closed);
        });
    }

    /// Finds the server that an operator names, `pool/server` or the server alone when only one pool has it,
    /// and returns it with its full name.
    pub(super) fn find_server(&self, wanted: &str) -> Result<(Arc<str>, ServerId, String), String> {
        let found: Vec<(Arc<str>, ServerId, String)> = (self.pools.values())
            .flat_map(|running| {
                running.pool.servers().iter().map(move |server| (running.pool.spec().name.clone(), server))
            })
            .map(|(pool, server)| (pool.clone(), server.id, format!("{pool}/{}", server.spec.name)))
            .filter(|(pool, _, full)| {
                full == wanted || full.strip_prefix(&format!("{pool}/")) == Some(wanted)
            })
            .collect();
        match &found[..] {
            [one] => Ok(one.clone()),
            [] => Err(format!("there is no server `{wanted}`; `evener status` lists them")),
            several => {
                let names: Vec<&str> = several.iter().map(|(.., full)| full.as_str()).collect();
                Err(format!("several pools have a server `{wanted}`: give {}", names.join(" or ")))
            }
        }
    }

    /// Returns true if the program is draining and no connections are left.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Returns true if there is such a service, or a removed one that still has connections.
    fn knows(&self, service: &str) -> bool {
        self.services.contains_key(service) || self.retiring.iter().any(|one| &*one.name == service)
    }
}
