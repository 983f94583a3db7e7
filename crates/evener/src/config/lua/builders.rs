//! The functions that make values: `pool`, `service`, `check.http` and so on. A table is read when the function
//! is called, within bounds.

use super::{Shared, caller, lock, raise, text_of, type_of, wrong};
use crate::config::Problem;
use crate::config::functions::library_name;
use crate::config::raw::{Made, Table, Value};
use mlua::{Function, IntoLua, Lua, UserData, UserDataMethods};
use std::cell::Cell;
use std::sync::Arc;

const TABLE_DEPTH_MAX: usize = 8;
/// Maximum number of values in all declarations. A table counts each time it is used.
const VALUES_MAX: u64 = 4_000_000;
/// Maximum number of bytes of text in all declarations, counted in the same manner.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// A function that makes a value of a configuration.
struct Builder {
    name: &'static str,
    /// Syntax of the call.
    form: Form,
    /// Example of a call, for messages.
    example: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A declaration: `pool "name" { ... }`.
    Declaration,
    /// A name with an optional table: `server "address"` or `server "address" { ... }`.
    Named,
    /// An optional table: `check.http { ... }` or `check.http()`.
    Plain,
    /// A table of settings that a configuration has once: `xdp { ... }`.
    Settings,
}

const BUILDERS: &[Builder] = &[
    Builder { name: "pool", form: Form::Declaration, example: "pool \"web\" { \"10.0.0.1:80\" }" },
    Builder {
        name: "service",
        form: Form::Declaration,
        example: "service \"www\" { listen = \"0.0.0.0:80\", pool = \"web\" }",
    },
    Builder { name: "xdp", form: Form::Settings, example: "xdp { flows = 1048576 }" },
    Builder { name: "ipvs", form: Form::Settings, example: "ipvs { own_table = true }" },
    Builder {
        name: "admin",
        form: Form::Settings,
        example: "admin { listen = \"127.0.0.1:9900\", token_file = \"tokens\" }",
    },
    Builder { name: "server", form: Form::Named, example: "server \"10.0.0.1:80\" { weight = 2 }" },
    Builder { name: "prefixes", form: Form::Named, example: "prefixes \"FILE\"" },
    Builder { name: "country", form: Form::Named, example: "country \"SE\"" },
    Builder { name: "check.tcp", form: Form::Plain, example: "check.tcp { every = \"2s\" }" },
    Builder { name: "check.tls", form: Form::Plain, example: "check.tls { every = \"2s\" }" },
    Builder { name: "check.http", form: Form::Plain, example: "check.http { path = \"/health\" }" },
    Builder { name: "check.https", form: Form::Plain, example: "check.https { path = \"/health\" }" },
    Builder { name: "check.udp", form: Form::Plain, example: "check.udp { send = \"ping\" }" },
    Builder {
        name: "check.script",
        form: Form::Plain,
        example: "check.script { every = \"1s\", run = function(server, pool) ... end }",
    },
    Builder { name: "check.dns", form: Form::Plain, example: "check.dns { name = \"example.org\" }" },
    Builder { name: "check.smtp", form: Form::Plain, example: "check.smtp { helo = \"lb.example.org\" }" },
    Builder { name: "check.exec", form: Form::Plain, example: "check.exec { \"/usr/local/bin/probe\" }" },
    Builder { name: "discover.file", form: Form::Named, example: "discover.file \"servers.txt\"" },
    Builder { name: "discover.dns", form: Form::Named, example: "discover.dns \"app.example:80\"" },
    Builder { name: "discover.srv", form: Form::Named, example: "discover.srv \"_http._tcp.example.org\"" },
    Builder { name: "policy.ewma", form: Form::Plain, example: "policy.ewma { decay = \"10s\" }" },
    Builder { name: "policy.maglev", form: Form::Plain, example: "policy.maglev { table = 65537 }" },
];

/// Adds the builders to the globals.
pub(super) fn add(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    lua.set_app_data(Budget::default());
    let globals = lua.globals();
    for builder in BUILDERS {
        let function = builder_function(lua, state, builder)?;
        match builder.name.split_once('.') {
            Some((namespace, name)) => globals.get::<mlua::Table>(namespace)?.raw_set(name, function)?,
            None => globals.raw_set(builder.name, function)?,
        }
    }
    Ok(())
}

