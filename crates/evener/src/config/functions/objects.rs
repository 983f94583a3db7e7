//! Pools and servers as functions see them.

use super::Output;
use super::bounds::{fail, running, runtime};
use crate::config::{added_server, caller};
use arc_swap::ArcSwap;
use evener_core::snapshot::{Admission, Entry, KnownOnly, Snapshot};
use evener_core::spec::{AdminState, ServerSpec, WEIGHT_MAX};
use evener_core::{ServerId, Target};
use mlua::{AnyUserData, IntoLua, Lua, MetaMethod, UserData, UserDataMethods, Value};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Maximum number of servers for which the arguments of checks are stored.
const OBJECTS_MAX: usize = 8192;

/// A change of a pool.
#[derive(Debug)]
pub(crate) enum Change {
    Add(Box<ServerSpec>),
    Remove(Arc<str>),
    State(Arc<str>, AdminState),
    Weight(Arc<str>, u32),
}

/// A change that a function requests.
#[derive(Debug)]
pub(crate) struct ChangeRequest {
    pool: Arc<str>,
    change: Change,
    /// File and line of the request.
    script: String,
    /// Identity of the check that requests the change.
    tag: Option<u64>,
    /// Number of the configuration of the function.
    generation: u64,
    /// Receiver of the outcome: true if something changed.
    reply: oneshot::Sender<Result<bool, String>>,
}

impl ChangeRequest {
    /// Makes the change unless the configuration of the function is not in use any more, and sends the outcome to the
    /// function. `make` gets the pool, the change, the location of the request and the identity of its check.
    pub(crate) fn complete(
        self,
        generation: Option<u64>,
        make: impl FnOnce(&Arc<str>, Change, String, Option<u64>) -> Result<bool, String>,
    ) {
        let outcome = match generation == Some(self.generation) {
            true => make(&self.pool, self.change, self.script, self.tag),
            false => Err("the configuration changed".into()),
        };
        let _ = self.reply.send(outcome);
    }
}

/// A pool.
#[derive(Clone, Debug)]
pub(crate) struct PoolObject(pub(crate) Arc<str>);

