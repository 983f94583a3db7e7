//! Raw declarations of a configuration, not yet validated: Lua values with their locations.

use super::Location;
use super::locate::Source;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// An undefined name, which was recorded as a problem.
    Unknown,
    /// A value that a configuration cannot have.
    Other(&'static str),
}

impl Value {
    /// Returns a description for messages.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Bool(value) => format!("{value}"),
            Self::Int(value) => format!("the number {value}"),
            Self::Number(value) => format!("the number {value}"),
            Self::Text(text) => format!("`{text}`"),
            Self::Bytes(_) => "a string of bytes".into(),
            Self::Table(_) => "a table".into(),
            Self::Made(made) => format!("a {}", made.builder),
            Self::Unknown => "a name that is not defined".into(),
            Self::Other(kind) => format!("a {kind}"),
        }
    }
}

/// A table with its list part and its named part.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) list: Vec<Value>,
    pub(super) named: BTreeMap<String, Value>,
}

/// A value made by a builder.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// Name of the builder: `server`, `pool`, `check.http` and so on.
    pub(super) builder: &'static str,
    /// Name of the value, if the builder takes one.
    pub(super) name: Option<String>,
    pub(super) table: Table,
    pub(super) location: Location,
}

/// Result of a run of the configuration.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) pools: Vec<Arc<Made>>,
    pub(super) services: Vec<Arc<Made>>,
    /// Path of the database of countries, and the location that names it.
    pub(super) geoip: Option<(String, Location)>,
    /// Problems found while it ran (unknown globals).
    pub(super) problems: Vec<super::Problem>,
    /// The files of the configuration.
    pub(super) sources: Vec<Source>,
}

impl Run {
    /// Returns the location of a key or text inside the declaration that begins at `location`, as exactly as
    /// possible.
    pub(super) fn refine(&self, location: &Location, path: &[&str]) -> Location {
        let source = self.sources.iter().find(|source| source.file == location.file);
        let line = source.and_then(|source| source.find(location.line, path)).unwrap_or(location.line);
        Location { file: Arc::clone(&location.file), line }
    }
}