/// Returns the names of the builders that are not in a namespace, except `exec`.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    BUILDERS.iter().map(|builder| builder.name).filter(|name| !name.contains('.'))
}

/// Resources that declarations used.
#[derive(Default)]
pub(in crate::config) struct Budget {
    values: Cell<u64>,
    text_bytes: Cell<u64>,
}

impl Budget {
    fn spend(lua: &Lua, text_bytes: usize) -> mlua::Result<()> {
        let Some(budget) = lua.app_data_ref::<Self>() else { return Ok(()) };
        budget.values.set(budget.values.get() + 1);
        budget.text_bytes.set(budget.text_bytes.get() + text_bytes as u64);
        if budget.values.get() > VALUES_MAX || budget.text_bytes.get() > TEXT_BYTES_MAX {
            let message = format!(
                "the declarations have more than {VALUES_MAX} values or {} MiB of text",
                TEXT_BYTES_MAX >> 20
            );
            return Err(raise(Problem::at(&caller(lua), message)));
        }
        Ok(())
    }
}

/// The object in Lua for a value that a builder made. If it has the state, it can be called with a table.
#[derive(Clone)]
struct Handle(Arc<Made>, Option<Shared>);

impl UserData for Handle {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        crate::config::functions::add_pool_methods(methods, |Handle(made, _)| {
            (made.builder() == "pool" || made.builder() == "service").then(|| made.name())
        });
        // In `server "address" { ... }` a table follows the name.
        methods.add_meta_method("__call", |lua, Handle(made, open), given: mlua::Value| {
            let builder = made.builder();
            let Some(state) = open else {
                let message =
                    format!("a {builder} cannot be called: remove the braces or parentheses behind it");
                return Err(raise(Problem::at(&caller(lua), message)));
            };
            match given {
                mlua::Value::Table(table) => {
                    Handle(Arc::new(made.with(read_table(lua, &table, 0)?)), None).into_lua(lua)
                }
                given => {
                    let found = type_of(&given);
                    let message = format!("{builder} \"{}\" takes a table, got {found}", made.name());
                    wrong(lua, state, &given, &message)
                }
            }
        });
    }
}

fn builder_function(lua: &Lua, state: &Shared, builder: &'static Builder) -> mlua::Result<Function> {
    let state = Arc::clone(state);
    match builder.form {
        Form::Plain => lua.create_function(move |lua, given: mlua::Value| {
            let table = match &given {
                mlua::Value::Nil => Table::EMPTY,
                mlua::Value::Table(table) => read_table(lua, table, 0)?,
                _ => return builder.wrong(lua, &state, "a table", &given),
            };
            let made = Made::new(builder.name, String::new(), table, caller(lua));
            Handle(Arc::new(made), None).into_lua(lua)
        }),
        Form::Settings => lua.create_function(move |lua, given: mlua::Value| {
            let mlua::Value::Table(table) = &given else {
                return builder.wrong(lua, &state, "a table", &given);
            };
            let location = caller(lua);
            let made = Made::new(builder.name, String::new(), read_table(lua, table, 0)?, location.clone());
            let earlier = lock(&state).run.set_once(Arc::new(made));
            if let Some(earlier) = earlier {
                let message = format!(
                    "{} is already declared at {earlier}: move its keys into one table",
                    builder.name
                );
                lock(&state).run.record(Problem::at(&location, message));
            }
            Ok(mlua::Value::Nil)
        }),
        Form::Named => lua.create_function(move |lua, (given, body): (mlua::Value, mlua::Value)| {
            let Some(address) = text_of(&given) else {
                return builder.wrong(lua, &state, "a string", &given);
            };
            // `server("10.0.0.1:80", { ... })` is complete.
            let (table, open) = match &body {
                mlua::Value::Nil => (Table::EMPTY, Some(Arc::clone(&state))),
                mlua::Value::Table(table) => (read_table(lua, table, 0)?, None),
                _ => return builder.wrong(lua, &state, "a table behind the string", &body),
            };
            Handle(Arc::new(Made::new(builder.name, address, table, caller(lua))), open).into_lua(lua)
        }),
        Form::Declaration => lua.create_function(move |lua, (given, body): (mlua::Value, mlua::Value)| {
            let Some(name) = text_of(&given) else {
                return builder.wrong(lua, &state, "a name first", &given);
            };
            lock(&state).open.push((builder.name, name.clone(), caller(lua)));
            // In `service("www", { ... })` the body is an argument.
            match body {
                mlua::Value::Nil => declaration(lua, &state, builder, name)?.into_lua(lua),
                body => declare(lua, &state, builder, &name, &body),
            }
        }),
    }
}