impl AsRef<str> for PoolObject {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A server of a pool.
#[derive(Clone, Debug)]
pub(super) struct ServerObject {
    pool: Arc<str>,
    id: ServerId,
    /// The server when the object was made.
    entry: Arc<Entry>,
}

/// The values that checks get, for their next calls.
#[derive(Default)]
pub(super) struct Objects(HashMap<(Arc<str>, ServerId), Arguments>);

struct Arguments {
    entry: Arc<Entry>,
    server: AnyUserData,
    pool: AnyUserData,
}

/// Returns the server and the pool as arguments of a check.
pub(super) fn arguments(
    lua: &Lua,
    pool: &Arc<str>,
    entry: &Arc<Entry>,
) -> mlua::Result<(AnyUserData, AnyUserData)> {
    let key = (Arc::clone(pool), entry.id);
    let Some(mut objects) = lua.app_data_mut::<Objects>() else {
        return Err(fail(lua, "no functions run"));
    };
    if let Some(known) = objects.0.get(&key)
        && Arc::ptr_eq(&known.entry, entry)
    {
        return Ok((known.server.clone(), known.pool.clone()));
    }
    if objects.0.len() >= OBJECTS_MAX {
        objects.0.clear();
    }
    let server = lua.create_userdata(ServerObject::new(pool, entry))?;
    let pool = lua.create_userdata(PoolObject(Arc::clone(pool)))?;
    objects.0.insert(key, Arguments { entry: Arc::clone(entry), server: server.clone(), pool: pool.clone() });
    Ok((server, pool))
}

fn slot(lua: &Lua, pool: &str) -> mlua::Result<Arc<ArcSwap<Snapshot>>> {
    let runtime = running(lua, "a pool")?;
    let slot = runtime.pools.get(pool).cloned();
    slot.ok_or_else(|| fail(lua, format!("there is no pool `{pool}` any more")))
}

fn servers(lua: &Lua, pool: &str) -> mlua::Result<Vec<ServerObject>> {
    let snapshot = slot(lua, pool)?.load_full();
    let name: Arc<str> = pool.into();
    let object = |entry: &Arc<Entry>| ServerObject::new(&name, entry);
    Ok(snapshot.servers().iter().map(object).collect())
}

fn is_usable(entry: &Entry) -> bool {
    matches!(entry.admission, Admission::Open | Admission::Unchecked)
}

/// Sends a change to the supervisor, and waits for the outcome. If there were too many changes, it waits before.
fn change(
    lua: &Lua,
    pool: &str,
    change: mlua::Result<Change>,
) -> impl Future<Output = mlua::Result<bool>> + Send + use<> {
    let location = caller(lua);
    let prepared = change.and_then(|change| {
        let runtime = running(lua, "a change of a pool")?;
        let (reply, outcome) = oneshot::channel();
        let tag = runtime.current().and_then(|call| call.tag());
        let (pool, script) = (pool.into(), location.to_string());
        let request = ChangeRequest { pool, change, script, tag, generation: runtime.generation, reply };
        Ok((runtime, request, outcome))
    });
    async move {
        let refused = |why: String| crate::config::raise(crate::config::Problem::at(&location, why));
        let (runtime, request, outcome) = prepared?;
        let _permit = runtime.admit_change().await;
        if !(runtime.outputs)(Output::Change(request)) {
            return Err(refused("too many changes are waiting".into()));
        }
        match outcome.await {
            Ok(outcome) => outcome.map_err(refused),
            Err(_) => Err(refused("the configuration changed".into())),
        }
    }
}

/// Returns the name of a server that is given as an object or a text.
fn server_name(lua: &Lua, value: &Value) -> mlua::Result<Arc<str>> {
    match value {
        Value::String(text) => Ok(text.to_string_lossy().into()),
        Value::UserData(data) if data.is::<ServerObject>() => {
            Ok(Arc::clone(&data.borrow::<ServerObject>()?.entry.name))
        }
        other => Err(fail(lua, format!("a server or its name is needed, got {}", other.type_name()))),
    }
}

fn find(lua: &Lua, pool: &str, name: &str) -> mlua::Result<Option<ServerObject>> {
    let is_wanted =
        |server: &ServerObject| *server.entry.name == *name || server.entry.target.to_string() == *name;
    Ok(servers(lua, pool)?.into_iter().find(is_wanted))
}

/// Adds the methods of a pool. `name_of` returns its name; `None` for a value that is no pool.
pub(crate) fn add_pool_methods<T: 'static, M: UserDataMethods<T>>(
    methods: &mut M,
    name_of: fn(&T) -> Option<&str>,
) {
    let pool = move |lua: &Lua, this: &T| -> mlua::Result<Arc<str>> {
        name_of(this).map(Arc::from).ok_or_else(|| fail(lua, "only a pool has this method"))
    };
    methods.add_meta_method(MetaMethod::Len, move |lua, this, ()| Ok(servers(lua, &pool(lua, this)?)?.len()));
    methods.add_method("up", move |lua, this, ()| {
        let all = servers(lua, &pool(lua, this)?)?;
        Ok(all.iter().filter(|server| is_usable(&server.entry)).count())
    });
    methods.add_method("servers", move |lua, this, ()| servers(lua, &pool(lua, this)?));
    methods.add_method("server", move |lua, this, name: Value| {
        find(lua, &pool(lua, this)?, &server_name(lua, &name)?)
    });
    methods.add_async_method("add", move |lua, this, (address, settings): (String, Option<mlua::Table>)| {
        let pool = pool(&lua, &this);
        let checked = pool.clone().and_then(|_| {
            let server = added_server(&lua, &address, settings.as_ref(), &caller(&lua))?;
            server.map_err(|problems| {
                problems
                    .into_iter()
                    .next()
                    .map_or_else(|| fail(&lua, "the server is invalid"), crate::config::raise)
            })
        });
        let name = checked.as_ref().map(|server| Arc::clone(&server.name)).ok();
        let pool_name = pool.clone().unwrap_or_else(|_| "".into());
        let sent = change(&lua, &pool_name, checked.map(|server| Change::Add(Box::new(server))));
        async move {
            sent.await?;
            find(&lua, &pool_name, &name.unwrap_or_else(|| "".into()))
        }
    });
    methods.add_async_method("remove", move |lua, this, server: Value| {
        let wanted = pool(&lua, &this).and_then(|pool| Ok((pool, server_name(&lua, &server)?)));
        let pool = wanted.as_ref().map_or_else(|_| "".into(), |(pool, _)| Arc::clone(pool));
        change(&lua, &pool, wanted.map(|(_, server)| Change::Remove(server)))
    });
    for (method, state) in
        [("drain", AdminState::Drain), ("ready", AdminState::Ready), ("maintenance", AdminState::Maintenance)]
    {
        methods.add_async_method(method, move |lua, this, server: Value| {
            let wanted = pool(&lua, &this).and_then(|pool| Ok((pool, server_name(&lua, &server)?)));
            let pool = wanted.as_ref().map_or_else(|_| "".into(), |(pool, _)| Arc::clone(pool));
            change(&lua, &pool, wanted.map(|(_, server)| Change::State(server, state)))
        });
    }
    methods.add_meta_method(MetaMethod::Index, move |lua, this, key: Value| match &key {
        Value::Integer(number) => {
            let all = servers(lua, &pool(lua, this)?)?;
            let at = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
            all.get(at).cloned().into_lua(lua)
        }
        Value::String(text) if *text == "name" => (*pool(lua, this)?).into_lua(lua),
        other => Err(fail(lua, format!("a pool has no {}", other.to_string()?))),
    });
}

