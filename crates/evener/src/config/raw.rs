//! Raw declarations of a configuration, not yet validated: Lua values with their locations.

use super::locate::{Source, Step};
use super::script::Program;
use super::{Location, Problem};
use evener_core::spec::ScriptFunction;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Maximum number of characters of a text in a message.
const SHOWN_CHARS_MAX: usize = 60;

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Bool(bool),
    Int(i64),
    Number(f64),
    Text(String),
    /// A string that is not UTF-8.
    Bytes(Vec<u8>),
    Table(Table),
    /// A value made by a builder such as `check.http` or `server`.
    Made(Arc<Made>),
    /// A function of the configuration.
    Function(Function),
    /// An undefined name, which was recorded as a problem.
    Unknown,
    /// A library of functions with this name.
    Library(&'static str),
    /// A value that a configuration cannot have.
    Other(&'static str),
}

impl Value {
    /// Returns the value as messages show it: `got 5`, `got "five"`, `got a table`.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(text) => shown(text),
            Self::Bytes(_) => "a string that is not UTF-8".into(),
            Self::Table(_) => "a table".into(),
            Self::Made(made) => made.kind().into(),
            Self::Function(_) => "a function: call it with braces or parentheses".into(),
            Self::Unknown => "an undefined name".into(),
            Self::Library(name) => format!("the library {name}"),
            Self::Other(kind) => (*kind).into(),
        }
    }

    /// Returns the number as a text, if the value is a number or a text with only a number.
    pub(super) fn number(&self) -> Option<String> {
        match self {
            Self::Int(_) | Self::Number(_) => Some(self.shown()),
            Self::Text(text) => {
                text.trim().parse::<f64>().ok().filter(|n| n.is_finite()).map(|_| text.trim().into())
            }
            _ => None,
        }
    }

    /// Returns the text of a string.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Returns a text in quotes, with escaped control characters. A long text is cut.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A function of a configuration.
#[derive(Clone, Debug)]
pub(super) struct Function {
    /// Number among the functions of the configuration.
    number: usize,
    location: Location,
    /// The last line.
    last_line: u32,
}

impl Function {
    pub(super) fn new(number: usize, location: Location, last_line: u32) -> Self {
        Self { number, location, last_line }
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Returns the function with its lines in the files of a run.
    pub(super) fn in_run(&self, run: &Run) -> ScriptFunction {
        let source =
            run.source(&self.location).map(|source| source.lines(self.location.line(), self.last_line));
        ScriptFunction {
            number: self.number,
            location: self.location.to_string().into(),
            source: source.unwrap_or_default().into(),
        }
    }
}

/// A table with its list part and its named part.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    list: Vec<Value>,
    named: BTreeMap<String, Value>,
}

impl Table {
    /// A table without values.
    pub(super) const EMPTY: Self = Self { list: Vec::new(), named: BTreeMap::new() };

    /// Adds a value to the list part.
    pub(super) fn push(&mut self, value: Value) {
        self.list.push(value);
    }

    /// Adds a value with a key.
    pub(super) fn insert(&mut self, key: String, value: Value) {
        self.named.insert(key, value);
    }

    /// Returns the list part.
    pub(super) fn list(&self) -> &[Value] {
        &self.list
    }

    /// Returns the list part, or `None` if the table has keys.
    pub(super) fn only_list(&self) -> Option<&[Value]> {
        self.named.is_empty().then_some(&self.list)
    }

    /// Returns the value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.named.get(key)
    }

    /// Returns the keys, sorted.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }
}

/// A value made by a builder.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// Name of the builder: `server`, `pool`, `check.http` and so on.
    builder: &'static str,
    /// Name of the value, empty if the builder takes none.
    name: String,
    table: Table,
    location: Location,
}

impl Made {
    pub(super) fn new(builder: &'static str, name: String, table: Table, location: Location) -> Self {
        Self { builder, name, table, location }
    }

    /// Creates a value whose table is unknown, because the table was wrong or missing.
    pub(super) fn with_unknown_table(builder: &'static str, name: String, location: Location) -> Self {
        let table = Table { list: vec![Value::Unknown], named: BTreeMap::new() };
        Self { builder, name, table, location }
    }

    /// Returns a copy with another table.
    pub(super) fn with(&self, table: Table) -> Self {
        Self { table, ..self.clone() }
    }

    /// Returns the rest of the name of the builder, such as `http` of `check.http`.
    pub(super) fn member_of(&self, namespace: &str) -> Option<&'static str> {
        self.builder.strip_prefix(namespace)?.strip_prefix('.')
    }

    pub(super) fn builder(&self) -> &'static str {
        self.builder
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Returns a noun for messages.
    fn kind(&self) -> &'static str {
        match self.builder {
            "pool" => "a pool",
            "service" => "a service",
            "server" => "a server",
            "prefixes" => "a prefix list",
            "country" => "a country",
            source if source.starts_with("discover.") => "a source of servers",
            policy if policy.starts_with("policy.") => "a policy",
            _ => "a check",
        }
    }
}

/// Result of a run of the configuration.
#[derive(Debug, Default)]
pub(super) struct Run {
    pools: Vec<Arc<Made>>,
    services: Vec<Arc<Made>>,
    /// Settings of the XDP plane.
    xdp: Option<Arc<Made>>,
    /// Settings of the IPVS plane.
    ipvs: Option<Arc<Made>>,
    /// Settings of the admin API.
    admin: Option<Arc<Made>>,
    /// Paths of the programs that may run.
    allowed: BTreeSet<String>,
    /// Path of the database of countries, and the location that names it.
    geoip: Option<(String, Location)>,
    /// Problems found while the files ran, such as undefined names.
    problems: Vec<Problem>,
    /// The files of the configuration.
    sources: Vec<Source>,
    /// Globals that the files set to values that are not functions.
    globals: Vec<String>,
    /// Functions that run later.
    program: Option<Program>,
}

