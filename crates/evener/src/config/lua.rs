//! Runs a configuration file in a sandboxed Lua, which has no access to files and processes and cannot load
//! code. Its memory, instructions and time are bounded.

pub(super) mod builders;
mod exec;
mod file;
mod functions;
#[cfg(test)]
pub(super) mod names;

pub(crate) use file::FILE_BYTES_MAX;

use super::functions as runtime;
use super::hints::Undefined;
use super::locate::Source;
use super::problem::sorted;
use super::raw::{Run, shown};
use super::{Location, Problem};
use crate::output::printable;
use mlua::debug::Debug;
use mlua::{
    Function, HookTriggers, IntoLua, Lua, LuaOptions, MultiValue, StdLib, UserData, UserDataMethods, VmState,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MEMORY_BYTES_MAX: usize = 256 << 20;
const INSTRUCTIONS_MAX: u64 = 500_000_000;
const INSTRUCTIONS_STEP: u32 = 10_000;
// Tests have a longer limit, so that they do not fail on a busy machine.
const TIME_MAX: Duration = Duration::from_secs(if cfg!(test) { 600 } else { 20 });
const INCLUDES_MAX: usize = 64;
/// Depth of braces and parentheses that the parser of Lua accepts (`LUAI_MAXCCALLS`), less its own calls.
const DEPTH_MAX: usize = 190;
/// Maximum number of problems that are recorded while the file runs.
const PROBLEMS_MAX: usize = 1000;

const UNCHECKED: &str = "note: the rest of the configuration was not checked because of this error";

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

/// Tables of functions that make values.
pub(super) const NAMESPACES: [&str; 3] = ["check", "discover", "policy"];

type Shared = Arc<Mutex<State>>;

#[derive(Default)]
struct State {
    run: Run,
    /// Declarations that still wait for their table.
    open: Vec<(&'static str, String, Location)>,
    /// Files being run, the innermost last.
    files: Vec<PathBuf>,
    includes: usize,
    /// Text of the first file, if it is not read from its path.
    text: Option<Text>,
}

/// The text of a configuration that was given instead of its file.
pub(super) type Text = Arc<[u8]>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of runs that took too long and still continue.
static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// Runs the file and all files that it includes. A given text replaces the file itself, not the files that it includes.
pub(super) fn run(path: &Path, text: Option<Text>) -> Result<Run, Vec<Problem>> {
    // A second run would only add to the load of the abandoned run.
    if !cfg!(test) && ABANDONED.load(Ordering::Relaxed) > 0 {
        let message = "an earlier run of the configuration has not ended: try again later, or restart evener";
        return Err(vec![Problem::new(format!("{}: {message}", path.display()))]);
    }
    let (done, result) = channel();
    let path = path.to_owned();
    let name = path.display().to_string();
    // Set by the first of two events: the end of the run, or the timeout.
    let settled = Arc::new(AtomicBool::new(false));
    let run_settled = Arc::clone(&settled);
    let thread = std::thread::Builder::new().name("configuration".into());
    let started = thread.spawn(move || {
        drop(done.send(run_here(&path, text)));
        if run_settled.swap(true, Ordering::AcqRel) {
            ABANDONED.fetch_sub(1, Ordering::Relaxed);
        }
    });
    if let Err(error) = started {
        return Err(vec![Problem::new(format!("{name}: cannot start a thread to run it: {error}"))]);
    }
    match result.recv_timeout(TIME_MAX) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            ABANDONED.fetch_add(1, Ordering::Relaxed);
            if settled.swap(true, Ordering::AcqRel) {
                ABANDONED.fetch_sub(1, Ordering::Relaxed);
            }
            Err(vec![Problem::new(format!(
                "{name}: the configuration ran for more than {TIME_MAX:?}: make it faster"
            ))])
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(vec![Problem::new(format!("{name}: the configuration could not be run"))])
        }
    }
}

