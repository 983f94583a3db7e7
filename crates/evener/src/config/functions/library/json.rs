//! `json.encode` and `json.decode`.

use crate::config::functions::bounds::fail;
use mlua::{IntoLua, Lua, Table, Value};
use serde_json::{Map, Number, Value as Json};

/// Longest text.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// Maximum depth of tables.
const DEPTH_MAX: usize = 64;
/// Maximum number of values.
const VALUES_MAX: usize = 100_000;

/// Values and bytes that `json.encode` may still take. They are counted before they are copied, because a table can
/// have the same long text many times.
struct Budget {
    values: usize,
    bytes: usize,
}

impl Budget {
    fn take(&mut self, lua: &Lua, bytes: usize) -> mlua::Result<()> {
        let values = self.values.checked_sub(1);
        self.values = values.ok_or_else(|| fail(lua, "json.encode got too many values"))?;
        self.take_bytes(lua, bytes)
    }

    fn take_bytes(&mut self, lua: &Lua, bytes: usize) -> mlua::Result<()> {
        let bytes = self.bytes.checked_sub(bytes);
        self.bytes = bytes.ok_or_else(|| too_long(lua))?;
        Ok(())
    }
}

fn too_long(lua: &Lua) -> mlua::Error {
    fail(lua, format!("json.encode makes at most {TEXT_BYTES_MAX} bytes"))
}

pub(super) fn library(lua: &Lua) -> mlua::Result<Table> {
    let json = lua.create_table()?;
    let decode = |lua: &Lua, text: mlua::LuaString| {
        let bytes = text.as_bytes();
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(fail(lua, format!("json.decode takes at most {TEXT_BYTES_MAX} bytes")));
        }
        match serde_json::from_slice::<Json>(&bytes) {
            Ok(value) => Ok((to_lua(lua, value)?, None)),
            Err(error) => Ok((Value::Nil, Some(error.to_string()))),
        }
    };
    json.raw_set("decode", lua.create_function(decode)?)?;
    let encode = |lua: &Lua, value: Value| {
        let mut budget = Budget { values: VALUES_MAX, bytes: TEXT_BYTES_MAX };
        let value = to_json(lua, &value, 0, &mut budget)?;
        let text = value.to_string();
        if text.len() > TEXT_BYTES_MAX {
            return Err(too_long(lua));
        }
        Ok(text)
    };
    json.raw_set("encode", lua.create_function(encode)?)?;
    json.raw_set("null", Value::NULL)?;
    Ok(json)
}

fn to_lua(lua: &Lua, value: Json) -> mlua::Result<Value> {
    match value {
        Json::Null => Ok(Value::NULL),
        Json::Bool(value) => Ok(Value::Boolean(value)),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Ok(Value::Integer(number)),
            None => number.as_f64().into_lua(lua),
        },
        Json::String(text) => text.into_lua(lua),
        Json::Array(items) => {
            let table = lua.create_table()?;
            for (at, item) in items.into_iter().enumerate() {
                table.raw_set(at + 1, to_lua(lua, item)?)?;
            }
            table.into_lua(lua)
        }
        Json::Object(fields) => {
            let table = lua.create_table()?;
            for (key, item) in fields {
                table.raw_set(key, to_lua(lua, item)?)?;
            }
            table.into_lua(lua)
        }
    }
}

fn to_json(lua: &Lua, value: &Value, depth: usize, budget: &mut Budget) -> mlua::Result<Json> {
    budget.take(lua, value.as_string().map_or(0, |text| text.as_bytes().len()))?;
    let refused = |what: &str| Err(fail(lua, format!("json.encode cannot encode {what}")));
    match value {
        Value::Nil => Ok(Json::Null),
        value if value.is_null() => Ok(Json::Null),
        Value::Boolean(value) => Ok(Json::Bool(*value)),
        Value::Integer(number) => Ok(Json::Number((*number).into())),
        Value::Number(number) => match Number::from_f64(*number) {
            Some(number) => Ok(Json::Number(number)),
            None => refused("a number that is not finite"),
        },
        Value::String(text) => match text.to_str() {
            Ok(text) => Ok(Json::String(text.to_owned())),
            Err(_) => refused("a text that is not UTF-8"),
        },
        Value::Table(_) if depth >= DEPTH_MAX => refused("tables that are nested so deeply"),
        Value::Table(table) if table.raw_len() > 0 => {
            let items = (1..=table.raw_len()).map(|at| {
                let item: Value = table.raw_get(at)?;
                to_json(lua, &item, depth + 1, budget)
            });
            Ok(Json::Array(items.collect::<mlua::Result<_>>()?))
        }
        Value::Table(table) => {
            let mut fields = Map::new();
            for pair in table.pairs::<Value, Value>() {
                let (key, item) = pair?;
                let Value::String(key) = key else { return refused("a key that is not text") };
                budget.take_bytes(lua, key.as_bytes().len())?;
                fields.insert(key.to_string_lossy(), to_json(lua, &item, depth + 1, budget)?);
            }
            Ok(Json::Object(fields))
        }
        other => refused(&format!("a {}", other.type_name())),
    }
}
