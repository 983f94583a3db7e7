//! Libraries for functions: http, tcp, udp, dns, exec, json, log and time. Operations that wait let other calls run,
//! have a time limit, and end with their call.

mod exec;
mod http;
mod json;
mod net;

pub(super) use net::Socket;

use super::bounds::{fail, running};
use super::call::Clock;
use super::{OPERATIONS_MAX, TEXT_CHARS_MAX, first_chars};
use crate::config::{Problem, caller, raise};
use evener_core::event::{Event, Level, ScriptLevel};
use mlua::{IntoLua, Lua, MultiValue, Table, Value};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time limit of an operation, unless the function gives another one.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time limit of an operation.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Most bytes that an operation receives.
const RECEIVED_BYTES_MAX: usize = 256 << 10;
/// Most bytes that an operation sends. An operation copies them out of the memory that Lua counts.
const SENT_BYTES_MAX: usize = 1 << 20;

/// Libraries with names that are also values of keys, in quotes.
const NAMED_LIKE_VALUES: [&str; 4] = ["http", "tcp", "udp", "dns"];

/// Result of an operation: a value, or the reason of a failure.
type Outcome<T> = Result<T, String>;

/// Adds the libraries to the globals.
pub(super) fn install(lua: &Lua) -> mlua::Result<()> {
    let globals = lua.globals();
    globals.raw_set("http", http::library(lua)?)?;
    globals.raw_set("json", json::library(lua)?)?;
    net::install(lua)?;
    globals.raw_set("log", log(lua)?)?;
    globals.raw_set("time", time(lua)?)?;
    for name in NAMED_LIKE_VALUES {
        let meta = lua.create_table()?;
        meta.raw_set("__name", name)?;
        meta.raw_set("__metatable", false)?;
        globals.raw_get::<Table>(name)?.set_metatable(Some(meta))?;
    }
    #[cfg(test)]
    globals.raw_set("block", lua.create_function(super::tests::block)?)?;
    Ok(())
}

/// Returns the library of these names, if a table is one.
pub(crate) fn library_name(table: &Table) -> Option<&'static str> {
    let name: String = table.metatable()?.raw_get("__name").ok()?;
    NAMED_LIKE_VALUES.into_iter().find(|library| *library == name)
}

/// Adds functions that work only while the instance runs, in place of declarations with the same names.
pub(super) fn begin(lua: &Lua) -> mlua::Result<()> {
    lua.globals().raw_set("exec", exec::function(lua)?)
}

/// Runs an operation in its own task, with a time limit. It ends with the call. Its time begins when it gets one of
/// the permits, because a server is not to blame for operations that wait for others. An operation that got too little
/// time for this reason is an error.
fn operate<T: Send + 'static, F: Future<Output = Outcome<T>> + Send + 'static>(
    lua: &Lua,
    name: &str,
    timeout: mlua::Result<Duration>,
    operation: F,
) -> impl Future<Output = mlua::Result<Outcome<T>>> + Send + use<T, F> {
    let location = caller(lua);
    let begun = timeout.and_then(|timeout| {
        let runtime = running(lua, name)?;
        let permits = Arc::clone(&runtime.operations);
        let call = runtime.current();
        let clock = call.as_ref().map_or_else(|| Arc::new(Clock::new(TIMEOUT_MAX)), |call| call.clock());
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let permit = tokio::time::timeout(clock.left_for_operation(), permits.acquire_owned()).await;
            clock.add_queued(began.elapsed());
            // The semaphore is never closed.
            let Ok(_permit) = permit else { return Err(Queued) };
            let _operating = clock.begin_operation();
            let limit = timeout.min(clock.left_for_operation());
            match tokio::time::timeout(limit, operation).await {
                Ok(outcome) => Ok(outcome),
                Err(_) if limit < timeout && clock.was_queued() => Err(Queued),
                Err(_) => Ok(Err(format!(
                    "no response within {:?}",
                    Duration::from_millis(limit.as_millis() as u64)
                ))),
            }
        });
        if let Some(call) = call {
            call.add_operation(task.abort_handle());
        }
        Ok(task)
    });
    async move {
        match begun?.await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(Queued)) => {
                let why = format!(
                    "there was too little time, because {OPERATIONS_MAX} other operations of functions ran"
                );
                Err(raise(Problem::at(&location, why)))
            }
            Err(_) => Ok(Err("it was cancelled".into())),
        }
    }
}

