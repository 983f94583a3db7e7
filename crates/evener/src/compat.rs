//! The programs that Evener stands in for, each with its own command line: `evener pen ...`, or a link named `pen`.

mod daemon;
mod mname_balancer;
mod pen;

use crate::admin::AdminSocket;
use crate::observe::Log;
use evener_core::event::Event;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// A program that Evener stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Mergelogs,
    MnameBalancer,
    Pen,
    Penctl,
    Penlog,
    Penlogd,
}

impl Program {
    const ALL: [Self; 6] =
        [Self::Mergelogs, Self::MnameBalancer, Self::Pen, Self::Penctl, Self::Penlog, Self::Penlogd];

    /// The name of its binary, and of our subcommand.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Mergelogs => "mergelogs",
            Self::MnameBalancer => "mname-balancer",
            Self::Pen => "pen",
            Self::Penctl => "penctl",
            Self::Penlog => "penlog",
            Self::Penlogd => "penlogd",
        }
    }

    fn named(name: &OsString) -> Option<Self> {
        let name = Path::new(name).file_name()?;
        // Packages of mname-balancer call its binary so.
        let by_other_name = (name == "bbal").then_some(Self::MnameBalancer);
        Self::ALL.into_iter().find(|program| name == program.name()).or(by_other_name)
    }

    /// Does what the program does with these arguments.
    pub(crate) fn run(self, arguments: Vec<OsString>) -> ExitCode {
        if matches!(self, Self::Mergelogs | Self::Penctl | Self::Penlog) {
            // They do not last: signals end them.
            crate::signals::let_through();
        }
        match self {
            Self::Mergelogs => pen::mergelogs::main(arguments),
            Self::MnameBalancer => mname_balancer::main(arguments),
            Self::Pen => pen::run::main(arguments),
            Self::Penctl => pen::penctl::main(&arguments),
            Self::Penlog => pen::penlog::main(arguments),
            Self::Penlogd => pen::penlogd::main(arguments),
        }
    }
}

/// The configuration that does what pen does with these arguments.
pub(crate) fn import_pen(arguments: Vec<OsString>) -> anyhow::Result<String> {
    pen::import::import(arguments)
}

/// Opens the admin socket. The programs that Evener stands in for have none: without `--admin` they run without it where
/// it cannot be made.
fn open_admin(path: Option<&Path>, log: &Log) -> anyhow::Result<Option<AdminSocket>> {
    match path {
        Some(path) => AdminSocket::open(path).map(Some),
        None => Ok(AdminSocket::open_any()
            .inspect_err(|error| log.event(&Event::Notice { text: format!("no admin socket: {error:#}") }))
            .ok()),
    }
}

/// The program that a command line calls, by the name of a link or by its first argument; with its arguments.
pub(crate) fn called(words: &[OsString]) -> Option<(Program, &[OsString])> {
    let (own, arguments) = words.split_first()?;
    if let Some(program) = Program::named(own) {
        return Some((program, arguments));
    }
    let (first, arguments) = arguments.split_first()?;
    // A path is no subcommand.
    let program = Program::named(first).filter(|program| first == program.name())?;
    Some((program, arguments))
}
