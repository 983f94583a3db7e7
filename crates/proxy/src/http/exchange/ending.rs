//! End of all connections to a server: exchanges on them break off as if the server had reset the connections.

use super::{ServerConnection, Stage};
use crate::context::Context;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::exchange::Shared;
use crate::service::admission::reset_at_close;
use crate::service::ending::Ending;

impl Shared {
    /// Returns the connections that `ending` closes.
    pub(in crate::http) fn connections_of(&self, ending: &Ending) -> Vec<ServerConnectionKey> {
        let is_meant = |server: &ServerConnection| ending.means(&server.live, &server.target);
        self.servers.keys(|server| is_meant(server))
    }

    /// Ends a connection; returns the exchange that used it, if there is one. A connection that is not open yet
    /// stays: if its attempt fails, its exchange tries the next server.
    pub(in crate::http) fn end_connection(
        &mut self,
        cx: &mut Context,
        server_key: ServerConnectionKey,
    ) -> Option<ExchangeKey> {
        let server = self.servers.get_mut(server_key)?;
        match (server.stage, server.exchange) {
            (Stage::Open, Some(exchange_key)) => {
                reset_at_close(server.transport.socket());
                server.transport.break_off();
                Some(exchange_key)
            }
            (Stage::Open | Stage::Lingering, None) => {
                self.close_server(cx, server_key);
                None
            }
            _ => None,
        }
    }
}