fn run_here(path: &Path, text: Option<Text>) -> Result<Run, Vec<Problem>> {
    let state = Shared::default();
    lock(&state).text.clone_from(&text);
    let outcome = sandbox(&state).and_then(|lua| {
        let before = names_of_values(&lua)?;
        run_file(&lua, &state, path)?;
        let program = functions::take(&lua, (path, text), &lock(&state).run);
        let mut set = names_of_values(&lua)?;
        set.retain(|name| !before.contains(name));
        let mut state = lock(&state);
        state.run.set_globals(set);
        program.into_iter().for_each(|program| state.run.set_program(program));
        Ok(())
    });
    let mut state = std::mem::take(&mut *lock(&state));
    // If an error ended the run, missing bodies are not reported: they may come after the error.
    for (builder, name, location) in state.open.drain(..).filter(|_| outcome.is_ok()) {
        let message = format!("{builder} \"{name}\" has no body: write {builder} \"{name}\" {{ ... }}");
        state.run.record(Problem::at(&location, message));
        state.run.declare_unknown(builder, &name, &location);
    }
    match outcome {
        Ok(()) => Ok(state.run),
        Err(error) => {
            let problem = problem_of(&error);
            let is_located = problem.is_located() && !problem.is_about_another_language();
            state.run.record(problem);
            let mut problems = sorted(state.run.problems().to_vec());
            problems.extend(is_located.then(|| Problem::new(UNCHECKED)));
            Err(problems)
        }
    }
}

/// Returns the names of the globals that are not functions, sorted.
fn names_of_values(lua: &Lua) -> mlua::Result<Vec<String>> {
    let mut names = Vec::new();
    for pair in lua.globals().pairs::<mlua::Value, mlua::Value>() {
        let (name, value) = pair?;
        names.extend(text_of(&name).filter(|_| !value.is_function()));
    }
    names.sort();
    Ok(names)
}

/// Converts a Lua error to a problem. Lua puts `file:line: ` in front of the message.
pub(super) fn problem_of(error: &mlua::Error) -> Problem {
    let text = match error {
        mlua::Error::CallbackError { cause, .. } => return problem_of(cause),
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        mlua::Error::RuntimeError(message) => message.clone(),
        mlua::Error::MemoryError(_) => {
            format!(
                "the configuration used more than {} MiB of memory: check for a loop that builds ever larger tables or texts",
                MEMORY_BYTES_MAX >> 20
            )
        }
        mlua::Error::ExternalError(inner) => match inner.downcast_ref::<Problem>() {
            Some(problem) => return problem.clone(),
            None => inner.to_string(),
        },
        other => other.to_string(),
    };
    let text = text.replace("a Handle value", "a declared value");
    let first = text.lines().next().unwrap_or_default();
    let placed = first.split_once(": ").and_then(|(location, message)| {
        let (file, line) = location.rsplit_once(':')?;
        Some(Problem::at(&Location::new(file, line.parse().ok()?), format!("{message}{}", advice(message))))
    });
    placed.unwrap_or_else(|| Problem::new(first))
}

/// Returns advice for an error of the Lua interpreter.
fn advice(message: &str) -> &'static str {
    match message {
        _ if message.starts_with("attempt to index a declared value") => ": write its keys inside its braces",
        _ if message.starts_with("attempt to ") && message.contains("'string'") => {
            ": a prefix, or an address with its port, is one text such as \"10.0.0.0/8\"; texts are joined with .."
        }
        _ if message.starts_with("stack overflow") => ": a function calls itself without end",
        "attempt to index a function value (global 'pool')" => ": write pool = \"web\"",
        "attempt to index a function value (global 'service')" => ": a service cannot be referred to",
        _ => "",
    }
}

pub(crate) fn raise(problem: Problem) -> mlua::Error {
    mlua::Error::external(problem)
}

fn sandbox(state: &Shared) -> mlua::Result<Lua> {
    let libraries = StdLib::COROUTINE | StdLib::STRING | StdLib::TABLE | StdLib::MATH | StdLib::UTF8;
    // Without this option, mlua replaces `pcall` by a function in which calls cannot pause.
    let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(true))?;
    lua.set_memory_limit(MEMORY_BYTES_MAX)?;
    let globals = lua.globals();
    for name in REMOVED {
        globals.raw_remove(*name)?;
    }
    globals.get::<mlua::Table>("string")?.raw_remove("dump")?;
    functions::add(&lua, state)?;
    bound_instructions(&lua)?;
    runtime::install(&lua)?;
    hide_coroutines(&lua)?;
    for namespace in NAMESPACES {
        globals.raw_set(namespace, lua.create_table()?)?;
    }
    builders::add(&lua, state)?;
    exec::add(&lua, state)?;
    add_include(&lua, state)?;
    add_geoip(&lua, state)?;
    add_environment(&lua, state)?;
    add_print(&lua)?;
    add_error(&lua)?;
    guard_metatables(&lua)?;
    watch_unknown_names(&lua, state)?;
    Ok(lua)
}

