//! Programs that the instance runs.

use std::time::Duration;

/// A program with its arguments. It runs without a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSpec {
    /// Absolute path of the program.
    pub path: String,
    /// The arguments.
    pub arguments: Vec<String>,
}

/// Programs that run when servers or the quorum of a pool change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifySpec {
    /// A server is used again.
    pub up: Option<ProgramSpec>,
    /// A server is no longer used.
    pub down: Option<ProgramSpec>,
    /// The pool gained its quorum.
    pub quorum_up: Option<ProgramSpec>,
    /// The pool lost its quorum.
    pub quorum_down: Option<ProgramSpec>,
    /// Time after which a program is killed.
    pub timeout: Duration,
}

impl NotifySpec {
    /// Default of the timeout.
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// Returns the programs with the names of their keys.
    #[must_use]
    pub fn programs(&self) -> [(&'static str, Option<&ProgramSpec>); 4] {
        let Self { up, down, quorum_up, quorum_down, timeout: _ } = self;
        let programs = [up, down, quorum_up, quorum_down].map(Option::as_ref);
        let [up, down, quorum_up, quorum_down] = programs;
        [("up", up), ("down", down), ("quorum_up", quorum_up), ("quorum_down", quorum_down)]
    }
}