impl Run {
    /// Adds a pool whose table is unknown, so that services can refer to the pool. Does nothing for a service.
    pub(super) fn declare_unknown(&mut self, builder: &'static str, name: &str, location: &Location) {
        if builder == "pool" {
            let made = Made::with_unknown_table(builder, name.to_owned(), location.clone());
            self.pools.push(Arc::new(made));
        }
    }

    /// Adds a pool or service.
    pub(super) fn declare(&mut self, made: Arc<Made>) {
        let declared = if made.builder == "pool" { &mut self.pools } else { &mut self.services };
        declared.push(made);
    }

    /// Records a problem, and returns the number of problems so far.
    pub(super) fn record(&mut self, problem: Problem) -> usize {
        self.problems.push(problem);
        self.problems.len()
    }

    /// Sets the database of countries.
    pub(super) fn use_geoip(&mut self, file: String, location: Location) {
        self.geoip = Some((file, location));
    }

    /// Sets the settings of a plane or of the admin API, and returns the location of earlier settings.
    pub(super) fn set_once(&mut self, made: Arc<Made>) -> Option<Location> {
        let settings = match made.builder {
            "ipvs" => &mut self.ipvs,
            "admin" => &mut self.admin,
            _ => &mut self.xdp,
        };
        settings.replace(made).map(|earlier| earlier.location.clone())
    }

    /// Allows a program to be run.
    pub(super) fn allow(&mut self, path: String) {
        self.allowed.insert(path);
    }

    /// Returns the programs that may be run.
    pub(super) fn allowed(&self) -> &BTreeSet<String> {
        &self.allowed
    }

    /// Returns true if a program may be run.
    pub(super) fn is_allowed(&self, path: &str) -> bool {
        self.allowed.contains(path)
    }

    /// Returns the settings of the XDP plane.
    pub(super) fn xdp(&self) -> Option<&Made> {
        self.xdp.as_deref()
    }

    /// Sets the functions that run later.
    pub(super) fn set_program(&mut self, program: Program) {
        self.program = Some(program);
    }

    /// Returns a hash of the files.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.sources.iter().for_each(|source| source.hash(&mut hasher));
        hasher.finish()
    }

    /// Takes the functions that run later.
    pub(super) fn take_program(&mut self) -> Option<Program> {
        self.program.take()
    }

    /// Returns the settings of the IPVS plane.
    pub(super) fn ipvs(&self) -> Option<&Made> {
        self.ipvs.as_deref()
    }

    /// Returns the settings of the admin API.
    pub(super) fn admin(&self) -> Option<&Made> {
        self.admin.as_deref()
    }

    /// Adds a file of the configuration.
    pub(super) fn add_source(&mut self, source: Source) {
        self.sources.push(source);
    }

    pub(super) fn pools(&self) -> &[Arc<Made>] {
        &self.pools
    }

    pub(super) fn services(&self) -> &[Arc<Made>] {
        &self.services
    }

    /// Returns the path of the database of countries, and the location that names it.
    pub(super) fn geoip(&self) -> Option<&(String, Location)> {
        self.geoip.as_ref()
    }

    /// Sets the globals that the files set to values that are not functions.
    pub(super) fn set_globals(&mut self, globals: Vec<String>) {
        self.globals = globals;
    }

    /// Returns the globals that no file reads, with the location of their assignment.
    pub(super) fn unused_globals(&self) -> Vec<(Location, &str)> {
        // Names that are computed may read any global.
        let by_name = self.sources.iter().any(|source| source.may_read("_G") || source.may_read("_ENV"));
        let unused = |name: &&String| !by_name && !self.sources.iter().any(|source| source.may_read(name));
        let found = self.globals.iter().filter(unused);
        let located = found.filter_map(|name| {
            let at = self.sources.iter().find_map(|source| source.assignment_of(name))?;
            Some((at, name.as_str()))
        });
        located.collect()
    }

    /// Returns the problems found while the file ran.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the beginning of the configuration.
    pub(super) fn beginning(&self) -> Location {
        self.sources.first().map_or_else(|| Location::new("configuration", 1), Source::beginning)
    }

    /// Returns the location of a key or text inside the declaration that begins at `location`, as exactly as
    /// possible.
    pub(super) fn refine(&self, location: &Location, path: &[Step<'_>]) -> Location {
        location.moved(|file, line| self.sources.iter().find(|source| source.is(file))?.find(line, path))
    }

    /// Returns a message for each key that a table of a file has twice, with its location. Lua would use one of
    /// the values and drop the other.
    pub(super) fn repeated_keys(&self) -> Vec<(Location, String)> {
        self.sources.iter().flat_map(Source::repeated_keys).collect()
    }

    /// Returns the file that a location names.
    pub(super) fn source(&self, location: &Location) -> Option<&Source> {
        self.sources.iter().find(|source| source.is(location.file()))
    }

    /// Returns the location at which the braces of a file are nested too deeply for the parser.
    pub(super) fn too_deep(&self, file: &str, depth_max: usize) -> Option<Location> {
        let line = self.sources.iter().find(|source| source.is(file))?.line_of_depth(depth_max)?;
        Some(Location::new(file, line))
    }

    /// Explains an error of the Lua parser.
    pub(super) fn explain(&self, problem: Problem) -> Problem {
        problem.explained(|file, line, message| {
            self.sources.iter().find(|source| source.is(file))?.explain(line, message)
        })
    }
}
