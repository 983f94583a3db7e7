//! Runs a configuration file in a sandboxed Lua that can only declare: without files, processes or loading of
//! code, and bounded in memory, instructions and time.

use super::locate::Source;
use super::raw::{Made, Run, Table, Value};
use super::{Location, Problem};
use mlua::{
    Function, HookTriggers, IntoLua, IntoLuaMulti, Lua, LuaOptions, MultiValue, StdLib, UserData,
    UserDataMethods, VmState,
};
use std::cell::Cell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MEMORY_BYTES_MAX: usize = 256 << 20;
const INSTRUCTIONS_MAX: u64 = 500_000_000;
const INSTRUCTIONS_STEP: u32 = 10_000;
const TIME_MAX: Duration = Duration::from_secs(20);
const INCLUDES_MAX: usize = 64;
const TABLE_DEPTH_MAX: usize = 8;
/// Maximum number of values and bytes of text in declarations. Shared tables count each time they are used.
const VALUES_MAX: u64 = 4_000_000;
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// Maximum number of problems that are recorded while the file runs.
const PROBLEMS_MAX: usize = 1000;
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A function that makes a value of a configuration.
struct Builder {
    name: &'static str,
    /// Syntax of the call.
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A declaration: `pool "name" { ... }`.
    Declaration,
    /// A name with an optional table: `server "address"` or `server "address" { ... }`.
    Named,
    /// An optional table: `check.http { ... }` or `check.http()`.
    Plain,
}

const BUILDERS: &[Builder] = &[
    Builder { name: "pool", form: Form::Declaration },
    Builder { name: "service", form: Form::Declaration },
    Builder { name: "server", form: Form::Named },
    Builder { name: "prefixes", form: Form::Named },
    Builder { name: "country", form: Form::Named },
    Builder { name: "check.tcp", form: Form::Plain },
    Builder { name: "check.tls", form: Form::Plain },
    Builder { name: "check.http", form: Form::Plain },
    Builder { name: "check.https", form: Form::Plain },
    Builder { name: "check.udp", form: Form::Plain },
    Builder { name: "check.dns", form: Form::Plain },
    Builder { name: "policy.ewma", form: Form::Plain },
    Builder { name: "policy.maglev", form: Form::Plain },
];

/// Globals of Lua that can reach files, load code or avoid the bounds.
const REMOVED: &[&str] = &[
    "setmetatable",
    "collectgarbage",
    "dofile",
    "load",
    "loadfile",
    "loadstring",
    "require",
    "xpcall",
    "print",
    "warn",
];

type Shared = Arc<Mutex<State>>;

#[derive(Default)]
struct State {
    run: Run,
    /// Declarations that still wait for their table.
    open: Vec<(&'static str, String, Location)>,
    /// Files being run, the innermost last.
    files: Vec<PathBuf>,
    includes: usize,
}

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of runs that took too long and still continue.
static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// Runs the file and all files that it includes.
pub(super) fn run(path: &Path) -> Result<Run, Vec<Problem>> {
    // A second run would only add to the load of the one that was given up.
    if !cfg!(test) && GIVEN_UP.load(Ordering::Relaxed) > 0 {
        let message = "an earlier run of the configuration has not ended: try again later, or restart evener";
        return Err(vec![Problem::new(format!("{}: {message}", path.display()))]);
    }
    let (done, result) = channel();
    let path = path.to_owned();
    let name = path.display().to_string();
    // Set by whichever comes first: the end of the run or the timeout.
    let settled = Arc::new(AtomicBool::new(false));
    let run_settled = Arc::clone(&settled);
    let thread = std::thread::Builder::new().name("configuration".into());
    let started = thread.spawn(move || {
        drop(done.send(run_here(&path)));
        if run_settled.swap(true, Ordering::AcqRel) {
            GIVEN_UP.fetch_sub(1, Ordering::Relaxed);
        }
    });
    if let Err(error) = started {
        return Err(vec![Problem::new(format!("{name}: cannot start a thread to run it: {error}"))]);
    }
    match result.recv_timeout(TIME_MAX) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            GIVEN_UP.fetch_add(1, Ordering::Relaxed);
            if settled.swap(true, Ordering::AcqRel) {
                GIVEN_UP.fetch_sub(1, Ordering::Relaxed);
            }
            Err(vec![Problem::new(format!(
                "{name}: it ran for more than {TIME_MAX:?}: make the configuration faster"
            ))])
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(vec![Problem::new(format!("{name}: it failed unexpectedly"))])
        }
    }
}