/// The operation got too little time, because it waited for other operations.
struct Queued;

/// Reads `timeout` of the options of an operation, in seconds or as a duration such as "500ms". Refuses options that
/// are neither `timeout` nor in `others`.
fn timeout(
    lua: &Lua,
    (operation, others): (&str, &[&str]),
    options: Option<&Table>,
) -> mlua::Result<Duration> {
    let Some(options) = options else { return Ok(TIMEOUT) };
    for pair in options.pairs::<Value, Value>() {
        let (key, _) = pair?;
        let is_known =
            key.as_string().is_some_and(|key| *key == "timeout" || others.iter().any(|other| *key == *other));
        if !is_known {
            let mut known = others.to_vec();
            known.push("timeout");
            let key = key.to_string()?;
            return Err(fail(lua, format!("{operation} has no option `{key}`: it has {}", known.join(", "))));
        }
    }
    duration(lua, &options.raw_get("timeout")?, TIMEOUT)
}

fn duration(lua: &Lua, given: &Value, default: Duration) -> mlua::Result<Duration> {
    let found = match given {
        Value::Nil => return Ok(default),
        Value::Integer(seconds) => Duration::try_from_secs_f64(*seconds as f64).ok(),
        Value::Number(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        Value::String(text) => crate::config::duration(&text.to_string_lossy()),
        _ => None,
    };
    match found.filter(|found| *found <= TIMEOUT_MAX) {
        Some(found) => Ok(found),
        None => {
            let shown = given.to_string()?;
            Err(fail(lua, format!("a time must be 0 to {TIMEOUT_MAX:?}, such as \"500ms\", got {shown}")))
        }
    }
}

fn log(lua: &Lua) -> mlua::Result<Table> {
    let log = lua.create_table()?;
    for level in Level::ALL {
        let write = lua.create_function(move |lua, values: MultiValue| {
            let runtime = running(lua, "log")?;
            let text = crate::output::printable(&message(&values)?).to_string();
            let script = caller(lua).to_string();
            let event = Event::ScriptMessage { severity: ScriptLevel(level), script: script.clone(), text };
            runtime.report(&runtime.messages, event, &script);
            Ok(())
        })?;
        log.raw_set(level.name(), write)?;
    }
    Ok(log)
}

/// Joins values by spaces, up to the longest message.
fn message(values: &MultiValue) -> mlua::Result<String> {
    let mut text = String::new();
    let mut room = TEXT_CHARS_MAX;
    let mut add = |piece: &str| {
        text.extend(piece.chars().take(room));
        room = room.saturating_sub(piece.chars().take(room).count());
        room > 0
    };
    for (number, value) in values.iter().enumerate() {
        if number > 0 && !add(" ") {
            break;
        }
        let has_room = match value {
            Value::String(bytes) => add(&first_chars(&bytes.as_bytes())),
            other => add(&other.to_string()?),
        };
        if !has_room {
            break;
        }
    }
    Ok(text)
}

/// Copies the bytes that an operation sends.
fn bytes_to_send(lua: &Lua, name: &str, text: &mlua::LuaString) -> mlua::Result<Vec<u8>> {
    let bytes = text.as_bytes();
    if bytes.len() > SENT_BYTES_MAX {
        return Err(fail(lua, format!("{name} sends at most {SENT_BYTES_MAX} bytes, got {}", bytes.len())));
    }
    Ok(bytes.to_vec())
}

fn time(lua: &Lua) -> mlua::Result<Table> {
    let time = lua.create_table()?;
    let now = lua.create_function(|_, ()| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(since.as_secs_f64())
    })?;
    time.raw_set("now", now)?;
    let origin = Instant::now();
    time.raw_set("monotonic", lua.create_function(move |_, ()| Ok(origin.elapsed().as_secs_f64()))?)?;
    let sleep = lua.create_async_function(|lua, given: Value| {
        let wanted = running(&lua, "time.sleep").and_then(|_| duration(&lua, &given, Duration::ZERO));
        async move {
            tokio::time::sleep(wanted?).await;
            Ok(())
        }
    })?;
    time.raw_set("sleep", sleep)?;
    Ok(time)
}

/// Returns `{ ok = false, error = why }`.
fn failure(lua: &Lua, why: &str) -> mlua::Result<Value> {
    let table = lua.create_table()?;
    table.raw_set("ok", false)?;
    table.raw_set("error", why)?;
    table.into_lua(lua)
}
