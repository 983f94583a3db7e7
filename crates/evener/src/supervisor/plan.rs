//! Plans: the effect of a configuration before it is applied, from the change set and from forecasts of the pools. And
//! the application of a configuration that an operator gave. A plan changes nothing and binds no address.

use super::Supervisor;
use super::query::Reply;
use crate::certificates::TlsSettings;
use crate::config::Config;
use crate::discover::Expanded;
use crate::inputs::Inputs;
use evener_core::Time;
use evener_core::acl::{Access, Acl};
use evener_core::clients::Clients;
use evener_core::diff::ChangeSet;
use evener_core::event::Event;
use evener_core::pool::{Forecast, MoveReason, Pool};
use evener_core::spec::{Plane, PoolSpec, Protocol, ServiceSpec, Spec};
use evener_proxy::{ListFilter, Open};
use evener_xdp::associations::AssociationFilter;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Settings that a configuration of an operator needs before it is read.
pub(crate) struct PlanSetting {
    /// The certificates in use, which are not read again if their files have not changed.
    pub(crate) tls: TlsSettings,
    /// The file that a reload reads.
    pub(crate) file: Option<PathBuf>,
}

/// The effect of a configuration.
pub(crate) struct Planned {
    /// Identifies the running configuration and the new one.
    pub(crate) id: String,
    pub(crate) changes: ChangeSet,
    /// The pools whose clients may move, by name.
    pub(crate) pools: BTreeMap<Arc<str>, PlannedPool>,
    /// The datagram services whose flows may move or end, by name.
    pub(crate) services: BTreeMap<Arc<str>, ServiceFate>,
    /// Number of tracked clients of all other pools.
    pub(crate) other_clients: usize,
    /// Number of flows of all services.
    pub(crate) flows: usize,
    pub(crate) now: Time,
}

/// A pool whose clients may move.
pub(crate) struct PlannedPool {
    pub(crate) forecast: Forecast,
    /// Every client leaves for this reason.
    pub(crate) all_leave: Option<MoveReason>,
    /// Clients that services of the pool recorded, where the policy places clients by address.
    pub(crate) recorded: Vec<Arc<Clients>>,
}

/// The effect on the flows of a datagram service.
pub(crate) enum ServiceFate {
    /// All flows end.
    AllEnd(MoveReason),
    /// Flows of clients that the access list treats otherwise end, and the pool decides about the others.
    ByPool {
        /// The access lists, if they differ: before and after.
        access: Option<[Option<Arc<Acl>>; 2]>,
        /// Pools that the service no longer uses.
        left: BTreeSet<Arc<str>>,
    },
}

impl ServiceFate {
    /// Returns the reason why the flow of a client of a pool ends, unless its pool decides.
    pub(crate) fn ends(&self, pool: &str, client: IpAddr) -> Option<MoveReason> {
        match self {
            Self::AllEnd(reason) => Some(*reason),
            Self::ByPool { left, .. } if left.contains(pool) => Some(MoveReason::PoolChanged),
            Self::ByPool { access, .. } => {
                let access = access.as_ref()?;
                let of =
                    |acl: &Option<Arc<Acl>>| acl.as_ref().map_or(Access::Permit, |acl| acl.access(client));
                (of(&access[0]) != of(&access[1])).then_some(MoveReason::AccessChanged)
            }
        }
    }
}

/// A configuration that an operator gave.
pub(crate) struct ApplyRequest {
    pub(crate) config: Config,
    pub(crate) inputs: Inputs,
    /// Name of the file, for events.
    pub(crate) file: String,
    /// The plan that is applied. If another configuration runs since, nothing changes.
    pub(crate) plan: Option<String>,
    /// Time after which the configuration before comes back, unless an operator confirms.
    pub(crate) confirm: Option<Duration>,
    /// A reload reads the same text.
    pub(crate) is_of_file: bool,
}

/// The outcome of an apply: the changes, one text each.
pub(crate) struct Applied {
    pub(crate) changes: Vec<String>,
}

/// Reason why a configuration was not applied.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The state of the instance does not allow it now.
    Conflict(String),
    /// The instance is shutting down.
    Ending,
    /// The configuration has problems.
    Problems(Vec<String>),
}