/// Name of the library of coroutines in the registry.
const COROUTINE: &str = "coroutine";

/// Hides the library of coroutines from the configuration, but not from mlua, which needs `coroutine.yield`.
fn hide_coroutines(lua: &Lua) -> mlua::Result<()> {
    let globals = lua.globals();
    let library: mlua::Table = globals.raw_get(COROUTINE)?;
    lua.set_named_registry_value(COROUTINE, library)?;
    globals.raw_remove(COROUTINE)
}

/// Returns the hidden library of coroutines if mlua reads it, and not code of a file.
fn hidden(lua: &Lua, name: &str) -> mlua::Result<Option<mlua::Table>> {
    let by_file = || lua.inspect_stack(1, |debug| debug.source().what != "C").unwrap_or(false);
    if name != COROUTINE || by_file() {
        return Ok(None);
    }
    lua.named_registry_value(COROUTINE).map(Some)
}

/// Ends the time of declarations, before functions run: names of declarations and unknown names are errors now.
pub(super) fn end_declarations(lua: &Lua) -> mlua::Result<()> {
    lua.remove_app_data::<builders::Budget>();
    lua.remove_hook();
    let globals = lua.globals();
    for name in builders::names().chain(["include", "geoip", "every", "on"]) {
        let refused = lua.create_function(move |lua, _: MultiValue| -> mlua::Result<()> {
            let message = format!("{name} declares: it cannot be called in a function that runs later");
            Err(raise(Problem::at(&caller(lua), message)))
        })?;
        globals.raw_set(name, refused)?;
    }
    let meta = lua.create_table()?;
    let index = lua.create_function(|lua, (_, name): (mlua::Value, mlua::Value)| {
        if let Some(library) = hidden(lua, &name.to_string()?)? {
            return Ok(library);
        }
        // A nil value is false in a condition, but a misspelt name is more probable.
        let message = format!("`{}` is not defined", name.to_string()?);
        Err(raise(Problem::at(&caller(lua), message)))
    })?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__metatable", false)?;
    globals.set_metatable(Some(meta))
}

/// Adds `env "NAME"`. An unset variable is a problem unless there is a default; `env("NAME", false)` returns
/// nil if the variable is unset.
fn add_environment(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let state = Arc::clone(state);
    let environment = lua.create_function(move |lua, (name, default): (mlua::Value, mlua::Value)| {
        let Some(name) = text_of(&name) else {
            return wrong(lua, &state, &name, "env takes the name of a variable, such as env \"PORT\"");
        };
        match (std::env::var(&name), default) {
            (Ok(value), _) => value.into_lua(lua),
            (Err(_), mlua::Value::Boolean(false)) => Ok(mlua::Value::Nil),
            (Err(_), mlua::Value::Nil) => {
                let message = format!(
                    "the environment variable {name} is not set: set it, or give a default: env(\"{name}\", \"...\")"
                );
                record(&state, Problem::at(&caller(lua), message))?;
                Unknown.into_lua(lua)
            }
            (Err(_), default) => Ok(default),
        }
    })?;
    lua.globals().raw_set("env", environment)
}

/// Adds `geoip "FILE"`, which names the database of countries.
fn add_geoip(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let state = Arc::clone(state);
    let geoip = lua.create_function(move |lua, file: mlua::Value| {
        match text_of(&file) {
            Some(file) => lock(&state).run.use_geoip(file, caller(lua)),
            None => drop(wrong(
                lua,
                &state,
                &file,
                "geoip takes a file, such as geoip \"GeoLite2-Country.mmdb\"",
            )?),
        }
        Ok(())
    })?;
    lua.globals().raw_set("geoip", geoip)
}

/// Adds `print`, which writes to standard error for the author of the file.
fn add_print(lua: &Lua) -> mlua::Result<()> {
    let print = lua.create_function(|lua, values: MultiValue| {
        let texts: Vec<String> = values.iter().map(mlua::Value::to_string).collect::<mlua::Result<_>>()?;
        let location = caller(lua);
        let texts: Vec<_> = texts.iter().map(|text| printable(text)).collect();
        eprintln!("{}: {}", printable(&location.to_string()), texts.join("\t"));
        Ok(())
    })?;
    lua.globals().raw_set("print", print)
}