impl UserData for PoolObject {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        add_pool_methods(methods, |pool| Some(&pool.0));
    }
}

impl ServerObject {
    pub(super) fn new(pool: &Arc<str>, entry: &Arc<Entry>) -> Self {
        Self { pool: Arc::clone(pool), id: entry.id, entry: Arc::clone(entry) }
    }

    /// Returns the server as it is now, or as it was if it is no longer in the pool.
    fn now(&self, lua: &Lua) -> Arc<Entry> {
        let slot = runtime(lua).and_then(|runtime| runtime.pools.get(&self.pool).cloned());
        let entry = slot.and_then(|slot| slot.load().server(self.id).cloned());
        entry.unwrap_or_else(|| Arc::clone(&self.entry))
    }

    fn get(&self, lua: &Lua, key: &str) -> mlua::Result<Value> {
        let entry = self.now(lua);
        let ip = match &entry.target {
            Target::Ip(address) => Some(*address),
            Target::Unix(_) => None,
        };
        match key {
            "name" => (*entry.name).into_lua(lua),
            "address" => entry.target.to_string().into_lua(lua),
            "host" => ip.map(|ip| ip.ip().to_string()).into_lua(lua),
            "port" => ip.map(|ip| ip.port()).into_lua(lua),
            "weight" => entry.weight.into_lua(lua),
            "tier" => entry.tier.into_lua(lua),
            "active" => entry.live.occupancy.active().into_lua(lua),
            "pool" => PoolObject(Arc::clone(&self.pool)).into_lua(lua),
            "up" => is_usable(&entry).into_lua(lua),
            "state" => match &entry.admission {
                Admission::Open => "up",
                Admission::Unchecked => "unchecked",
                Admission::KnownOnly(KnownOnly::Drain) => "drain",
                Admission::KnownOnly(KnownOnly::Weight) => "up",
                Admission::LastResort(_) | Admission::Down(_) => "down",
                Admission::Maintenance => "maintenance",
            }
            .into_lua(lua),
            "reason" => match &entry.admission {
                Admission::LastResort(reason) | Admission::Down(reason) => (**reason).into_lua(lua),
                _ => Ok(Value::Nil),
            },
            other => Err(fail(lua, format!("a server has no `{other}`"))),
        }
    }
}

impl UserData for ServerObject {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_method(MetaMethod::Index, |lua, this, key: String| this.get(lua, &key));
        methods.add_meta_method(MetaMethod::ToString, |_, this, ()| Ok(this.entry.name.to_string()));
        methods.add_meta_method(MetaMethod::Eq, |_, this, other: Value| {
            let Value::UserData(other) = other else { return Ok(false) };
            let Ok(other) = other.borrow::<Self>() else { return Ok(false) };
            Ok(this.pool == other.pool && this.id == other.id)
        });
        methods.add_async_meta_method(MetaMethod::NewIndex, |lua, this, (key, value): (String, Value)| {
            let weight = value.as_i64().and_then(|weight| u32::try_from(weight).ok());
            let wanted = match (key.as_str(), weight.filter(|weight| *weight <= WEIGHT_MAX)) {
                ("weight", Some(weight)) => Ok(Change::Weight(Arc::clone(&this.entry.name), weight)),
                ("weight", None) => Err(fail(&lua, format!("weight must be 0 to {WEIGHT_MAX}"))),
                (other, _) => {
                    Err(fail(&lua, format!("`{other}` of a server cannot be changed: only weight can")))
                }
            };
            let sent = change(&lua, &this.pool, wanted);
            async move { sent.await.map(drop) }
        });
        for (method, state) in [
            ("drain", AdminState::Drain),
            ("ready", AdminState::Ready),
            ("maintenance", AdminState::Maintenance),
        ] {
            methods.add_async_method(method, move |lua, this, ()| {
                change(&lua, &this.pool, Ok(Change::State(Arc::clone(&this.entry.name), state)))
            });
        }
        methods.add_async_method("remove", |lua, this, ()| {
            change(&lua, &this.pool, Ok(Change::Remove(Arc::clone(&this.entry.name))))
        });
    }
}
