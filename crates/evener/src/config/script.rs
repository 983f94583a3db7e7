//! Functions of the configuration that run later: `check = function(server, pool) ... end`,
//! `check.script { run = function ... }`, `every` and `on`.

use super::build::read_server;
use super::fields::{Fields, Reading};
use super::lua::{self, builders};
use super::raw::{self, Run, Value};
use super::scalar::parse_duration;
use super::{Location, Problem};
use crate::scope;
use evener_core::Endpoint;
use evener_core::spec::{CheckKind, CheckSpec, OnScriptError, ScriptFunction, ServerSpec};
use mlua::{Function, Lua};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time limit of a script that checks a server.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Declarations of what runs later.
#[derive(Debug, Default)]
pub(super) struct Declared {
    functions: Vec<(Function, Location)>,
    /// Numbers of the functions by identity.
    numbers: BTreeMap<usize, usize>,
    timers: Vec<(Duration, usize)>,
    handlers: Vec<(String, usize)>,
    allowed: BTreeSet<String>,
}

impl Declared {
    /// Adds a function, and returns its number; `None` if there are too many.
    pub(super) fn function(&mut self, function: Function, location: &Location, most: usize) -> Option<usize> {
        let next = self.functions.len();
        if next >= most {
            return None;
        }
        let number = *self.numbers.entry(function.to_pointer() as usize).or_insert(next);
        if number == next {
            self.functions.push((function, location.clone()));
        }
        Some(number)
    }

    /// Runs a function at an interval.
    pub(super) fn every(&mut self, interval: Duration, number: usize) {
        self.timers.push((interval, number));
    }

    /// Runs a function when an event happens.
    pub(super) fn on(&mut self, event: &str, number: usize) {
        self.handlers.push((event.to_owned(), number));
    }

    /// Allows functions to run these programs.
    pub(super) fn allowing(self, programs: &BTreeSet<String>) -> Self {
        Self { allowed: programs.clone(), ..self }
    }
}

/// The functions of a configuration that run later, with the state of Lua in which they were defined.
pub(crate) struct Program {
    lua: Lua,
    declared: Declared,
    path: PathBuf,
    /// Text of the file, if it was given.
    text: Option<lua::Text>,
    /// Hash of the files.
    fingerprint: u64,
}

impl fmt::Debug for Program {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Program").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Program {
    /// Creates a program, unless nothing runs later.
    pub(super) fn new(
        lua: Lua,
        declared: Declared,
        file: (&Path, Option<lua::Text>),
        fingerprint: u64,
    ) -> Option<Self> {
        let (path, text) = (file.0.to_owned(), file.1);
        (!declared.functions.is_empty()).then(|| Self { lua, declared, path, text, fingerprint })
    }

    /// Returns a hash of the files.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Runs the file again, and returns its functions. Fails if the files changed, because the instance has the
    /// other settings of the old files.
    pub(crate) fn again(&self) -> Result<Self, String> {
        let mut run = lua::run(&self.path, self.text.clone()).map_err(|problems| {
            problems.first().map_or_else(|| "the file is invalid".into(), ToString::to_string)
        })?;
        run.take_program()
            .filter(|program| program.fingerprint == self.fingerprint)
            .ok_or_else(|| format!("{} changed: reload it", self.path.display()))
    }

    /// Returns the state of Lua. From now on, functions can no longer declare anything.
    pub(crate) fn begin(&self) -> mlua::Result<&Lua> {
        lua::end_declarations(&self.lua)?;
        Ok(&self.lua)
    }

    /// Returns a function and its location.
    pub(crate) fn function(&self, number: usize) -> Option<(&Function, String)> {
        let (function, location) = self.declared.functions.get(number)?;
        Some((function, location.to_string()))
    }

    /// Returns the intervals of timers, with their functions.
    pub(crate) fn timers(&self) -> &[(Duration, usize)] {
        &self.declared.timers
    }

    /// Returns the names of events, with the functions that handle them.
    pub(crate) fn handlers(&self) -> &[(String, usize)] {
        &self.declared.handlers
    }

    /// Returns the paths of the programs that functions may run.
    pub(crate) fn allowed(&self) -> &BTreeSet<String> {
        &self.declared.allowed
    }
}

/// Returns the check that a plain function makes.
pub(super) fn plain(reading: &Reading<'_>, function: &raw::Function) -> CheckSpec {
    let function = function.in_run(reading.run());
    with_defaults(CheckSpec::new(CheckKind::Script { function, on_error: OnScriptError::Keep }))
}

/// Returns a check with the defaults of its kind.
pub(super) fn with_defaults(spec: CheckSpec) -> CheckSpec {
    match spec.kind {
        CheckKind::Script { .. } => CheckSpec { timeout: TIMEOUT, ..spec },
        _ => spec,
    }
}

/// Reads `check.script { run = function(server, pool) ... end, on_error = "down" }`.
pub(super) fn read(fields: &mut Fields<'_>) -> CheckKind {
    let function = match fields.take("run") {
        Some(Value::Function(function)) => Some(function.in_run(fields.reading().run())),
        Some(Value::Unknown) => None,
        Some(_) => {
            fields.must("run", "be a function: write run = function(server, pool) ... end");
            None
        }
        None => {
            fields.problem_here("a script needs a function: write run = function(server, pool) ... end");
            None
        }
    };
    let on_error = fields.word("on_error", &OnScriptError::ALL.map(OnScriptError::name), |word| {
        OnScriptError::ALL.into_iter().find(|effect| effect.name() == word)
    });
    let nothing = ScriptFunction { number: 0, location: "".into(), source: "".into() };
    CheckKind::Script { function: function.unwrap_or(nothing), on_error: on_error.unwrap_or_default() }
}

/// Reads a server that a script adds, as the configuration reads the servers of a pool.
pub(crate) fn added_server(
    lua: &Lua,
    address: &str,
    settings: Option<&mlua::Table>,
    location: &Location,
) -> mlua::Result<Result<ServerSpec, Vec<Problem>>> {
    let table = match settings {
        Some(table) => builders::read_table(lua, table, 0)?,
        None => raw::Table::EMPTY,
    };
    let run = Run::default();
    let reading = Reading::new(&run);
    let server = match scope::server(address) {
        Ok(server) if matches!(server.endpoint, Endpoint::Host { .. }) => {
            let message = format!("a script can add only addresses, got the host name {address:?}");
            return Ok(Err(vec![Problem::at(location, message)]));
        }
        Ok(server) => server,
        Err(error) => {
            let why = super::server_problem(address, &error, 80);
            return Ok(Err(vec![Problem::at(location, why)]));
        }
    };
    let mut fields = Fields::of_server(&reading, &table, location, address, &[]);
    let server = read_server(server, table.list().first(), &mut fields);
    fields.finish();
    Ok(if reading.is_valid() { Ok(server) } else { Err(reading.into_problems()) })
}

/// Parses a duration such as "500ms".
pub(crate) fn duration(text: &str) -> Option<Duration> {
    parse_duration(&Value::Text(text.to_owned())).ok()
}

/// Returns the message of an error without its location.
pub(crate) fn message_of(error: &mlua::Error) -> String {
    lua::problem_of(error).into_message()
}

/// Returns the message of an error in a function, with its location if it is known.
pub(crate) fn error_text(error: &mlua::Error) -> String {
    lua::problem_of(error).to_string()
}
