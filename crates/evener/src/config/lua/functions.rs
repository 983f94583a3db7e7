//! Functions of a configuration that run later: checks, timers and handlers of events.

use super::{Shared, Text, text_of, type_of, wrong};
use crate::config::nearest;
use crate::config::problem::Location;
use crate::config::raw::{Function, Run, Value};
use crate::config::scalar::parse_duration;
use crate::config::script::{Declared, Program};
use evener_core::event::Event;
use mlua::Lua;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Maximum number of functions.
const FUNCTIONS_MAX: usize = 100_000;
/// Shortest interval of a timer.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// Adds `every` and `on`, which declare what runs later.
pub(super) fn add(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    lua.set_app_data(Mutex::new(Declared::default()));
    let globals = lua.globals();
    let shared = Shared::clone(state);
    let every = lua.create_function(move |lua, (interval, function): (mlua::Value, mlua::Value)| {
        let example = "write every(\"10s\", function() ... end)";
        let given = match &interval {
            mlua::Value::String(text) => Value::Text(text.to_string_lossy()),
            mlua::Value::Integer(number) => Value::Int(*number),
            mlua::Value::Number(number) => Value::Number(*number),
            other => return wrong(lua, &shared, other, &format!("every takes an interval first: {example}")),
        };
        let interval = match parse_duration(&given) {
            Ok(interval) if interval >= EVERY_MIN => interval,
            Ok(_) => return wrong(lua, &shared, &interval, "every takes an interval of at least 10ms"),
            Err(why) => return wrong(lua, &shared, &interval, &format!("the interval {why}")),
        };
        let Some(number) = register(lua, &shared, &function, "every", example)? else {
            return Ok(mlua::Value::Nil);
        };
        declared(lua, |declared| declared.every(interval, number));
        Ok(mlua::Value::Nil)
    })?;
    globals.raw_set("every", every)?;
    let shared = Shared::clone(state);
    let on = lua.create_function(move |lua, (event, function): (mlua::Value, mlua::Value)| {
        let example = "write on(\"server_down\", function(event) ... end)";
        let Some(name) = text_of(&event) else {
            return wrong(lua, &shared, &event, &format!("on takes the name of an event first: {example}"));
        };
        if !Event::names().any(|known| known == name) {
            let message = format!("there is no event `{name}`{}", nearest(&name, Event::names()));
            return wrong(lua, &shared, &event, &message);
        }
        let Some(number) = register(lua, &shared, &function, "on", example)? else {
            return Ok(mlua::Value::Nil);
        };
        declared(lua, |declared| declared.on(&name, number));
        Ok(mlua::Value::Nil)
    })?;
    globals.raw_set("on", on)?;
    Ok(())
}

fn declared<T>(lua: &Lua, use_them: impl FnOnce(&mut Declared) -> T) -> Option<T> {
    let declared = lua.app_data_ref::<Mutex<Declared>>()?;
    let mut declared = declared.lock().unwrap_or_else(PoisonError::into_inner);
    Some(use_them(&mut declared))
}

/// Adds a function of a configuration. Returns its number, or `None` after a problem.
fn register(
    lua: &Lua,
    state: &Shared,
    given: &mlua::Value,
    taker: &str,
    example: &str,
) -> mlua::Result<Option<usize>> {
    let mlua::Value::Function(function) = given else {
        let message = format!("{taker} takes a function behind it, got {}: {example}", type_of(given));
        wrong(lua, state, given, &message)?;
        return Ok(None);
    };
    match read(lua, function.clone()) {
        Value::Function(function) => Ok(Some(function.number())),
        _ => {
            let message = format!("{taker} takes a function of the configuration: {example}");
            wrong(lua, state, given, &message)?;
            Ok(None)
        }
    }
}

/// Reads a function as a value of a declaration.
pub(super) fn read(lua: &Lua, function: mlua::Function) -> Value {
    let info = function.info();
    let file = info.source.as_deref().and_then(|source| source.strip_prefix('@')).map(str::to_owned);
    let (Some(file), Some(first)) = (file, info.line_defined) else {
        return Value::Other("a function: call it with braces or parentheses");
    };
    let location = Location::new(file, first as u32);
    let last = info.last_line_defined.unwrap_or(first) as u32;
    let number = declared(lua, |declared| declared.function(function, &location, FUNCTIONS_MAX)).flatten();
    match number {
        Some(number) => Value::Function(Function::new(number, location, last)),
        None => Value::Other("a function, of which the configuration has too many"),
    }
}

/// Returns the functions that run later, unless the configuration has none.
pub(super) fn take(lua: &Lua, file: (&Path, Option<Text>), run: &Run) -> Option<Program> {
    let taken = declared(lua, std::mem::take)?.allowing(run.allowed());
    Program::new(lua.clone(), taken, file, run.fingerprint())
}
