//! Errors of the kernel's operations. Each names the command and the entry that it was for.

use std::fmt;
use std::io;

/// Command of IPVS, for messages and for counting.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Command {
    /// Adds a service
    AddService,
    /// Changes a service
    SetService,
    /// Deletes a service
    DeleteService,
    /// Reads one service or all
    GetService,
    /// Adds a destination
    AddDestination,
    /// Changes a destination
    SetDestination,
    /// Deletes a destination
    DeleteDestination,
    /// Reads the destinations of a service
    GetDestinations,
    /// Starts a synchronisation daemon
    StartDaemon,
    /// Stops a synchronisation daemon
    StopDaemon,
    /// Reads the synchronisation daemons
    GetDaemons,
    /// Changes timeouts
    SetTimeouts,
    /// Reads timeouts
    GetTimeouts,
    /// Reads properties
    GetInfo,
    /// Sets statistics to zero
    Zero,
    /// Deletes all services
    Flush,
    /// Makes sure that the kernel has a scheduler
    FindScheduler,
    /// Finds the netlink family of IPVS, and opens the socket
    Open,
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::AddService => "add service",
            Self::SetService => "change service",
            Self::DeleteService => "delete service",
            Self::GetService => "read service",
            Self::AddDestination => "add destination",
            Self::SetDestination => "change destination",
            Self::DeleteDestination => "delete destination",
            Self::GetDestinations => "read destinations",
            Self::StartDaemon => "start synchronisation daemon",
            Self::StopDaemon => "stop synchronisation daemon",
            Self::GetDaemons => "read synchronisation daemons",
            Self::SetTimeouts => "change timeouts",
            Self::GetTimeouts => "read timeouts",
            Self::GetInfo => "read properties",
            Self::Zero => "zero statistics",
            Self::Flush => "delete all services",
            Self::FindScheduler => "find scheduler",
            Self::Open => "open IPVS",
        })
    }
}

/// Failure of a command.
#[derive(Debug, thiserror::Error)]
#[error("{command}{}{entry}: {kind}", if entry.is_empty() { "" } else { " " })]
pub struct Error {
    command: Command,
    entry: String,
    // Not the source: the text of this error has the kind.
    kind: ErrorKind,
}

impl Error {
    /// An error of a command for an entry; the entry may be empty.
    #[must_use]
    pub fn new(command: Command, entry: impl Into<String>, kind: ErrorKind) -> Self {
        Self { command, entry: entry.into(), kind }
    }

    /// Command that failed.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command
    }

    /// Service or destination that the command was for; empty if it was for none.
    #[must_use]
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Reason.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }
}

/// Reason of a failure.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// The entry exists (EEXIST).
    #[error("it exists already")]
    AlreadyExists,
    /// The service does not exist (ESRCH).
    #[error("no such service")]
    NoSuchService,
    /// The destination does not exist (ENOENT).
    #[error("no such destination")]
    NoSuchDestination,
    /// The kernel has no such scheduler or persistence engine, and no module of it can be loaded (ENOENT).
    #[error("the kernel has no scheduler `{scheduler}`{}", engine_hint(engine.as_deref()))]
    NoSuchScheduler {
        /// Requested scheduler
        scheduler: String,
        /// Requested persistence engine; it may be the missing part
        engine: Option<String>,
    },
    /// The synchronisation daemon does not run (ESRCH).
    #[error("no such synchronisation daemon runs")]
    NoSuchDaemon,
    /// The interface does not exist (ENODEV).
    #[error("no such interface")]
    NoSuchInterface,
    /// The lower threshold is above the upper one (ERANGE), or the weight is out of range.
    #[error("the lower threshold must not be above the upper threshold")]
    ThresholdsOutOfOrder,
    /// The kernel refuses the values (EINVAL).
    #[error("the kernel refuses the values: {0}")]
    Invalid(&'static str),
    /// The kernel does not support it (EOPNOTSUPP, EPROTONOSUPPORT, EAFNOSUPPORT).
    #[error("the kernel does not support it")]
    Unsupported,
    /// The kernel has no IPVS, or its module `ip_vs` cannot be loaded.
    #[error("the kernel has no IPVS: run `modprobe ip_vs`, or take a kernel that has it")]
    NoIpvs,
    /// The process lacks a capability (EPERM).
    #[error("not permitted; CAP_NET_ADMIN is needed")]
    NotPermitted,
    /// The kernel did not respond in time.
    #[error("no response of the kernel within {0} s")]
    TimedOut(u64),
    /// Each repetition of a dump was interrupted by a change.
    #[error("the table changed during each of {0} readings")]
    Interrupted(u32),
    /// The response cannot be read.
    #[error("unreadable response: {0}")]
    Unreadable(String),
    /// Another error of the operating system.
    #[error(transparent)]
    Os(#[from] io::Error),
}

fn engine_hint(engine: Option<&str>) -> String {
    engine.map_or_else(String::new, |engine| format!(" or no persistence engine `{engine}`"))
}

/// Result of a command.
pub type Result<T> = std::result::Result<T, Error>;