/// Adds an `error` that reports its line also if it raises a value that is not text.
fn add_error(lua: &Lua) -> mlua::Result<()> {
    let globals = lua.globals();
    let original: Function = globals.raw_get("error")?;
    let error = lua.create_function(move |lua, (value, level): (mlua::Value, Option<i64>)| {
        match value {
            // The level counts this function, too.
            mlua::Value::String(_) | mlua::Value::Nil => {
                let level = level.unwrap_or(1);
                original.call::<()>((value, if level > 0 { level + 1 } else { 0 }))
            }
            other => {
                let message = format!("error was called with {}: write error(\"text\")", type_of(&other));
                Err(raise(Problem::at(&caller(lua), message)))
            }
        }
    })?;
    globals.raw_set("error", error)
}

/// Adds a `setmetatable` that refuses finalizers (`__gc`), because Lua runs finalizers without counting
/// instructions.
fn guard_metatables(lua: &Lua) -> mlua::Result<()> {
    let guarded = lua.create_function(|lua, (table, meta): (mlua::Table, Option<mlua::Table>)| {
        if meta.as_ref().is_some_and(|meta| !matches!(meta.raw_get("__gc"), Ok(mlua::Value::Nil))) {
            return Err(raise(Problem::at(&caller(lua), "a metatable must not have __gc")));
        }
        if table.equals(&lua.globals())? {
            return Err(raise(Problem::at(&caller(lua), "the metatable of the globals cannot be changed")));
        }
        // A `__gc` that is added to the metatable later has no effect: Lua checks for it only when the
        // metatable is set.
        table.set_metatable(meta)?;
        Ok(table)
    })?;
    lua.globals().raw_set("setmetatable", guarded)
}

/// Counts instructions. When the maximum is exceeded, the run fails with an error that `pcall` does not catch.
fn bound_instructions(lua: &Lua) -> mlua::Result<()> {
    let used = Arc::new(AtomicU64::new(0));
    let exceeded = |used: &AtomicU64| used.load(Ordering::Relaxed) > INSTRUCTIONS_MAX;
    let counter = Arc::clone(&used);
    lua.set_hook(HookTriggers::new().every_nth_instruction(INSTRUCTIONS_STEP), move |lua, debug| {
        counter.fetch_add(u64::from(INSTRUCTIONS_STEP), Ordering::Relaxed);
        if exceeded(&counter) {
            let message = format!(
                "the configuration ran more than {} million instructions: check for an endless loop",
                INSTRUCTIONS_MAX / 1_000_000
            );
            let location = location_of(debug).unwrap_or_else(|| caller(lua));
            return Err(raise(Problem::at(&location, message)));
        }
        Ok(VmState::Continue)
    })?;
    lua.set_app_data(runtime::Stopped::new(move || exceeded(&used)));
    Ok(())
}

/// Records unknown names as problems and replaces them with harmless values, so that the rest of the file is
/// still checked. Also applies to the members of [`NAMESPACES`].
fn watch_unknown_names(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let globals = lua.globals();
    for namespace in NAMESPACES {
        watch(lua, state, &globals.get(namespace)?, &format!("{namespace}."))?;
    }
    watch(lua, state, &globals, "")
}

fn watch(lua: &Lua, state: &Shared, table: &mlua::Table, prefix: &str) -> mlua::Result<()> {
    let meta = lua.create_table()?;
    let (state, prefix) = (Arc::clone(state), prefix.to_owned());
    if let Some(namespace) = prefix.strip_suffix('.') {
        let right = match namespace {
            "discover" => "discover is not a function: write discover.dns \"app.example:80\"",
            "policy" => "policy is not a function: write policy = \"least_conn\"",
            _ => "check is not a function: write check = check.http { path = \"/health\" }",
        };
        let state = Arc::clone(&state);
        let call = lua.create_function(move |lua, _: MultiValue| {
            record(&state, Problem::at(&caller(lua), right))?;
            Ok(Unknown)
        })?;
        meta.raw_set("__call", call)?;
    }
    let index = lua.create_function(move |lua, (table, name): (mlua::Table, mlua::Value)| {
        let name = name.to_string()?;
        if let Some(library) = hidden(lua, &name)? {
            return library.into_lua(lua);
        }
        let location = caller(lua);
        let hint = {
            let state = lock(&state);
            let undefined = Undefined::new(&prefix, &name, &state.run, &location);
            let fits = |value: &mlua::Value| undefined.may_be_function() || !value.is_function();
            let defined = table.pairs::<String, mlua::Value>().flatten().filter(|(_, value)| fits(value));
            undefined.hint(&defined.map(|(name, _)| name).collect::<Vec<_>>())
        };
        record(&state, Problem::at(&location, format!("`{prefix}{name}` is not defined{hint}")))?;
        Unknown.into_lua(lua)
    })?;
    meta.raw_set("__index", index)?;
    meta.raw_set("__metatable", false)?;
    table.set_metatable(Some(meta))
}

