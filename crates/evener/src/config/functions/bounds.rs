//! Bounded forms of the functions of Lua's standard library, for the configuration and its functions.

use super::Runtime;
use super::pattern::{Capture, Search, search};
use crate::config::{Problem, caller, message_of, raise};
use mlua::{IntoLua, Lua, MultiValue, Value};
use std::sync::Arc;

const PRELUDE: &str = include_str!("prelude.lua");
/// Longest text that functions of `string` take or make while the instance runs.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Longest list that functions of `table` take while the instance runs.
const LIST_MAX: i64 = 100_000;
/// Maximum number of repetitions by `string.rep` while the instance runs.
const REPEAT_MAX: i64 = 1 << 20;

/// Error of Lua when it gets no memory.
const NO_MEMORY: &str = "not enough memory";

/// Decides whether the run of the configuration was stopped, so that `pcall` does not catch the error.
pub(crate) struct Stopped(Box<dyn Fn() -> bool + Send + Sync>);

impl Stopped {
    pub(crate) fn new(is_stopped: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Box::new(is_stopped))
    }
}

/// Returns the shared state, while the instance runs.
pub(super) fn runtime(lua: &Lua) -> Option<Arc<Runtime>> {
    lua.app_data_ref::<Arc<Runtime>>().map(|runtime| Arc::clone(&runtime))
}

/// Returns the shared state, or an error about a function that needs it.
pub(super) fn running(lua: &Lua, name: &str) -> mlua::Result<Arc<Runtime>> {
    runtime(lua).ok_or_else(|| {
        fail(
            lua,
            format!("{name} works only in functions that run later, such as those of check, every and on"),
        )
    })
}

fn is_stopped(lua: &Lua) -> bool {
    match runtime(lua).and_then(|runtime| runtime.current()) {
        Some(call) => call.is_stopped(),
        None => lua.app_data_ref::<Stopped>().is_some_and(|stopped| (stopped.0)()),
    }
}

/// Returns true if an error ends the call, so that `pcall` does not return.
fn is_stopped_by(lua: &Lua, error: &Value) -> bool {
    let is_memory = match error {
        Value::Error(error) => matches!(**error, mlua::Error::MemoryError(_)),
        Value::String(text) => *text == NO_MEMORY,
        _ => false,
    };
    if is_memory && let Some(call) = runtime(lua).and_then(|runtime| runtime.current()) {
        call.stop_for_memory();
    }
    is_stopped(lua)
}

fn is_late(lua: &Lua) -> bool {
    let Some(runtime) = runtime(lua) else { return false };
    runtime.current().is_some_and(|call| call.is_late(runtime.now()))
}

/// Returns an error at the caller of a function.
pub(super) fn fail(lua: &Lua, why: impl Into<String>) -> mlua::Error {
    raise(Problem::at(&caller(lua), super::first_chars(why.into().as_bytes())))
}

fn text(lua: &Lua, value: &Value, number: u8, function: &str) -> mlua::Result<mlua::LuaString> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Number(_) => lua.create_string(value.to_string()?),
        other => {
            let found = if other.is_nil() { "no value" } else { other.type_name() };
            Err(fail(lua, format!("bad argument #{number} to '{function}' (string expected, got {found})")))
        }
    }
}

/// Adds the libraries and the bounded functions. `coroutine` must still be there.
pub(crate) fn install(lua: &Lua) -> mlua::Result<()> {
    let native = lua.create_table()?;
    native.raw_set("is_late", lua.create_function(|lua, ()| Ok(is_late(lua)))?)?;
    native.raw_set("is_stopped", lua.create_function(|lua, error: Value| Ok(is_stopped_by(lua, &error)))?)?;
    let is_plain =
        |_: &Lua, value: Value| Ok(value.as_table().is_some_and(|table| table.metatable().is_none()));
    native.raw_set("is_plain", lua.create_function(is_plain)?)?;
    let message = |lua: &Lua, error: Value| match error {
        Value::Error(error) => message_of(&error).into_lua(lua),
        Value::String(text) => {
            let error = mlua::Error::RuntimeError(text.to_string_lossy());
            message_of(&error).into_lua(lua)
        }
        other => Ok(other),
    };
    native.raw_set("message", lua.create_function(message)?)?;
    native.raw_set("match", lua.create_function(find)?)?;
    let check = |lua: &Lua, (function, s, p): (String, Value, Value)| {
        text(lua, &s, 1, &function)?;
        text(lua, &p, 2, &function).map(drop)
    };
    native.raw_set("check", lua.create_function(check)?)?;
    native.raw_set("expand", lua.create_function(expand)?)?;
    let check_repeat = |lua: &Lua, (s, n, separator): (Value, Value, Value)| {
        // As the library converts the number: text, also hexadecimal text, is a number.
        let (Some(n), true) = (lua.coerce_integer(n)?, runtime(lua).is_some()) else { return Ok(()) };
        let length = |value: &Value| value.as_string().map_or(0, |text| text.as_bytes().len());
        let whole = (length(&s) + length(&separator)).saturating_mul(n.max(0) as usize);
        if n > REPEAT_MAX || whole > TEXT_BYTES_MAX {
            return Err(fail(lua, format!("string.rep would make more than {TEXT_BYTES_MAX} bytes")));
        }
        Ok(())
    };
    native.raw_set("check_repeat", lua.create_function(check_repeat)?)?;
    let check_length = |lua: &Lua, length: usize| {
        if length > TEXT_BYTES_MAX && runtime(lua).is_some() {
            return Err(fail(lua, format!("a text of {length} bytes is longer than {TEXT_BYTES_MAX} bytes")));
        }
        Ok(())
    };
    native.raw_set("check_length", lua.create_function(check_length)?)?;
    let check_list = |lua: &Lua, length: f64| {
        if length > LIST_MAX as f64 && runtime(lua).is_some() {
            return Err(fail(lua, format!("a list of {length} values is longer than {LIST_MAX} values")));
        }
        Ok(())
    };
    native.raw_set("check_list", lua.create_function(check_list)?)?;
    let coroutine: mlua::Table = lua.globals().raw_get("coroutine")?;
    lua.load(PRELUDE).set_name("=prelude").call::<()>((native, coroutine))?;
    super::library::install(lua)
}

