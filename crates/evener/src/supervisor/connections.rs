//! Lists and closes connections and flows. Only the admin client that sent the request waits for the responses
//! of the workers.

use super::query::Reply;
use super::{Handle, Request, Supervisor};
use crate::planes::Listed;
use crate::state::ConnectionsQuery;
use evener_core::ServerId;
use evener_core::clients::LastServer;
use evener_core::event::Event;
use evener_core::snapshot::Entry;
use evener_proxy::{Closed, EndReason};
use std::sync::Arc;

impl Handle {
    /// Closes a connection or flow by its number. Returns `None` if the supervisor has ended.
    pub(crate) async fn close(&self, number: u64) -> Option<Closed> {
        self.request(|done| Request::Close { number, done }).await
    }

    /// Closes all connections and flows of a server: `pool/server`, or just the server if only one pool has it.
    /// Returns the full name of the server and the number of connections and flows, or the reason of the
    /// failure; `None` if the supervisor has ended.
    pub(crate) async fn close_server(&self, server: String) -> Option<Result<(String, usize), String>> {
        self.request(|done| Request::CloseServer { server, done }).await
    }
}

impl Supervisor {
    /// Lists the connections and flows that a query wants; at most its maximum from each worker.
    pub(super) fn list_connections(&self, query: &ConnectionsQuery, reply: Reply<Result<Listed, String>>) {
        let service = query.service().map(|service| self.find_open_service(service)).transpose();
        let server = query.server().map(|server| self.find_server_of_list(server)).transpose();
        match (service, server) {
            (Err(why), _) | (_, Err(why)) => drop(reply.send(Err(why))),
            (Ok(_), Ok(found)) => {
                let (server, id) = found.unzip();
                let filter = query.filter().of_server(server);
                let associations = query.association_filter(id);
                let done = move |list| drop(reply.send(Ok(list)));
                self.plane.connections(filter, associations, query.most(), done);
            }
        }
    }

    /// Returns the names of the pool and of the server that an operator names, and the identity of the server.
    fn find_server_of_list(&self, wanted: &str) -> Result<(LastServer, (Arc<str>, ServerId)), String> {
        let (pool, id, full) = self.pools.find_server(wanted)?;
        let server = full.strip_prefix(&*pool).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&full);
        Ok((LastServer { server: server.into(), pool: Arc::clone(&pool) }, (pool, id)))
    }

    /// Closes a connection or flow by its number.
    pub(super) fn close(&self, number: u64, done: Reply<Closed>) {
        let events = self.setting.events.clone();
        self.plane.close(number, move |closed| {
            if closed == Closed::Done {
                events.emit(&Event::ConnectionClosed { number });
            }
            let _ = done.send(closed);
        });
    }

    /// Closes all connections and flows of the server that an operator names.
    pub(super) fn close_server(&self, wanted: &str, done: Reply<Result<(String, usize), String>>) {
        let (pool, id, full) = match self.pools.find_server(wanted) {
            Ok(found) => found,
            Err(why) => return drop(done.send(Err(why))),
        };
        let snapshot = self.pools.slot(&pool).map(|slot| slot.load_full());
        let server = snapshot.as_ref().and_then(|snapshot| snapshot.server(id));
        let Some(server) = server else {
            return drop(done.send(Err(format!("server `{full}` is being added: try again"))));
        };
        let reason = EndReason::Operator;
        self.end_server(&pool, server, reason, move |closed| drop(done.send(Ok((full, closed)))));
    }

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
