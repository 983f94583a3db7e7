//! Functions of the configuration that failed, and the changes that functions made.

use crate::table::{self, Style, Tone};
use serde::{Deserialize, Serialize};

/// Maximum number of lines about errors, and about changes, in the text of the status.
const LINES_MAX: usize = 10;

/// Functions of the configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ScriptsView {
    /// The last error of each function that failed since the last reload, the latest first.
    errors: Vec<ScriptErrorView>,
    /// Changes that functions made since the last reload, the latest first.
    changes: Vec<ScriptChangeView>,
}

/// The last error of a function.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ScriptErrorView {
    /// File and line of the function.
    script: String,
    error: String,
    /// Number of errors of the function.
    count: u64,
    /// Seconds since the last error.
    age_s: u64,
}

/// A change that a function made.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ScriptChangeView {
    pool: String,
    server: String,
    change: String,
    /// File and line of the call that made the change.
    script: String,
    /// Seconds since the change.
    age_s: u64,
}

impl ScriptErrorView {
    pub(crate) fn new(script: &str, error: &str, count: u64, age_s: u64) -> Self {
        Self { script: script.to_owned(), error: error.to_owned(), count, age_s }
    }

    fn text(&self) -> String {
        let Self { script, error, count, age_s } = self;
        let age = table::seconds(*age_s);
        let times = if *count == 1 { String::new() } else { format!(" {count} times, the last time") };
        // Errors begin with the line that failed, which need not be the line of the function.
        format!("script {script} failed{times} {age} ago: {error}")
    }
}

impl ScriptChangeView {
    pub(crate) fn new((pool, server): (&str, &str), change: &str, script: &str, age_s: u64) -> Self {
        let (pool, server) = (pool.to_owned(), server.to_owned());
        Self { pool, server, change: change.to_owned(), script: script.to_owned(), age_s }
    }

    fn text(&self) -> String {
        let Self { pool, server, change, script, age_s } = self;
        format!("script {script} changed {pool}/{server} {} ago: {change}", table::seconds(*age_s))
    }
}

impl ScriptsView {
    pub(crate) fn new(errors: Vec<ScriptErrorView>, changes: Vec<ScriptChangeView>) -> Self {
        Self { errors, changes }
    }

    /// Returns true if no function failed or changed anything.
    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty() && self.changes.is_empty()
    }

    /// Returns a line for each of the latest errors and changes.
    pub(super) fn text(&self) -> String {
        let errors = self.errors.iter().take(LINES_MAX);
        let changes = self.changes.iter().take(LINES_MAX);
        let lines = errors.map(ScriptErrorView::text).chain(changes.map(ScriptChangeView::text));
        lines.map(|line| table::paragraph(&line, 0, Tone::Normal, Style::Plain)).collect()
    }
}
