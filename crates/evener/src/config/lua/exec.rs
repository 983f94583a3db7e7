//! `exec { allow = { ... } }`, which names the programs that may run.

use super::builders::read_table;
use super::{Shared, caller, lock, record, wrong};
use crate::config::Problem;
use crate::config::raw::Value;
use mlua::Lua;

const USAGE: &str = "exec takes the programs that may run: write exec { allow = { \"/usr/bin/program\" } }";

/// Adds the function to the globals.
pub(super) fn add(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let state = Shared::clone(state);
    let exec = lua.create_function(move |lua, given: mlua::Value| {
        let mlua::Value::Table(table) = &given else { return wrong(lua, &state, &given, USAGE).map(drop) };
        let (table, location) = (read_table(lua, table, 0)?, caller(lua));
        let list = match table.get("allow") {
            Some(Value::Table(list)) => list.only_list(),
            _ => None,
        };
        let Some(list) = list.filter(|_| table.keys().count() == 1 && table.list().is_empty()) else {
            return record(&state, Problem::at(&location, USAGE));
        };
        for item in list {
            match item.text().filter(|text| text.starts_with('/')) {
                Some(path) => lock(&state).run.allow(path.to_owned()),
                None => {
                    let message =
                        format!("exec.allow must have absolute paths of programs, got {}", item.shown());
                    lock(&state).run.record(Problem::at(&location, message));
                }
            }
        }
        Ok(())
    })?;
    lua.globals().raw_set("exec", exec)
}
