//! Service tables: the part of a service and its pools that a kernel plane needs, as plain rows, and the
//! changes between two tables. A table is derived from the configuration and the snapshots; it decides
//! nothing by itself ([`Snapshot::roles`] does) and knows no plane.

mod change;
mod choice;
mod tables;

pub use change::{Edit, TableChange, diff};
pub use choice::{ChoiceTable, ChooseBy};
pub use tables::{ServiceChanges, Tables};

use crate::ServerId;
use crate::acl::Acl;
use crate::address::{Endpoint, Target};
use crate::limits::Limits;
use crate::snapshot::{Admission, Entry, Role, Snapshot, Takes};
use crate::spec::{
    Failover, IpvsServiceSpec, OnDown, Policy, PoolSpec, Protocol, QuicId, ServiceSpec, StickySpec,
    XdpServiceSpec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The table of a service.
///
/// ```
/// use evener_core::pool::{Pool, PoolSetting};
/// use evener_core::spec::{PoolSpec, Protocol, ServerSpec, ServiceSpec};
/// use evener_core::table::{PoolTable, ServiceTable, diff};
/// use evener_core::{Endpoint, Time};
/// use std::sync::Arc;
///
/// let mut service = ServiceSpec::new("www", Protocol::Tcp);
/// service.listen.push("192.0.2.1:80".parse()?);
/// service.pool = Some("web".into());
/// let endpoint: Endpoint = "10.0.0.1:80".parse()?;
/// let targets = [endpoint.target().unwrap()];
/// let mut spec = PoolSpec::new("web", vec![ServerSpec::new(endpoint)]);
/// let setting = PoolSetting { workers: 1, key: 7, first_id: 0 };
/// let mut pool = Pool::new(&spec, &targets, setting, Time::ZERO);
///
/// let mut table = || {
///     let snapshot = pool.snapshot().expect("the pool changed");
///     let web = Arc::new(PoolTable::derive(&spec, &snapshot));
///     spec.servers[0].weight = 3;
///     pool.apply(&spec, &targets, Time::ZERO);
///     ServiceTable::derive(&service, |_| Some(Arc::clone(&web)))
/// };
/// let (before, after) = (table(), table());
/// let changes: Vec<String> =
///     diff(Some(&before), Some(&after)).iter().map(ToString::to_string).collect();
/// assert_eq!(changes, ["~ server web/10.0.0.1:80: weight 1 -> 3"]);
/// # Ok::<(), evener_core::address::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceTable {
    name: Arc<str>,
    traits: ServiceTraits,
    listen: BTreeSet<Endpoint>,
    pools: PoolTables,
}

/// Tables of pools by name.
type PoolTables = BTreeMap<Arc<str>, Arc<PoolTable>>;

/// The part of a table that concerns the service as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTraits {
    /// Protocol of the clients, which determines the transports.
    pub protocol: Protocol,
    /// Name of the pool for clients without a route.
    pub default_pool: Option<Arc<str>>,
    /// Access list of clients; `None` admits all.
    pub acl: Option<Arc<Acl>>,
    /// Settings of the XDP plane, present if it serves the clients.
    pub xdp: Option<Arc<XdpServiceSpec>>,
    /// Settings of the IPVS plane, present if it serves the clients.
    pub ipvs: Option<Arc<IpvsServiceSpec>>,
}

/// The part of a table that concerns one pool. Services that use the same pool share it.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTable {
    traits: PoolTraits,
    /// The servers, by identity: their order in the configuration is not part of the table.
    rows: BTreeMap<ServerId, Row>,
}

/// The part of a table that concerns a pool as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTraits {
    /// The policy. A plane maps it to a scheduler of its own, or the configuration is refused.
    pub policy: Policy,
    /// Treatment of clients whose server cannot take them.
    pub failover: Failover,
    /// Treatment of the flows of a server that a check marks down.
    pub on_down: OnDown,
    /// Stickiness of clients.
    pub sticky: Option<StickySpec>,
    /// The pool has the quorum that its configuration demands, or needs none.
    pub has_quorum: bool,
    /// Servers without new clients stay in the table, with the weight 0.
    pub inhibit_on_failure: bool,
}

/// A server of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the server.
    pub name: Arc<str>,
    /// Name by which a plane places the server, for example in a Maglev table. It does not depend on the number of
    /// addresses of a host name.
    pub placement_name: Arc<str>,
    /// Address of the server.
    pub target: Target,
    /// Tier of the server.
    pub tier: u8,
    /// The server takes clients only while the pool is below its quorum.
    pub is_sorry: bool,
    /// A check or failures of traffic marked the server down.
    pub is_down: bool,
    /// Configured weight.
    pub weight: u32,
    /// Weight in [`WEIGHT_UNIT`](crate::policy::WEIGHT_UNIT)s, with slow start.
    pub share: u32,
    /// Limits of concurrent flows.
    pub limits: Limits,
    /// Access list of clients; `None` admits all.
    pub acl: Option<Arc<Acl>>,
    /// Identity in connection IDs of QUIC.
    pub quic_id: Option<QuicId>,
    /// Clients that the server takes, and its role in the choice for new clients.
    pub role: Role,
}

