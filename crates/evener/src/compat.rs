//! The compatible front ends, each with the command line of another program: `evener pen ...`, or a link
//! named `pen`.

mod daemon;
mod lvs;
mod mname_balancer;
mod pen;
mod sbulb;

use crate::admin::{AdminSocket, Permissions};
use crate::events::Events;
use evener_core::event::Event;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// A program with a compatible front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Mergelogs,
    MnameBalancer,
    Pen,
    Penctl,
    Penlog,
    Penlogd,
    Sbulb,
}

impl Program {
    const ALL: [Self; 7] = [
        Self::Mergelogs,
        Self::MnameBalancer,
        Self::Pen,
        Self::Penctl,
        Self::Penlog,
        Self::Penlogd,
        Self::Sbulb,
    ];

    /// Returns the name of the binary, which is also the name of the subcommand.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Mergelogs => "mergelogs",
            Self::MnameBalancer => "mname-balancer",
            Self::Pen => "pen",
            Self::Penctl => "penctl",
            Self::Penlog => "penlog",
            Self::Penlogd => "penlogd",
            Self::Sbulb => "sbulb",
        }
    }

    fn named(name: &OsString) -> Option<Self> {
        let name = Path::new(name).file_name()?;
        // Packages of mname-balancer also use this name for its binary.
        let by_other_name = (name == "bbal").then_some(Self::MnameBalancer);
        Self::ALL.into_iter().find(|program| name == program.name()).or(by_other_name)
    }

    /// Runs the program with these arguments.
    pub(crate) fn run(self, arguments: Vec<OsString>) -> ExitCode {
        if matches!(self, Self::Mergelogs | Self::Penctl | Self::Penlog) {
            // These programs are short-lived: signals end them.
            crate::signals::unblock();
        }
        match self {
            Self::Mergelogs => pen::mergelogs::main(arguments),
            Self::MnameBalancer => mname_balancer::main(arguments),
            Self::Pen => pen::run::main(arguments),
            Self::Penctl => pen::penctl::main(&arguments),
            Self::Penlog => pen::penlog::main(arguments),
            Self::Penlogd => pen::penlogd::main(arguments),
            Self::Sbulb => sbulb::main(arguments),
        }
    }
}

/// Returns the configuration that is equivalent to these arguments of pen.
pub(crate) fn import_pen(arguments: Vec<OsString>) -> anyhow::Result<String> {
    pen::import::import(arguments)
}

/// Returns the configuration that is equivalent to a file of keepalived.
pub(crate) fn import_keepalived(arguments: &[OsString]) -> anyhow::Result<String> {
    lvs::import_keepalived(arguments)
}

/// Returns the configuration that is equivalent to a table that ipvsadm saved.
pub(crate) fn import_ipvsadm(arguments: &[OsString]) -> anyhow::Result<String> {
    lvs::import_ipvsadm(arguments)
}

/// Opens the admin socket. The original programs have none, so without `--admin` the front ends also run if
/// the socket cannot be created.
fn open_admin(path: Option<&Path>, events: &Events) -> anyhow::Result<Option<AdminSocket>> {
    match path {
        Some(path) => AdminSocket::open(path, Permissions::default()).map(Some),
        None => Ok(AdminSocket::open_any(Permissions::default())
            .inspect_err(|error| events.emit(&Event::Notice { text: format!("no admin socket: {error:#}") }))
            .ok()),
    }
}

/// Returns the program that a command line selects, by the name of a link or by its first argument, with its
/// arguments.
pub(crate) fn called(words: &[OsString]) -> Option<(Program, &[OsString])> {
    let (name, arguments) = words.split_first()?;
    if let Some(program) = Program::named(name) {
        return Some((program, arguments));
    }
    let (first, arguments) = arguments.split_first()?;
    // A path is not a subcommand.
    let program = Program::named(first).filter(|program| first == program.name())?;
    Some((program, arguments))
}