fn run_here(path: &Path) -> Result<Run, Vec<Problem>> {
    let state = Shared::default();
    let outcome = sandbox(&state).and_then(|lua| run_file(&lua, &state, path));
    let mut state = std::mem::take(&mut *lock(&state));
    // A body may still have followed if an error ended the run.
    for (builder, name, location) in state.open.drain(..).filter(|_| outcome.is_ok()) {
        let message = format!("{builder} \"{name}\" has no body: write {builder} \"{name}\" {{ ... }}");
        state.run.problems.push(Problem::at(&location, message));
    }
    match outcome {
        Ok(()) => Ok(state.run),
        Err(error) => {
            let mut problems = state.run.problems;
            problems.push(problem_of(&error));
            Err(super::sorted(problems))
        }
    }
}

/// Converts a Lua error to a problem. Lua puts `file:line: ` in front of the message.
fn problem_of(error: &mlua::Error) -> Problem {
    let text = match error {
        mlua::Error::CallbackError { cause, .. } => return problem_of(cause),
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        mlua::Error::RuntimeError(message) => message.clone(),
        mlua::Error::MemoryError(_) => format!("it used more than {} MiB of memory", MEMORY_BYTES_MAX >> 20),
        mlua::Error::ExternalError(inner) => match inner.downcast_ref::<Problem>() {
            Some(problem) => return problem.clone(),
            None => inner.to_string(),
        },
        other => other.to_string(),
    };
    let text = if text.starts_with("table: ") {
        "the file raised an error that is not a string".into()
    } else {
        text
    };
    let first = text.lines().next().unwrap_or_default();
    let placed = first.split_once(": ").and_then(|(location, message)| {
        let (file, line) = location.rsplit_once(':')?;
        Some(Problem::at(&Location { file: file.into(), line: line.parse().ok()? }, message))
    });
    placed.unwrap_or_else(|| Problem::new(first))
}

impl std::error::Error for Problem {}

/// Resources that declarations used.
#[derive(Default)]
struct Budget {
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

fn raise(problem: Problem) -> mlua::Error {
    mlua::Error::external(problem)
}

fn sandbox(state: &Shared) -> mlua::Result<Lua> {
    let libraries = StdLib::STRING | StdLib::TABLE | StdLib::MATH | StdLib::UTF8;
    let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(false))?;
    lua.set_memory_limit(MEMORY_BYTES_MAX)?;
    lua.set_app_data(Budget::default());
    let globals = lua.globals();
    for name in REMOVED {
        globals.raw_remove(*name)?;
    }
    globals.get::<mlua::Table>("string")?.raw_remove("dump")?;
    bound_instructions(&lua)?;
    for namespace in ["check", "policy"] {
        globals.raw_set(namespace, lua.create_table()?)?;
    }
    for builder in BUILDERS {
        let function = builder_function(&lua, state, builder)?;
        match builder.name.split_once('.') {
            Some((namespace, name)) => globals.get::<mlua::Table>(namespace)?.raw_set(name, function)?,
            None => globals.raw_set(builder.name, function)?,
        }
    }
    add_include(&lua, state)?;
    add_geoip(&lua, state)?;
    add_environment(&lua)?;
    add_print(&lua)?;
    guard_metatables(&lua)?;
    watch_unknown_names(&lua, state)?;
    Ok(lua)
}

/// Adds `env "NAME"`. An unset variable is an error unless there is a default; `env("NAME", false)` gives
/// nil.
fn add_environment(lua: &Lua) -> mlua::Result<()> {
    let environment = lua.create_function(|lua, (name, default): (String, mlua::Value)| {
        match (std::env::var(&name), default) {
            (Ok(value), _) => value.into_lua(lua),
            (Err(_), mlua::Value::Boolean(false)) => Ok(mlua::Value::Nil),
            (Err(_), mlua::Value::Nil) => {
                let message = format!(
                    "the environment variable {name} is not set: set it, or give a default: env(\"{name}\", \"...\")"
                );
                Err(raise(Problem::at(&caller(lua), message)))
            }
            (Err(_), default) => Ok(default),
        }
    })?;
    lua.globals().raw_set("env", environment)
}

