//! Names of the functions of the configuration language, for tests.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::{Shared, sandbox};
use mlua::{Lua, LuaOptions, StdLib, Table, Value};
use std::collections::BTreeSet;

/// Returns the functions that the configuration language has in addition to those of Lua.
pub(in crate::config) fn of_language() -> BTreeSet<String> {
    let language = sandbox(&Shared::default()).unwrap();
    let lua = Lua::new_with(StdLib::ALL_SAFE, LuaOptions::new()).unwrap();
    let mut names: BTreeSet<String> = of(&language).difference(&of(&lua)).cloned().collect();
    // A function of tests.
    names.remove("block");
    names
}

/// Returns the functions of the globals and of their tables: `pool`, `check.tcp`.
pub(in crate::config) fn of(lua: &Lua) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, value) in pairs(&lua.globals()) {
        match value {
            Value::Function(_) => {
                names.insert(name);
            }
            Value::Table(table) if name != "_G" => {
                let functions = pairs(&table).into_iter().filter(|(_, value)| value.is_function());
                names.extend(functions.map(|(function, _)| format!("{name}.{function}")));
            }
            _ => {}
        }
    }
    names
}

fn pairs(table: &Table) -> Vec<(String, Value)> {
    table
        .pairs::<Value, Value>()
        .flatten()
        .filter_map(|(name, value)| Some((name.to_string().ok()?, value)))
        .collect()
}
