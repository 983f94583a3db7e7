//! Lists of open connections, flows and associations.

use evener_core::snapshot::Snapshot;
use evener_proxy::Listing;
use evener_xdp::associations::{Association, Associations};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Connections and flows of the workers, and associations of the XDP plane.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    open: Listing,
    associations: Associations,
    /// Snapshots of the pools of the XDP plane, with the names of servers.
    snapshots: BTreeMap<Arc<str>, Arc<Snapshot>>,
}

impl Listed {
    /// Creates a list of the workers alone.
    pub(super) fn of_workers(open: Listing) -> Self {
        Self { open, ..Self::default() }
    }

    /// Adds associations, whose servers have their names in the snapshots of their pools.
    pub(super) fn with_associations(
        self,
        associations: Associations,
        snapshots: BTreeMap<Arc<str>, Arc<Snapshot>>,
    ) -> Self {
        Self { associations, snapshots, ..self }
    }

    /// Returns the listed associations, each with its pool and server; `None` if the server was removed.
    pub(crate) fn associations(&self) -> impl Iterator<Item = (&Association, Option<(String, String)>)> {
        self.associations.listed.iter().map(|association| {
            let server = association.server.as_ref().and_then(|(pool, id)| {
                let entry = self.snapshots.get(pool)?.server(*id)?;
                Some((pool.to_string(), entry.name.to_string()))
            });
            (association, server)
        })
    }

    /// Returns the number of associations, including associations that are not listed.
    pub(crate) fn associations_total(&self) -> usize {
        self.associations.total
    }

    /// Returns the connections and flows.
    pub(crate) fn into_open(self) -> Listing {
        self.open
    }
}