/// Adds `geoip "FILE"`, which names the database of countries.
fn add_geoip(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let state = Arc::clone(state);
    let geoip = lua.create_function(move |lua, file: String| {
        lock(&state).run.geoip = Some((file, caller(lua)));
        Ok(())
    })?;
    lua.globals().raw_set("geoip", geoip)
}

/// Adds `print`, which writes to standard error for the author of the file.
fn add_print(lua: &Lua) -> mlua::Result<()> {
    let print = lua.create_function(|lua, values: MultiValue| {
        let texts: Vec<String> = values.iter().map(mlua::Value::to_string).collect::<mlua::Result<_>>()?;
        let Location { file, line } = caller(lua);
        // Control characters would be commands to the terminal.
        let text: String =
            texts.join("\t").chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect();
        eprintln!("{file}:{line}: {text}");
        Ok(())
    })?;
    lua.globals().raw_set("print", print)
}

/// Adds `setmetatable` without finalizers: Lua runs those without counting instructions.
fn guard_metatables(lua: &Lua) -> mlua::Result<()> {
    let guarded = lua.create_function(|lua, (table, meta): (mlua::Table, Option<mlua::Table>)| {
        if meta.as_ref().is_some_and(|meta| !matches!(meta.raw_get("__gc"), Ok(mlua::Value::Nil))) {
            return Err(raise(Problem::at(&caller(lua), "a metatable must not have __gc")));
        }
        if table.equals(&lua.globals())? {
            return Err(raise(Problem::at(&caller(lua), "the metatable of the globals cannot be changed")));
        }
        // A key that is added later does not make a finalizer: Lua checks for it when the metatable is set.
        table.set_metatable(meta)?;
        Ok(table)
    })?;
    lua.globals().raw_set("setmetatable", guarded)
}

/// Counts instructions. Beyond the maximum every further step fails, and no `pcall` catches that.
fn bound_instructions(lua: &Lua) -> mlua::Result<()> {
    let used = Arc::new(AtomicU64::new(0));
    let exceeded = |used: &AtomicU64| used.load(Ordering::Relaxed) > INSTRUCTIONS_MAX;
    let counter = Arc::clone(&used);
    lua.set_hook(HookTriggers::new().every_nth_instruction(INSTRUCTIONS_STEP), move |_, _| {
        counter.fetch_add(u64::from(INSTRUCTIONS_STEP), Ordering::Relaxed);
        if exceeded(&counter) {
            let message =
                format!("it ran for more than {INSTRUCTIONS_MAX} instructions: check for an endless loop");
            return Err(mlua::Error::RuntimeError(message));
        }
        Ok(VmState::Continue)
    })?;
    let pcall = lua.create_function(move |lua, (function, arguments): (Function, MultiValue)| {
        match function.call::<MultiValue>(arguments) {
            Ok(results) => {
                let mut all = true.into_lua_multi(lua)?;
                all.extend(results);
                Ok(all)
            }
            Err(error) if exceeded(&used) => Err(error),
            Err(error) => (false, problem_of(&error).message).into_lua_multi(lua),
        }
    })?;
    lua.globals().raw_set("pcall", pcall)
}

/// Records unknown names as problems and replaces them with harmless values, so that the rest of the file is
/// still checked. Also applies to the members of `check` and `policy`.
fn watch_unknown_names(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let globals = lua.globals();
    for namespace in ["check", "policy"] {
        watch(lua, state, &globals.get(namespace)?, &format!("{namespace}."))?;
    }
    watch(lua, state, &globals, "")
}