impl Builder {
    /// Records that the builder got a wrong argument.
    fn wrong(
        &self,
        lua: &Lua,
        state: &Shared,
        wanted: &str,
        given: &mlua::Value,
    ) -> mlua::Result<mlua::Value> {
        let message = format!("{} takes {wanted}, got {}: write {}", self.name, type_of(given), self.example);
        wrong(lua, state, given, &message)
    }
}

/// Returns the function that takes the body of a declaration.
fn declaration(lua: &Lua, state: &Shared, builder: &'static Builder, name: String) -> mlua::Result<Function> {
    let state = Arc::clone(state);
    lua.create_function(move |lua, body: mlua::Value| declare(lua, &state, builder, &name, &body))
}

/// Adds a declaration with its body.
fn declare(
    lua: &Lua,
    state: &Shared,
    builder: &'static Builder,
    name: &str,
    body: &mlua::Value,
) -> mlua::Result<mlua::Value> {
    lock(state).open.retain(|(open, of, _)| (*open, &**of) != (builder.name, name));
    let mlua::Value::Table(table) = body else {
        let message = format!(
            "{} \"{name}\" takes a table, got {}: write {}",
            builder.name,
            type_of(body),
            builder.example
        );
        lock(state).run.declare_unknown(builder.name, name, &caller(lua));
        return wrong(lua, state, body, &message);
    };
    let made = Arc::new(Made::new(builder.name, name.to_owned(), read_table(lua, table, 0)?, caller(lua)));
    lock(state).run.declare(Arc::clone(&made));
    Handle(made, None).into_lua(lua)
}

pub(in crate::config) fn read_table(lua: &Lua, table: &mlua::Table, depth: usize) -> mlua::Result<Table> {
    let mut read = Table::default();
    let length = table.raw_len() as i64;
    for at in 1..=length {
        read.push(read_value(lua, table.raw_get(at)?, depth)?);
    }
    for pair in table.pairs::<mlua::Value, mlua::Value>() {
        let (key, value) = pair?;
        match key {
            mlua::Value::Integer(at) if (1..=length).contains(&at) => {}
            mlua::Value::String(key) => {
                read.insert(key.to_string_lossy(), read_value(lua, value, depth)?);
            }
            other => {
                read.insert(format!("[{}]", other.to_string()?), read_value(lua, value, depth)?);
            }
        }
    }
    Ok(read)
}

fn read_value(lua: &Lua, value: mlua::Value, depth: usize) -> mlua::Result<Value> {
    Budget::spend(lua, if let mlua::Value::String(text) = &value { text.as_bytes().len() } else { 0 })?;
    Ok(match value {
        mlua::Value::Boolean(value) => Value::Bool(value),
        mlua::Value::Integer(value) => Value::Int(value),
        mlua::Value::Number(value) => Value::Number(value),
        mlua::Value::String(text) => match text.to_str() {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Bytes(text.as_bytes().to_vec()),
        },
        mlua::Value::Table(_) if depth >= TABLE_DEPTH_MAX => Value::Other("a table nested too deeply"),
        mlua::Value::Table(table) => match library_name(&table) {
            Some(library) => Value::Library(library),
            None => Value::Table(read_table(lua, &table, depth + 1)?),
        },
        mlua::Value::Function(function) => super::functions::read(lua, function),
        mlua::Value::UserData(data) => match data.borrow::<Handle>() {
            Ok(handle) => Value::Made(Arc::clone(&handle.0)),
            Err(_) => Value::Unknown,
        },
        mlua::Value::Nil => Value::Other("nil"),
        _ => Value::Other("a value that a configuration cannot have"),
    })
}