/// Hash of texts that are not kept.
#[derive(Default)]
struct Digest(DefaultHasher);

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Supervisor {
    pub(super) fn plan_setting(&self) -> PlanSetting {
        PlanSetting {
            tls: self.certificates.tls().clone(),
            file: self.reloads.file().map(std::path::Path::to_owned),
        }
    }

    /// Returns the effect of a configuration.
    pub(super) fn plan(&self, config: &Config, resolved: Inputs) -> Planned {
        let (tls, servers) = resolved.into_parts();
        let (now, scripts) = (self.now(), self.scripts.foresee(config));
        let running = (&self.pools, &self.listeners);
        let expanded = self.discovery.foresee(config, servers, running, (&self.operator, &scripts, now));
        let changes = self.changes(&config.spec, &expanded, &tls);
        let pools = self.planned_pools(&config.spec, &expanded, &changes, now);
        let others = self.pools.iter().filter(|pool| !pools.contains_key(&pool.spec().name));
        let flows = self.services.values().map(|service| service.live().active_flows() as usize).sum();
        Planned {
            id: self.plan_id(config, &expanded, &changes),
            other_clients: others.map(|pool| self.tracked(pool)).sum(),
            services: self.planned_services(&config.spec, &changes, &pools),
            changes,
            pools,
            flows,
            now,
        }
    }

    /// Returns the number of clients of a pool that are tracked.
    fn tracked(&self, pool: &Pool) -> usize {
        let recorded = || self.recorded(pool).iter().map(|clients| clients.len()).sum();
        pool.remembered().unwrap_or_else(recorded)
    }

    /// Returns the clients that services of a pool recorded, if the policy places clients by address alone.
    fn recorded(&self, pool: &Pool) -> Vec<Arc<Clients>> {
        let by_address = pool.sticky().is_none()
            && self.pools.slot(&pool.spec().name).is_some_and(|slot| slot.load().is_by_address());
        let users = self.config.spec.services.iter();
        let users = users.filter(|service| by_address && service.pool.as_ref() == Some(&pool.spec().name));
        let running = users.filter_map(|service| self.services.get(&service.name)?.of_workers());
        running.filter_map(|service| service.settings.load().clients.clone()).collect()
    }

    fn planned_pools(
        &self,
        spec: &Spec,
        expanded: &[Expanded],
        changes: &ChangeSet,
        now: Time,
    ) -> BTreeMap<Arc<str>, PlannedPool> {
        let changed = changes.pools();
        let new_by_name: BTreeMap<&str, &Expanded> =
            expanded.iter().map(|new| (&*new.spec().name, new)).collect();
        let planned = |pool: &Pool| {
            let name = &pool.spec().name;
            let before = self.pools.slot(name)?.load_full();
            let leave = self.leave_reason(name, spec);
            let (forecast, all_leave) = match new_by_name.get(&**name) {
                Some(new) if changed.contains(name) || leave.is_some() => {
                    (pool.forecast(before, new.spec(), new.targets(), now), leave)
                }
                Some(_) => return None,
                None => {
                    let gone = PoolSpec { servers: Vec::new(), ..pool.spec().clone() };
                    (pool.forecast(before, &gone, &[], now), leave.or(Some(MoveReason::PoolChanged)))
                }
            };
            Some((Arc::clone(name), PlannedPool { forecast, all_leave, recorded: self.recorded(pool) }))
        };
        self.pools.iter().filter_map(planned).collect()
    }

    /// Returns the reason why all clients leave a pool: no service that used it goes on to use it.
    fn leave_reason(&self, pool: &Arc<str>, spec: &Spec) -> Option<MoveReason> {
        let users =
            self.config.spec.services.iter().filter(|service| service.pools().any(|used| used == pool));
        let mut reason = None;
        for user in users {
            match spec.services.iter().find(|service| service.name == user.name) {
                Some(new) if new.pools().any(|used| used == pool) => return None,
                Some(_) => reason = Some(MoveReason::PoolChanged),
                None => reason = reason.or(Some(MoveReason::ServiceRemoved)),
            }
        }
        reason
    }

    fn planned_services(
        &self,
        spec: &Spec,
        changes: &ChangeSet,
        pools: &BTreeMap<Arc<str>, PlannedPool>,
    ) -> BTreeMap<Arc<str>, ServiceFate> {
        let changed = changes.services(spec);
        let is_datagram =
            |service: &&ServiceSpec| service.plane == Plane::Proxy && service.protocol == Protocol::Udp;
        let fate = |old: &ServiceSpec| {
            let fate = match spec.services.iter().find(|new| new.name == old.name) {
                None => ServiceFate::AllEnd(MoveReason::ServiceRemoved),
                Some(new) => self.fate_of_service(old, new),
            };
            let concerns = match &fate {
                ServiceFate::AllEnd(_) => true,
                ServiceFate::ByPool { .. } => {
                    changed.contains(&old.name) || old.pools().any(|pool| pools.contains_key(pool))
                }
            };
            concerns.then(|| (Arc::clone(&old.name), fate))
        };
        self.config.spec.services.iter().filter(is_datagram).filter_map(fate).collect()
    }

    fn fate_of_service(&self, old: &ServiceSpec, new: &ServiceSpec) -> ServiceFate {
        let continues = self.services.get(&old.name).is_some_and(|service| service.continues_as(new));
        if !continues || old.pool != new.pool {
            return ServiceFate::AllEnd(MoveReason::PoolChanged);
        }
        if !old.listen.iter().any(|address| new.listen.contains(address)) {
            return ServiceFate::AllEnd(MoveReason::ListenerRemoved);
        }
        let (before, after) = (self.access.acl_of(old), self.access.acl_of(new));
        let access = (before != after).then_some([before, after]);
        let left = old.pools().filter(|pool| !new.pools().any(|other| other == *pool)).cloned().collect();
        ServiceFate::ByPool { access, left }
    }

    /// Returns the digest of the running configuration and of a new one.
    fn plan_id(&self, config: &Config, expanded: &[Expanded], changes: &ChangeSet) -> String {
        let mut digest = Digest::default();
        // Writing to a hash cannot fail.
        let _ = write!(digest, "{:?}", self.running_spec());
        let _ = write!(digest, "{:?}", config.spec);
        for pool in expanded {
            let _ = write!(digest, "{:?} {:?}", pool.spec().servers, pool.targets());
        }
        for pool in self.pools.iter() {
            let _ = write!(digest, "{:?}", targets_of(pool));
        }
        let _ = write!(digest, "{changes:?}");
        for program in [self.config.program(), config.program()] {
            digest.0.write_u64(program.map_or(0, |program| program.fingerprint()));
        }
        format!("{:016x}", digest.0.finish())
    }

    /// Lists the open flows of a service.
    pub(super) fn list_flows(&self, service: Arc<str>, reply: Reply<Vec<Open>>) {
        let filter = ListFilter::default().of_service(Some(Arc::clone(&service)));
        // A service of the workers has no associations.
        let associations = AssociationFilter { service: Some(service), clients: None, server: None };
        self.plane.connections(filter, associations, usize::MAX, move |listed| {
            let _ = reply.send(listed.into_open().open);
        });
    }

    /// Applies a configuration that an operator gave, or changes nothing.
    pub(super) fn apply_planned(&mut self, wanted: ApplyRequest) -> Result<Applied, Refusal> {
        let ApplyRequest { config, inputs, file, plan, confirm, is_of_file } = wanted;
        if self.is_draining() {
            return Err(Refusal::Ending);
        }
        if self.reloads.has_front() {
            let why = "a compatible front end controls this instance: use its own commands";
            return Err(Refusal::Conflict(why.into()));
        }
        if self.upgrades.is_running() {
            return Err(Refusal::Conflict("an upgrade is in progress: try again when it has ended".into()));
        }
        if let Some(why) = self.confirmation.refusal(self.now()) {
            return Err(Refusal::Conflict(why));
        }
        if let Some(plan) = plan {
            let now = self.plan(&config, inputs.clone()).id;
            if now != plan {
                return Err(Refusal::Conflict(format!(
                    "the configuration or its inputs changed since plan {plan}; the plan is {now} now: plan again"
                )));
            }
        }
        let before = confirm.map(|within| self.remember_before(within));
        let changes = match self.apply(config, inputs) {
            Ok(changes) => changes,
            Err(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                let failed =
                    |problem: &String| Event::ApplyFailed { file: file.clone(), problem: problem.clone() };
                problems.iter().for_each(|problem| self.log(&failed(problem)));
                return Err(Refusal::Problems(problems));
            }
        };
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        changes.iter().for_each(|change| self.log(&Event::Changed { change: change.clone() }));
        self.log(&Event::Applied { file: file.clone(), changes: changes.len() });
        self.warn_of_descriptors();
        self.confirmation.applied(&file, is_of_file);
        if let Some(before) = before {
            self.await_confirmation(file, before);
        }
        Ok(Applied { changes })
    }
}

/// Returns the addresses of the servers of a pool.
fn targets_of(pool: &Pool) -> Vec<evener_core::Target> {
    pool.servers().iter().map(|server| server.target.clone()).collect()
}
