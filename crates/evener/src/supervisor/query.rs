//! Queries of the state, from the admin API, front ends and the demo. A response is a record of `state`. The
//! supervisor builds the records in `view.rs`; the workers contribute the open connections.

use super::{Handle, PlanSetting, Planned, Request};
use crate::config::Config;
use crate::events::Events;
use crate::inputs::Inputs;
use crate::planes::Listed;
use crate::state::{
    ClientsQuery, ClientsView, ConnectionsQuery, ConnectionsView, ExplainQuery, Explanation, RuleView,
    StickyView, View, ViewScope,
};
use evener_core::spec::Spec;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Receiver of a response.
pub(super) type Reply<T> = oneshot::Sender<T>;

/// Queries, each with a channel for the response. A query for a service or pool that does not exist, or that
/// does not record the wanted state, gets the reason.
pub(crate) enum Query {
    View {
        scope: ViewScope,
        reply: Reply<View>,
    },
    Access {
        reply: Reply<Vec<RuleView>>,
    },
    /// The warnings about the configuration in use.
    Warnings {
        reply: Reply<Vec<String>>,
    },
    Clients {
        query: ClientsQuery,
        reply: Reply<Result<ClientsView, String>>,
    },
    Connections {
        query: ConnectionsQuery,
        reply: Reply<Result<Listed, String>>,
    },
    Sticky {
        pool: Option<String>,
        most: usize,
        reply: Reply<Result<StickyView, String>>,
    },
    Explain {
        query: ExplainQuery,
        reply: Reply<Result<Explanation, String>>,
    },
    /// The configuration in use, as a file can express it.
    Spec {
        /// The configuration, and whether it has functions.
        reply: Reply<(Spec, bool)>,
    },
    Events {
        reply: Reply<Events>,
    },
    PlanSetting {
        reply: Reply<PlanSetting>,
    },
    /// The effect of a configuration.
    Plan {
        config: Box<Config>,
        inputs: Box<Inputs>,
        reply: Reply<Planned>,
    },
    /// The open flows of a service.
    Flows {
        service: Arc<str>,
        reply: Reply<Vec<evener_proxy::Open>>,
    },
}

/// Each function returns `None` if the supervisor has ended.
impl Handle {
    /// Returns the present state of the instance, or of a part of it.
    pub(crate) async fn view(&self, scope: ViewScope) -> Option<View> {
        self.query(|reply| Query::View { scope, reply }).await
    }

    /// Returns the configuration in use, as a file can express it.
    pub(crate) async fn spec(&self) -> Option<(Spec, bool)> {
        self.query(|reply| Query::Spec { reply }).await
    }

    /// Returns the events of the instance.
    pub(crate) async fn events(&self) -> Option<Events> {
        self.query(|reply| Query::Events { reply }).await
    }

    /// Returns the access rules that the operator added.
    pub(crate) async fn access_rules(&self) -> Option<Vec<RuleView>> {
        self.query(|reply| Query::Access { reply }).await
    }

    /// Returns the warnings about the configuration in use.
    pub(crate) async fn warnings(&self) -> Option<Vec<String>> {
        self.query(|reply| Query::Warnings { reply }).await
    }

    /// Returns clients that services recorded.
    pub(crate) async fn clients(&self, query: ClientsQuery) -> Option<Result<ClientsView, String>> {
        self.query(|reply| Query::Clients { query, reply }).await
    }

    /// Returns open connections and flows.
    pub(crate) async fn connections(
        &self,
        query: ConnectionsQuery,
    ) -> Option<Result<ConnectionsView, String>> {
        let most = query.most();
        // The reply comes from a worker, which must not spend time on the records.
        let listing = self.query(|reply| Query::Connections { query, reply }).await?;
        Some(listing.map(|listed| ConnectionsView::new(listed, most)))
    }

    /// Returns the sticky table of a pool, or of all pools, with at most `most` clients.
    pub(crate) async fn sticky(
        &self,
        pool: Option<String>,
        most: usize,
    ) -> Option<Result<StickyView, String>> {
        self.query(|reply| Query::Sticky { pool, most, reply }).await
    }

    /// Explains which server a client would get now.
    pub(crate) async fn explain(&self, query: ExplainQuery) -> Option<Result<Explanation, String>> {
        self.query(|reply| Query::Explain { query, reply }).await
    }

    /// Returns what a configuration of an operator needs before it is read.
    pub(crate) async fn plan_setting(&self) -> Option<PlanSetting> {
        self.query(|reply| Query::PlanSetting { reply }).await
    }

    /// Returns the effect that a configuration would have.
    pub(crate) async fn plan(&self, config: Config, inputs: Inputs) -> Option<Planned> {
        let (config, inputs) = (Box::new(config), Box::new(inputs));
        self.query(|reply| Query::Plan { config, inputs, reply }).await
    }

    /// Returns the open flows of a service.
    pub(crate) async fn flows(&self, service: Arc<str>) -> Option<Vec<evener_proxy::Open>> {
        self.query(|reply| Query::Flows { service, reply }).await
    }

    async fn query<T>(&self, query: impl FnOnce(Reply<T>) -> Query) -> Option<T> {
        self.request(|reply| Request::Query(query(reply))).await
    }
}