fn watch(lua: &Lua, state: &Shared, table: &mlua::Table, prefix: &str) -> mlua::Result<()> {
    let (state, prefix) = (Arc::clone(state), prefix.to_owned());
    let index = lua.create_function(move |lua, (table, name): (mlua::Table, mlua::Value)| {
        let name = name.to_string()?;
        let known: Vec<String> =
            table.pairs::<String, mlua::Value>().flatten().map(|(name, _)| name).collect();
        let hint = super::fields::nearest(&name, known.iter().map(String::as_str));
        let problem = Problem::at(&caller(lua), format!("`{prefix}{name}` is not defined{hint}"));
        let mut state = lock(&state);
        if state.run.problems.len() >= PROBLEMS_MAX {
            return Err(raise(problem));
        }
        state.run.problems.push(problem);
        Ok(Unknown)
    })?;
    let meta = lua.create_table()?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__metatable", false)?;
    table.set_metatable(Some(meta))
}

/// The value of an unknown name. It can be called, indexed, computed with and ignored. As a list it is empty.
struct Unknown;

impl UserData for Unknown {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_meta_function("__index", |_, (_, key): (mlua::Value, mlua::Value)| {
            Ok((!key.is_integer()).then_some(Unknown))
        });
        for operation in
            ["__call", "__concat", "__add", "__sub", "__mul", "__div", "__mod", "__unm", "__idiv", "__pow"]
        {
            methods.add_meta_function(operation, |_, _: MultiValue| Ok(Unknown));
        }
        for comparison in ["__lt", "__le", "__eq"] {
            methods.add_meta_function(comparison, |_, _: MultiValue| Ok(false));
        }
        methods.add_meta_function("__len", |_, _: MultiValue| Ok(0));
        methods.add_meta_function("__tostring", |_, _: MultiValue| Ok("unknown"));
    }
}

/// A value that a builder made, as Lua holds it.
#[derive(Clone)]
struct Handle(Arc<Made>, Option<Shared>);

impl UserData for Handle {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        // In `server "address" { ... }` a table follows the name.
        methods.add_meta_method("__call", |lua, handle, table: mlua::Table| {
            if handle.1.is_none() {
                return Err(raise(Problem::at(
                    &caller(lua),
                    format!("a {} is not a function", handle.0.builder),
                )));
            }
            let made = Made { table: read_table(lua, &table, 0)?, ..(*handle.0).clone() };
            Ok(Handle(Arc::new(made), None))
        });
    }
}

/// Returns the location of the Lua code that made the call.
fn caller(lua: &Lua) -> Location {
    let of_level = |level| {
        lua.inspect_stack(level, |debug| {
            let file: Option<Arc<str>> =
                debug.source().source.and_then(|source| Some(source.strip_prefix('@')?.into()));
            Some(Location { file: file?, line: debug.current_line()? as u32 })
        })
    };
    let location = (0..8).find_map(|level| of_level(level).flatten());
    location.unwrap_or_else(|| Location { file: "configuration".into(), line: 1 })
}

fn builder_function(lua: &Lua, state: &Shared, builder: &'static Builder) -> mlua::Result<Function> {
    let state = Arc::clone(state);
    let name = builder.name;
    match builder.form {
        Form::Plain => lua.create_function(move |lua, table: Option<mlua::Table>| {
            let table = table.map(|table| read_table(lua, &table, 0)).transpose()?.unwrap_or_default();
            Ok(Handle(Arc::new(Made { builder: name, name: None, table, location: caller(lua) }), None))
        }),
        Form::Named => lua.create_function(move |lua, address: mlua::Value| {
            let location = caller(lua);
            let address = name_of(name, address, &location)?;
            let made = Made { builder: name, name: Some(address), table: Table::default(), location };
            Ok(Handle(Arc::new(made), Some(Arc::clone(&state))))
        }),
        Form::Declaration => lua.create_function(move |lua, given: mlua::Value| {
            let location = caller(lua);
            let given = name_of(name, given, &location)?;
            lock(&state).open.push((name, given.clone(), location));
            declaration(lua, &state, name, given)
        }),
    }
}

fn name_of(builder: &str, value: mlua::Value, location: &Location) -> mlua::Result<String> {
    match value {
        mlua::Value::String(text) => Ok(text.to_string_lossy()),
        _ => Err(raise(Problem::at(
            location,
            format!("{builder} needs a name first: {builder} \"name\" {{ ... }}"),
        ))),
    }
}

