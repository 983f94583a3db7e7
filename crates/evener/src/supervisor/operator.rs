//! Changes of servers by operators, over the admin API: added and removed servers, weights and states. They last, field
//! by field, until the file of the configuration changes the same field, and survive a restart in a state file. The
//! newest change wins.

mod changes;
mod state_file;

use super::{ConfigSource, Supervisor};
use crate::discover::{Expanded, Source};
use crate::runtime_directory::state_directory;
use changes::{PoolChanges, StateOverride};
use evener_core::event::Event;
use evener_core::hash::of_name;
use evener_core::pool::{Pool, Server};
use evener_core::spec::{AdminSpec, AdminState, PoolSpec, ServerSpec, Spec, StateFile};
use serde_json::{Map, Value};
use state_file::Writer;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Maximum number of servers that operators add to a pool.
const ADDED_MAX: usize = 10_000;
/// Maximum number of changes of a pool of each other kind.
const CHANGES_MAX: usize = 100_000;

/// Changes of all pools, by name.
type Changes = BTreeMap<String, PoolChanges>;

/// The changes, and the file that they are written to.
#[derive(Default)]
pub(super) struct Operator {
    pools: Changes,
    writer: Option<Writer>,
    is_loaded: bool,
}

/// A change, and its pool.
#[derive(Clone, Debug)]
pub(crate) struct Operate {
    pool: String,
    operation: Operation,
}

impl Operate {
    pub(crate) fn new(pool: String, operation: Operation) -> Self {
        Self { pool, operation }
    }
}

/// A change of the servers of a pool.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Adds a server that has these settings.
    Add {
        server: Box<ServerSpec>,
        address: String,
        settings: Map<String, Value>,
    },
    Remove {
        server: String,
    },
    Weight {
        server: String,
        weight: u32,
    },
}

/// A change that was made.
#[derive(Clone, Debug)]
pub(crate) struct Operated {
    /// Full name, `pool/server`.
    server: String,
    before: String,
    after: String,
}

impl Operated {
    pub(super) fn new(server: String, before: String, after: String) -> Self {
        Self { server, before, after }
    }

    /// Returns the full name of the server, and its values before and after the change.
    pub(crate) fn into_parts(self) -> (String, String, String) {
        (self.server, self.before, self.after)
    }
}

/// Reason why a change is not possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OperateError {
    /// There is no such pool or server.
    Unknown(String),
    /// The pool has the server already.
    Conflict(String),
    Impossible(String),
}

/// Returns the seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the path of the state file of an instance. Its name follows from the path of the configuration, so that a
/// restarted instance finds it.
fn path_of(source: &ConfigSource, admin: &AdminSpec) -> Option<PathBuf> {
    let ConfigSource::File(file) = source else { return None };
    match &admin.state_file {
        // Instances that read the standard input have nothing else in common.
        StateFile::Default if file.as_os_str() == "-" => None,
        StateFile::Off => None,
        StateFile::At(path) => Some(path.into()),
        StateFile::Default => {
            let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.clone());
            let name = format!("operator-{:016x}.json", of_name(&file.to_string_lossy(), 0));
            Some(state_directory()?.join(name))
        }
    }
}

impl Operator {
    /// Makes the changes to the servers of a pool, and forgets those that the file has overridden since.
    /// `has_sources` is true if sources or host names list servers of the pool.
    pub(super) fn change(&mut self, expanded: &mut Expanded, has_sources: bool) {
        if let Some(changes) = self.pools.get_mut(&*expanded.spec().name) {
            changes.apply(expanded, has_sources);
        }
    }

    /// Returns the changes, without the file that they are written to.
    pub(super) fn foresee(&self) -> Self {
        Self { pools: self.pools.clone(), ..Self::default() }
    }

    /// Brings back changes that a configuration overrode which is no longer in use.
    pub(super) fn restore(&mut self, before: &Self) {
        for (pool, changes) in &before.pools {
            self.pools.entry(pool.clone()).or_default().restore(changes);
        }
    }

    /// Returns a receiver that is closed when the state file has all changes; `None` without a state file.
    pub(super) fn written(&self) -> Option<Receiver<()>> {
        self.writer.as_ref().map(Writer::written)
    }

    /// Returns true if there are changes of servers that no file keeps.
    pub(super) fn has_unsaved(&self) -> bool {
        self.writer.is_none() && !self.pools.values().all(PoolChanges::has_same_servers)
    }

    /// Returns a pool of the file with the changes that a file can express.
    fn changed(&self, pool: &PoolSpec) -> PoolSpec {
        self.pools.get(&*pool.name).map_or_else(|| pool.clone(), |changes| changes.in_file(pool, unix_now()))
    }