/// Searches from a position. Returns `false` and the match, or a position at which to continue, or nothing.
fn find(lua: &Lua, (s, p, init, mode): (Value, Value, Value, Value)) -> mlua::Result<MultiValue> {
    let (s, p) = (text(lua, &s, 1, "find")?, text(lua, &p, 2, "find")?);
    let (bytes, pattern) = (s.as_bytes(), p.as_bytes());
    let Some(init) = init.as_i64().or_else(|| init.as_f64().map(|init| init as i64)) else {
        return Err(fail(lua, "bad argument #3 to 'find' (number expected)"));
    };
    let length = bytes.len() as i64;
    let from = if init < 0 { (length + init + 1).max(1) } else { init.max(1) };
    let nothing = || Ok(MultiValue::from_iter([Value::Nil, Value::Nil]));
    if from > length + 1 {
        return nothing();
    }
    let from = (from - 1) as usize;
    if bytes.len() > TEXT_BYTES_MAX && runtime(lua).is_some() {
        return Err(fail(lua, format!("a text of {length} bytes is longer than {TEXT_BYTES_MAX} bytes")));
    }
    if mode.as_boolean() == Some(true) {
        return match memchr::memmem::find(&bytes[from..], &pattern) {
            Some(at) => {
                let (first, last) = (from + at + 1, from + at + pattern.len());
                let values = [Value::Nil, Value::Integer(first as i64), Value::Integer(last as i64)];
                Ok(MultiValue::from_iter(values))
            }
            None => nothing(),
        };
    }
    let found = search(&bytes, &pattern, from, !mode.is_string());
    match found.map_err(|why| fail(lua, why))? {
        Search::Nothing => nothing(),
        Search::Continue(at) => Ok(MultiValue::from_iter([Value::Integer(at as i64 + 1)])),
        Search::Found(start, end, captures) => {
            let mut values = vec![Value::Nil, Value::Integer(start as i64 + 1), Value::Integer(end as i64)];
            for capture in captures {
                values.push(match capture {
                    Capture::Position(at) => Value::Integer(at as i64),
                    Capture::Text(start, end) => Value::String(lua.create_string(&bytes[start..end])?),
                });
            }
            Ok(MultiValue::from_iter(values))
        }
    }
}

/// Expands `%0`, `%1` and so on in the replacement of `string.gsub`.
fn expand(lua: &Lua, mut arguments: MultiValue) -> mlua::Result<mlua::LuaString> {
    let replacement = text(lua, &arguments.pop_front().unwrap_or(Value::Nil), 3, "gsub")?;
    let replacement = replacement.as_bytes();
    if !replacement.contains(&b'%') {
        return lua.create_string(&*replacement);
    }
    let whole = arguments.pop_front().unwrap_or(Value::Nil);
    let captures: Vec<Value> = arguments.into_iter().collect();
    let mut made = Vec::with_capacity(replacement.len());
    let mut bytes = replacement.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'%' {
            made.push(*byte);
            continue;
        }
        let value = match bytes.next() {
            Some(b'%') => {
                made.push(b'%');
                continue;
            }
            Some(b'0') => &whole,
            Some(b'1') if captures.is_empty() => &whole,
            Some(digit @ b'1'..=b'9') => {
                let index = usize::from(digit - b'1');
                captures.get(index).ok_or_else(|| {
                    fail(lua, format!("invalid capture index %{} in replacement string", index + 1))
                })?
            }
            _ => return Err(fail(lua, "invalid use of '%' in replacement string")),
        };
        made.extend_from_slice(&text(lua, value, 3, "gsub")?.as_bytes());
        if made.len() > TEXT_BYTES_MAX && runtime(lua).is_some() {
            return Err(fail(lua, format!("a replacement is longer than {TEXT_BYTES_MAX} bytes")));
        }
    }
    lua.create_string(&made)
}
