//! What a configuration declared, before it is known to make sense: Lua values with the places they came from.

use super::Place;
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
    /// What a builder such as `check.http` or `server` made.
    Made(Arc<Made>),
    /// A name that is not defined; that was noted already.
    Unknown,
    /// Something that has no meaning in a configuration.
    Other(&'static str),
}

impl Value {
    /// What it is, for messages.
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

/// A table: its list part and its named part.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) list: Vec<Value>,
    pub(super) named: BTreeMap<String, Value>,
}

/// A value that a builder made.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// `server`, `pool`, `check.http` and so on.
    pub(super) builder: &'static str,
    /// The name it was given, if the builder takes one.
    pub(super) name: Option<String>,
    pub(super) table: Table,
    pub(super) place: Place,
}

/// All that a run of the configuration left.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) pools: Vec<Arc<Made>>,
    pub(super) services: Vec<Arc<Made>>,
    /// The database of countries, and where it was named.
    pub(super) geoip: Option<(String, Place)>,
    /// Problems met while it ran (unknown globals).
    pub(super) problems: Vec<super::Problem>,
    /// The files it consists of.
    pub(super) sources: Vec<Source>,
}

impl Run {
    /// The place of a key or text inside the declaration that begins at `place`, as exactly as the source tells.
    pub(super) fn refine(&self, place: &Place, path: &[&str]) -> Place {
        let source = self.sources.iter().find(|source| source.file == place.file);
        let line = source.and_then(|source| source.find(place.line, path)).unwrap_or(place.line);
        Place { file: Arc::clone(&place.file), line }
    }
}