/// Records a problem and continues, so that the rest of the file is still checked. Fails if there are too many
/// problems.
fn record(state: &Shared, problem: Problem) -> mlua::Result<()> {
    if lock(state).run.record(problem.clone()) > PROBLEMS_MAX {
        return Err(raise(problem));
    }
    Ok(())
}

/// Records that a function got a wrong argument, unless the argument is the value of an unknown name, which is
/// a problem already. Returns an unknown value.
fn wrong(lua: &Lua, state: &Shared, given: &mlua::Value, message: &str) -> mlua::Result<mlua::Value> {
    if !is_unknown(given) {
        record(state, Problem::at(&caller(lua), message))?;
    }
    Unknown.into_lua(lua)
}

fn is_unknown(value: &mlua::Value) -> bool {
    matches!(value, mlua::Value::UserData(data) if data.is::<Unknown>())
}

/// Returns the text of a string.
fn text_of(value: &mlua::Value) -> Option<String> {
    match value {
        mlua::Value::String(text) => Some(text.to_string_lossy()),
        _ => None,
    }
}

/// Returns the type of a value with an article.
fn type_of(value: &mlua::Value) -> String {
    match value.type_name() {
        "nil" => "nothing".into(),
        "integer" => "a number".into(),
        "userdata" => "a declared value".into(),
        name => format!("a {name}"),
    }
}

/// The value of an unknown name. It can be called, indexed, computed with and ignored. As a list, it is empty.
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

/// Returns the location of the Lua code that made the call.
pub(crate) fn caller(lua: &Lua) -> Location {
    let of_level = |level| lua.inspect_stack(level, location_of).flatten();
    (0..8).find_map(of_level).unwrap_or_else(|| Location::new("configuration", 1))
}

/// Returns the current location in a running function, if the function belongs to the configuration.
pub(crate) fn location_of(debug: &Debug<'_>) -> Option<Location> {
    let source = debug.source().source?;
    Some(Location::new(source.strip_prefix('@')?, debug.current_line()? as u32))
}

/// Adds `include "FILE"`.
fn add_include(lua: &Lua, state: &Shared) -> mlua::Result<()> {
    let state = Arc::clone(state);
    let include = lua.create_function(move |lua, given: mlua::Value| {
        let Some(name) = text_of(&given) else {
            return wrong(lua, &state, &given, "include takes a file, such as include \"pools.lua\"")
                .map(drop);
        };
        let location = caller(lua);
        if name.contains(['*', '?']) {
            let message = format!("include takes one file, not a pattern, got {}", shown(&name));
            return Err(raise(Problem::at(&location, message)));
        }
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
        run_file(lua, &state, &path).map_err(|error| raise(problem_of(&error).or_at(&location)))
    })?;
    lua.globals().raw_set("include", include)
}

fn run_file(lua: &Lua, state: &Shared, path: &Path) -> mlua::Result<()> {
    let name: Arc<str> = path.display().to_string().into();
    let given = lock(state).text.take();
    let text = given.map_or_else(|| file::read(path, &name), |given| file::text(given.to_vec(), &name));
    let text = text.map_err(raise)?;
    {
        let mut state = lock(state);
        state.run.add_source(Source::new(Arc::clone(&name), &text));
        state.files.push(path.to_owned());
    }
    let outcome = lua.load(text).set_name(format!("@{name}")).set_mode(mlua::chunk::ChunkMode::Text).exec();
    let mut state = lock(state);
    state.files.pop();
    outcome.map_err(|error| {
        let problem = match problem_of(&error) {
            problem if problem.is_located() => problem,
            problem if problem.to_string().contains("C stack overflow") => {
                let message = format!("braces or parentheses are nested deeper than {DEPTH_MAX} levels");
                Problem::maybe_at(state.run.too_deep(&name, DEPTH_MAX).as_ref(), message)
            }
            problem => Problem::new(format!("{name}: {problem}")),
        };
        let from_parser = matches!(error, mlua::Error::SyntaxError { .. });
        raise(if from_parser { state.run.explain(problem) } else { problem })
    })
}