    fn of_pool(&mut self, pool: &str) -> &mut PoolChanges {
        self.pools.entry(pool.to_owned()).or_default()
    }

    /// Forgets the state or weight of a server, which something newer changed.
    pub(super) fn forget_state(&mut self, pool: &str, server: &str) {
        if let Some(changes) = self.pools.get_mut(pool) {
            changes.states.remove(server);
        }
    }

    pub(super) fn forget_weight(&mut self, pool: &str, server: &str) {
        if let Some(changes) = self.pools.get_mut(pool) {
            changes.weights.remove(server);
        }
    }

    pub(super) fn forget_added(&mut self, pool: &str, server: &str) {
        if let Some(changes) = self.pools.get_mut(pool) {
            changes.added.remove(server);
        }
    }

    /// Writes the changes to the state file, if they differ from what was written.
    pub(super) fn save(&mut self) {
        self.pools.values_mut().for_each(|changes| changes.forget_expired(unix_now()));
        self.pools.retain(|_, changes| !changes.is_empty());
        if let Some(writer) = &mut self.writer {
            writer.write(&self.pools);
        }
    }
}

impl Supervisor {
    /// Reads the state file of the first configuration, and follows the path in later ones. A file that cannot be used
    /// is reported and stays as it is until the next change.
    pub(super) fn configure_operator(&mut self, admin: &AdminSpec) {
        let path = path_of(&self.setting.source, admin);
        if self.operator.is_loaded && self.operator.writer.as_ref().map(Writer::path) == path.as_deref() {
            return;
        }
        let is_first = !std::mem::replace(&mut self.operator.is_loaded, true);
        if is_first && let Some(path) = &path {
            match state_file::load(path) {
                Ok(pools) => self.operator.pools = pools,
                Err(why) => {
                    let text =
                        format!("{}: {why}; the changes of operators in it are not used", path.display());
                    self.log(&Event::Notice { text });
                }
            }
        }
        let events = self.setting.events.clone();
        // A file at another path is written in any case.
        let written = is_first.then_some(&self.operator.pools);
        self.operator.writer = path.map(|path| Writer::start(path, written, events));
        self.operator.save();
    }

    /// Sets the states that operators gave to servers of pools.
    pub(super) fn apply_operator_states(&mut self) {
        let (now, unix) = (self.now(), unix_now());
        let mut events = Vec::new();
        for (name, changes) in &mut self.operator.pools {
            let Some(pool) = self.pools.get(name) else { continue };
            let spec = self.config.spec.pools.iter().find(|spec| *spec.name == **name);
            let has_sources = spec.is_some_and(|spec| !Source::all_of(spec).is_empty());
            let mut wanted = Vec::new();
            changes.states.retain(|server, record| {
                let found = pool.servers().iter().find(|one| *one.spec.name == **server);
                let Some(found) = found else { return has_sources };
                if record.file != found.spec.state.name() || record.is_over(unix) {
                    return false;
                }
                if let Some(state) = record.state().filter(|state| *state != found.state) {
                    let until = record.left(unix).map(|left| now + left);
                    wanted.push((found.id, state, until));
                }
                true
            });
            for (id, state, until) in wanted {
                events.extend(self.pools.set_state(now, (name, id), state, until));
            }
        }
        self.log_all(&events);
    }

    /// Records the state that an operator gave to a server.
    pub(super) fn record_state(&mut self, (pool, server): (&str, &StateChanged), time: Option<Duration>) {
        let StateChanged { name, file, state } = server;
        if self.reloads.has_front() || self.is_draining() {
            return;
        }
        let changes = self.operator.of_pool(pool);
        if state == file && time.is_none() {
            changes.states.remove(&**name);
        } else if changes.states.len() < CHANGES_MAX {
            let until = time.map(|time| unix_now().saturating_add(time.as_secs().max(1)));
            changes.states.insert(name.to_string(), StateOverride::new(*state, *file, until));
        }
        self.operator.save();
    }

    /// Changes the servers of a pool.
    pub(super) fn operate(&mut self, wanted: Operate) -> Result<Operated, OperateError> {
        let Operate { pool, operation } = wanted;
        if self.reloads.has_front() {
            return Err(OperateError::Impossible(
                "this instance imitates another program, whose commands change its servers".into(),
            ));
        }
        if self.is_draining() {
            return Err(OperateError::Impossible("this instance is shutting down".into()));
        }
        if self.upgrades.is_running() {
            return Err(OperateError::Impossible(
                "an upgrade is in progress: try again when it has ended".into(),
            ));
        }
        let Some(pool) = self.pools.get(&pool).map(|pool| Arc::clone(&pool.spec().name)) else {
            return Err(OperateError::Unknown(format!("there is no pool `{pool}`")));
        };
        let operated = match operation {
            Operation::Add { server, address, settings } => {
                self.operator_adds(&pool, *server, address, settings)
            }
            Operation::Remove { server } => self.operator_removes(&pool, &server),
            Operation::Weight { server, weight } => self.operator_weighs(&pool, &server, weight),
        }?;
        self.renew_pool(&pool);
        self.cancel_removed_probes(None);
        self.publish();
        self.operator.save();
        Ok(operated)
    }

