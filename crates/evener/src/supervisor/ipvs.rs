//! The services of the IPVS plane: they have no sockets, and the kernel has their tables.

use super::{ConfigSource, Supervisor};
use crate::config::{Config, Problem};
use crate::runtime_directory::runtime_directory;
use evener_core::hash::of_name;
use evener_core::spec::{Plane, ServiceSpec, Spec};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Returns the path of the file that lists the entries of the kernel's table that belong to an instance. Its name follows
/// from the configuration, so that a restarted instance finds it, and from the network namespace, which has its own table.
pub(super) fn state_file(source: &ConfigSource) -> PathBuf {
    let namespace = std::fs::metadata("/proc/self/ns/net").map_or(0, |file| file.ino());
    let name = match source {
        ConfigSource::File(path) => {
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            format!("ipvs-{:016x}.state", of_name(&path.to_string_lossy(), namespace))
        }
        ConfigSource::None | ConfigSource::Front(_) => "ipvs.state".to_owned(),
    };
    runtime_directory().join(name)
}

impl Supervisor {
    /// Makes sure that the IPVS plane can take a configuration. Nothing changed if it cannot.
    pub(super) fn prepare_ipvs(&mut self, config: &Config) -> Result<(), Vec<Problem>> {
        let prepared = self.plane.ipvs().prepare(&config.spec);
        prepared.map_err(|problems| problems.into_iter().map(Problem::new).collect())
    }

    /// Gives the IPVS plane the services of a configuration.
    pub(super) fn configure_ipvs(&mut self, spec: &Spec) {
        let of_plane = spec.services.iter().filter(|service| service.plane == Plane::Ipvs);
        let specs: Vec<ServiceSpec> = of_plane.cloned().collect();
        let (services, pools) = (&self.services, &self.pools);
        let live = |name: &str| services.get(name).map(|service| Arc::clone(service.live()));
        let pool = |name: &str| Some((pools.get(name)?.spec(), pools.slot(name)?.load_full()));
        let events = self.plane.ipvs().configure(&spec.ipvs, &specs, live, pool);
        self.log_all(&events);
    }
}