/// Returns the function that takes the body of a declaration.
fn declaration(lua: &Lua, state: &Shared, builder: &'static str, name: String) -> mlua::Result<Function> {
    let state = Arc::clone(state);
    lua.create_function(move |lua, table: mlua::Value| {
        let location = caller(lua);
        let mlua::Value::Table(table) = table else {
            return Err(raise(Problem::at(
                &location,
                format!("{builder} \"{name}\" needs a table: {{ ... }}"),
            )));
        };
        let made = Arc::new(Made {
            builder,
            name: Some(name.clone()),
            table: read_table(lua, &table, 0)?,
            location,
        });
        let mut state = lock(&state);
        state.open.retain(|(open, of, _)| (*open, of) != (builder, &name));
        let declared = if builder == "pool" { &mut state.run.pools } else { &mut state.run.services };
        declared.push(Arc::clone(&made));
        Ok(Handle(made, None))
    })
}

fn read_table(lua: &Lua, table: &mlua::Table, depth: usize) -> mlua::Result<Table> {
    let mut read = Table::default();
    let length = table.raw_len() as i64;
    for at in 1..=length {
        read.list.push(read_value(lua, table.raw_get(at)?, depth)?);
    }
    for pair in table.pairs::<mlua::Value, mlua::Value>() {
        let (key, value) = pair?;
        match key {
            mlua::Value::Integer(at) if (1..=length).contains(&at) => {}
            mlua::Value::String(key) => {
                drop(read.named.insert(key.to_string_lossy(), read_value(lua, value, depth)?));
            }
            other => {
                drop(read.named.insert(format!("[{}]", other.to_string()?), read_value(lua, value, depth)?));
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
        mlua::Value::Table(_) if depth >= TABLE_DEPTH_MAX => Value::Other("table nested too deeply"),
        mlua::Value::Table(table) => Value::Table(read_table(lua, &table, depth + 1)?),
        mlua::Value::Function(_) => Value::Other("function: call it with braces or parentheses"),
        mlua::Value::UserData(data) => match data.borrow::<Handle>() {
            Ok(handle) => Value::Made(Arc::clone(&handle.0)),
            Err(_) => Value::Unknown,
        },
        mlua::Value::Nil => Value::Other("nil"),
        _ => Value::Other("value that a configuration cannot have"),
    })
}

fn add_include(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let state = Arc::clone(state);
    let include = lua.create_function(move |lua, name: String| {
        let location = caller(lua);
        let path = {
            let mut state = lock(&state);
            state.includes += 1;
            if state.includes > INCLUDES_MAX {
                let message = format!(
                    "more than {INCLUDES_MAX} files are included: check for a file that includes itself"
                );
                return Err(raise(Problem::at(&location, message)));
            }
            let directory = state.files.last().and_then(|file| file.parent()).map(Path::to_owned);
            directory.unwrap_or_default().join(&name)
        };
        run_file(lua, &state, &path).map_err(|error| match problem_of(&error) {
            Problem { location: None, message } => raise(Problem::at(&location, message)),
            problem => raise(problem),
        })
    })?;
    lua.globals().raw_set("include", include)
}

fn run_file(lua: &Lua, state: &Shared, path: &Path) -> mlua::Result<()> {
    let name: Arc<str> = path.display().to_string().into();
    let text = read_file(path).map_err(|why| raise(Problem::new(format!("{name}: {why}"))))?;
    {
        let mut state = lock(state);
        state.run.sources.push(Source::new(Arc::clone(&name), &text));
        state.files.push(path.to_owned());
    }
    let outcome = lua.load(text).set_name(format!("@{name}")).set_mode(mlua::chunk::ChunkMode::Text).exec();
    lock(state).files.pop();
    outcome
}

fn read_file(path: &Path) -> Result<String, String> {
    let explain = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "the file does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a directory, not a file".to_owned(),
        _ => format!("it cannot be read: {error}"),
    };
    let meta = std::fs::metadata(path).map_err(explain)?;
    if !meta.is_file() && !meta.is_dir() {
        return Err("it is not a file".into());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(explain)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(explain)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it is larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}