    fn operator_adds(
        &mut self,
        pool: &Arc<str>,
        server: ServerSpec,
        address: String,
        settings: Map<String, Value>,
    ) -> Result<Operated, OperateError> {
        let name = Arc::clone(&server.name);
        let Some(target) = server.endpoint.target() else {
            return Err(OperateError::Impossible(format!("`{name}` has no address")));
        };
        let present = self.pools.get(pool).into_iter().flat_map(Pool::servers);
        let same = present.into_iter().find(|other| other.spec.name == name || other.target == target);
        if let Some(same) = same {
            let why = format!("pool `{pool}` has the server {} ({}) already", same.spec.name, same.target);
            return Err(OperateError::Conflict(why));
        }
        if self.leads_back(pool, &target) {
            let why = format!(
                "{name} leads back to a service that uses pool `{pool}`, so clients would be forwarded without end"
            );
            return Err(OperateError::Impossible(why));
        }
        let after = format!("{target} weight {}", server.weight);
        self.scripts.forget_server(pool, &name);
        let changes = self.operator.of_pool(pool);
        if changes.added.len() >= ADDED_MAX {
            let why = format!("operators can add at most {ADDED_MAX} servers to a pool");
            return Err(OperateError::Impossible(why));
        }
        changes.add(server, address, settings);
        Ok(Operated { server: format!("{pool}/{name}"), before: "absent".into(), after })
    }

    /// Returns a server of a pool.
    fn operated(&self, pool: &Arc<str>, wanted: &str) -> Result<&Server, OperateError> {
        let found = self
            .pools
            .get(pool)
            .and_then(|pool| pool.servers().iter().find(|server| *server.spec.name == *wanted));
        found.ok_or_else(|| OperateError::Unknown(format!("there is no server `{wanted}` in pool `{pool}`")))
    }

    fn operator_removes(&mut self, pool: &Arc<str>, wanted: &str) -> Result<Operated, OperateError> {
        let server = self.operated(pool, wanted)?;
        let (name, target) = (Arc::clone(&server.spec.name), server.target.to_string());
        let before = format!("{target} weight {}", server.spec.weight);
        self.scripts.forget_server(pool, &name);
        let changes = self.operator.of_pool(pool);
        if changes.removed.len() >= CHANGES_MAX {
            return Err(OperateError::Impossible("too many servers are removed: change the file".into()));
        }
        changes.remove(&name, target);
        Ok(Operated { server: format!("{pool}/{name}"), before, after: "absent".into() })
    }

    fn operator_weighs(
        &mut self,
        pool: &Arc<str>,
        wanted: &str,
        weight: u32,
    ) -> Result<Operated, OperateError> {
        let server = self.operated(pool, wanted)?;
        let (name, before) = (Arc::clone(&server.spec.name), server.spec.weight);
        self.scripts.forget_weight(pool, &name);
        let in_file = self.config.spec.pools.iter().find(|spec| spec.name == *pool);
        let in_file = in_file.and_then(|spec| spec.servers.iter().find(|one| one.name == name));
        let in_file = in_file.map(|one| one.weight);
        let changes = self.operator.of_pool(pool);
        if changes.weights.len() >= CHANGES_MAX {
            return Err(OperateError::Impossible("too many weights are changed: change the file".into()));
        }
        changes.weigh(&name, weight, in_file);
        Ok(Operated {
            server: format!("{pool}/{name}"),
            before: format!("weight {before}"),
            after: format!("weight {weight}"),
        })
    }

    /// Returns the configuration that is in use, as a file can express it: with the changes of operators, without the
    /// servers that sources list.
    pub(super) fn spec_to_save(&self) -> Spec {
        let pools = self.config.spec.pools.iter().map(|pool| self.operator.changed(pool)).collect();
        Spec { pools, ..self.config.spec.clone() }
    }
}

/// A server whose state an operator changed: its name, and the states of the file and of the operator.
pub(super) struct StateChanged {
    pub(super) name: Arc<str>,
    pub(super) file: AdminState,
    pub(super) state: AdminState,
}