impl ServiceTable {
    /// Derives the table of a service; `pool` returns the tables of pools by name.
    #[must_use]
    pub fn derive(service: &ServiceSpec, pool: impl Fn(&Arc<str>) -> Option<Arc<PoolTable>>) -> Self {
        let traits = ServiceTraits {
            protocol: service.protocol,
            default_pool: service.pool.clone(),
            acl: service.acl.clone(),
            xdp: service.xdp.clone(),
            ipvs: service.ipvs.clone(),
        };
        let pools = service.pools().filter_map(|name| Some((name.clone(), pool(name)?))).collect();
        Self { name: service.name.clone(), traits, listen: service.listen.iter().cloned().collect(), pools }
    }

    /// Replaces the table of one of its pools.
    fn replace_pool(&mut self, name: &Arc<str>, table: &Arc<PoolTable>) {
        self.pools.insert(name.clone(), Arc::clone(table));
    }

    /// Returns the name of the service.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the traits of the service.
    #[must_use]
    pub fn traits(&self) -> &ServiceTraits {
        &self.traits
    }

    /// Returns the listen addresses.
    #[must_use]
    pub fn listen(&self) -> &BTreeSet<Endpoint> {
        &self.listen
    }

    /// Returns the pools of the service by name: the default pool, and the pools of routes and of refused
    /// clients.
    pub fn pools(&self) -> impl Iterator<Item = (&Arc<str>, &PoolTable)> {
        self.pools.iter().map(|(name, pool)| (name, &**pool))
    }
}

impl PoolTable {
    /// Derives the table of a pool. Occupancies are read now: if a server reaches a limit or falls below it,
    /// the table has to be derived again.
    #[must_use]
    pub fn derive(spec: &PoolSpec, snapshot: &Snapshot) -> Self {
        let traits = PoolTraits {
            policy: spec.policy,
            failover: spec.failover,
            on_down: spec.on_down,
            sticky: spec.sticky.clone(),
            has_quorum: spec.quorum.is_none() || !snapshot.lacks_quorum(),
            inhibit_on_failure: spec.inhibit_on_failure,
        };
        let ends_sorry = spec.sticky.is_some() && !snapshot.lacks_quorum();
        let servers = snapshot.servers().iter().zip(snapshot.roles());
        let row = |(server, role): (&Arc<Entry>, Role)| {
            // Sticky clients of a sorry server would stay after the quorum returned.
            let takes =
                if ends_sorry && server.is_sorry && !role.is_candidate { Takes::None } else { role.takes };
            (server.id, Row::new(server, Role { takes, ..role }))
        };
        let rows = servers.map(row).collect();
        Self { traits, rows }
    }

    /// Returns the table with some of the servers, for example those of one address family.
    #[must_use]
    pub fn filtered(&self, mut is_wanted: impl FnMut(&Row) -> bool) -> Self {
        let rows = self.rows.iter().filter(|(_, row)| is_wanted(row));
        Self { traits: self.traits.clone(), rows: rows.map(|(id, row)| (*id, row.clone())).collect() }
    }

    /// Returns the traits of the pool.
    #[must_use]
    pub fn traits(&self) -> &PoolTraits {
        &self.traits
    }

    /// Returns the servers, by identity.
    pub fn rows(&self) -> impl Iterator<Item = (ServerId, &Row)> {
        self.rows.iter().map(|(id, row)| (*id, row))
    }

    /// Returns the servers among which the policy chooses, by placement name. This order does not depend on the
    /// history of the pool, so all instances with one configuration build the same placement (a Maglev table) from it.
    #[must_use]
    pub fn candidates(&self) -> Vec<(ServerId, &Row)> {
        let mut candidates: Vec<_> = self.rows().filter(|(_, row)| row.role.is_candidate).collect();
        candidates.sort_by(|(_, a), (_, b)| a.placement_name.cmp(&b.placement_name));
        candidates
    }

    /// Returns the row of a server.
    #[must_use]
    pub fn row(&self, id: ServerId) -> Option<&Row> {
        self.rows.get(&id)
    }
}

impl Row {
    fn new(server: &Entry, role: Role) -> Self {
        Self {
            name: server.name.clone(),
            placement_name: server.placement_name.clone(),
            target: server.target.clone(),
            tier: server.tier,
            is_sorry: server.is_sorry,
            is_down: matches!(server.admission, Admission::Down(_) | Admission::LastResort(_)),
            weight: server.weight,
            share: server.share,
            limits: server.limits,
            acl: server.acl.clone(),
            quic_id: server.quic_id,
            role,
        }
    }

    fn takes_new(&self) -> bool {
        self.role.takes == Takes::New
    }
}

#[cfg(test)]
mod tests;
