//! Libraries for functions: http, tcp, udp, dns, exec, json, log and time. Operations that wait let other calls run,
//! have a time limit, and end with their call.

mod exec;
mod http;
mod json;
mod net;

use super::bounds::{fail, runtime};
use super::{Output, Runtime};
use crate::config::caller;
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
/// Longest message of a script in the log.
const MESSAGE_CHARS_MAX: usize = 2000;

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

fn running(lua: &Lua, name: &str) -> mlua::Result<Arc<Runtime>> {
    runtime(lua).ok_or_else(|| {
        fail(
            lua,
            format!("{name} works only in functions that run later, such as those of check, every and on"),
        )
    })
}

/// Runs an operation in its own task, with a time limit. It ends with the call.
fn operate<T: Send + 'static, F: Future<Output = Outcome<T>> + Send + 'static>(
    lua: &Lua,
    name: &str,
    timeout: mlua::Result<Duration>,
    operation: F,
) -> impl Future<Output = mlua::Result<Outcome<T>>> + Send + use<T, F> {
    let begun = timeout.and_then(|timeout| {
        let runtime = running(lua, name)?;
        let permits = Arc::clone(&runtime.operations);
        let task = tokio::spawn(async move {
            let limited = async {
                // The semaphore is never closed.
                let _permit = permits.acquire_owned().await;
                operation.await
            };
            match tokio::time::timeout(timeout, limited).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no response within {timeout:?}")),
            }
        });
        if let Some(call) = runtime.current() {
            call.add_operation(task.abort_handle());
        }
        Ok(task)
    });
    async move { Ok(begun?.await.unwrap_or_else(|_| Err("it was cancelled".into()))) }
}

/// Reads `timeout` of the options of an operation, in seconds or as a duration such as "500ms".
fn timeout(lua: &Lua, options: Option<&Table>) -> mlua::Result<Duration> {
    let given: Value = match options {
        Some(options) => options.raw_get("timeout")?,
        None => Value::Nil,
    };
    duration(lua, &given, TIMEOUT)
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
            let texts: Vec<String> = values.iter().map(Value::to_string).collect::<mlua::Result<_>>()?;
            let text: String = texts.join(" ").chars().take(MESSAGE_CHARS_MAX).collect();
            let text = crate::output::printable(&text).to_string();
            let event =
                Event::ScriptMessage { severity: ScriptLevel(level), script: caller(lua).to_string(), text };
            (runtime.outputs)(Output::Event(event));
            Ok(())
        })?;
        log.raw_set(level.name(), write)?;
    }
    Ok(log)
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
