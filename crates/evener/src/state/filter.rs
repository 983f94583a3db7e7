//! Servers of a view by conditions: their states, their pool. Lists of servers without their pools.

use super::{PoolView, ServerView, ServiceView, View};
use crate::config::nearest;
use crate::table::{Cell, Row, Style, report};
use serde::Serialize;

/// Conditions on servers.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerFilter {
    /// States, of which one holds; none: all.
    states: Vec<String>,
    pool: Option<String>,
}

impl ServerFilter {
    /// The states, as [`ServerView::state_word`] returns them.
    pub(crate) const STATES: [&'static str; 5] = ["up", "down", "unchecked", "drain", "maintenance"];

    pub(crate) fn new(states: Vec<String>, pool: Option<String>) -> Self {
        Self { states, pool }
    }

    fn is_all(&self) -> bool {
        self.states.is_empty() && self.pool.is_none()
    }

    fn includes(&self, server: &ServerView) -> bool {
        self.states.is_empty() || self.states.iter().any(|state| state == server.state_word())
    }

    /// Returns a line about the filter, if no server of the view fulfils it.
    pub(crate) fn note(&self, view: &View) -> String {
        let is_empty = !self.states.is_empty() && view.pools.is_empty();
        if is_empty { format!("\nno server is {}\n", self.states.join(" or ")) } else { String::new() }
    }
}

impl View {
    /// Keeps the servers that fulfil the conditions, their pools, and the services that use them.
    ///
    /// # Errors
    /// There is no such pool. The error names the nearest name.
    pub(crate) fn filtered(mut self, filter: &ServerFilter) -> Result<Self, String> {
        if filter.is_all() {
            return Ok(self);
        }
        if let Some(name) = &filter.pool {
            if !self.pools.iter().any(|pool| pool.is_named(name)) {
                let near = nearest(name, self.pools.iter().map(PoolView::name));
                return Err(format!("there is no pool `{name}`{near}"));
            }
            self.pools.retain(|pool| pool.is_named(name));
        }
        if !filter.states.is_empty() {
            self.pools.iter_mut().for_each(|pool| pool.keep_servers(|server| filter.includes(server)));
            self.pools.retain(|pool| pool.servers().next().is_some());
        }
        self.keep_users_of_pools();
        Ok(self)
    }
}

impl View {
    /// Returns the services whose clients have flows or associations.
    pub(crate) fn flow_services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().filter(|service| service.has_flows()).map(ServiceView::name)
    }

    /// Returns the name of a service whose clients have flows or associations.
    ///
    /// # Errors
    /// There is no such service. The error says why, or names the nearest name.
    pub(crate) fn flow_service<'a>(&self, name: &'a str) -> Result<&'a str, String> {
        match self.service(name) {
            Some(service) if service.has_flows() => Ok(name),
            Some(_) => Err(format!(
                "the service `{name}` has no flows; `evener connections {name}` lists its connections"
            )),
            None => {
                let near = nearest(name, self.services.iter().map(ServiceView::name));
                Err(format!("there is no service `{name}`{near}"))
            }
        }
    }
}

/// Servers with their pools.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct ServersView<'a>(Vec<ServerOfPool<'a>>);

#[derive(Debug, Serialize)]
struct ServerOfPool<'a> {
    pool: &'a str,
    #[serde(flatten)]
    server: &'a ServerView,
}

impl<'a> ServersView<'a> {
    /// Lists the servers of a view.
    pub(crate) fn of(view: &'a View) -> Self {
        let of_pool =
            |pool: &'a PoolView| pool.servers().map(move |server| ServerOfPool { pool: pool.name(), server });
        Self(view.pools.iter().flat_map(of_pool).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Formats the servers as a table.
    pub(crate) fn text(&self, style: Style) -> String {
        let rows: Vec<Row> = self.0.iter().map(|one| one.server.short_row(one.pool)).collect();
        report(&["SERVER", "<STATE", "ACTIVE", "WEIGHT", "TIER"], &rows, 0, style)
    }
}

impl ServerView {
    /// Returns the row of the server in a list of servers of all pools, with its address and its troubles.
    fn short_row(&self, pool: &str) -> Row {
        let active = match self.limit() {
            Some(limit) => format!("{}/{limit}", self.active()),
            None => self.active().to_string(),
        };
        let figures = [active, self.weight().to_string(), self.tier().to_string()].map(Cell::from);
        let cells = std::iter::once(self.state_cell()).chain(figures).collect();
        let mut row = Row::new(format!("{pool}/{}", self.name()), cells);
        if !self.has_address(self.name()) {
            row = row.with_remark(self.address());
        }
        row.add_details(self.troubles().into_iter());
        row
    }
}
