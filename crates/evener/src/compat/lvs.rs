//! `evener import keepalived` and `evener import ipvsadm`: the Lua configuration that is equivalent to a file of
//! keepalived, or to a table that ipvsadm saved. Unknown words and unbalanced braces are problems with their lines.
//! Settings without an equivalent are listed in comments.

mod ipvsadm;
mod lua;
mod read;
mod syntax;

use crate::config::{self, Location};
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;

/// A virtual server. Times are in milliseconds.
#[derive(Debug)]
struct VirtualServer {
    location: Location,
    name: String,
    listen: Vec<String>,
    mark: Option<u32>,
    protocol: &'static str,
    scheduler: &'static str,
    scheduler_flags: Vec<&'static str>,
    forward: &'static str,
    tunnel_port: Option<u16>,
    is_one_packet: bool,
    persistence: Option<Persistence>,
    every: u64,
    timeout: u64,
    retries: Option<u32>,
    retry_pause: Option<u64>,
    warm_up: Option<u64>,
    servers: Vec<RealServer>,
    sorry: Option<String>,
    quorum: Option<u32>,
    hysteresis: Option<u32>,
    inhibits: bool,
    hooks: Hooks,
    /// True if the servers get a check although none is given.
    has_default_check: bool,
}

/// Persistence of clients.
#[derive(Debug, Default)]
struct Persistence {
    seconds: Option<u64>,
    prefix: Option<u8>,
    is_sip: bool,
}

/// Programs with their arguments that run when something changes, by the key of `notify`.
type Hooks = BTreeMap<&'static str, Vec<String>>;

/// A real server.
#[derive(Debug)]
struct RealServer {
    /// Line in the file.
    line: Option<u32>,
    address: String,
    weight: Option<u32>,
    /// Number of connections at which new clients go to other servers.
    upper: Option<u32>,
    /// Number of connections below which a server that reached `upper` gets new clients again.
    lower: Option<u32>,
    /// The server stays in the table when it fails.
    inhibits: bool,
    hooks: Hooks,
    check: Option<Check>,
}

/// A check, with times in milliseconds. Absent values are those of the virtual server.
#[derive(Clone, Debug, PartialEq)]
struct Check {
    probe: Probe,
    port: Option<u16>,
    timeout: Option<u64>,
    retries: Option<u32>,
    retry_pause: Option<u64>,
    every: Option<u64>,
    warm_up: Option<u64>,
}

/// Kind of a check.
#[derive(Clone, Debug, PartialEq)]
enum Probe {
    /// A connection.
    Tcp,
    /// A request for a page.
    Http {
        is_tls: bool,
        path: String,
        host: Option<String>,
        statuses: Vec<u16>,
        digest: Option<String>,
        regex: Option<String>,
    },
    /// A query.
    Dns { name: String, kind: String },
    /// A datagram.
    Udp { send: String },
    /// A session of SMTP.
    Smtp { helo: Option<String> },
    /// A program with its arguments.
    Exec(Vec<String>),
}

/// The part of a file that Evener takes over, and notes about the rest.
#[derive(Debug, Default)]
struct Imported {
    servers: Vec<VirtualServer>,
    notes: Vec<String>,
}

/// Returns the configuration that is equivalent to a file of keepalived.
pub(super) fn import_keepalived(arguments: &[OsString]) -> anyhow::Result<String> {
    let file = match arguments {
        [] => Path::new("/etc/keepalived/keepalived.conf"),
        [file] => Path::new(file),
        _ => bail!("give one file: evener import keepalived /etc/keepalived/keepalived.conf"),
    };
    let statements = syntax::read(file).map_err(|problems| config::failure(&problems))?;
    let imported = read::read(&statements).map_err(|problems| config::failure(&problems))?;
    Ok(lua::print(&file.display().to_string(), &imported))
}

/// Returns the configuration that is equivalent to the text of `ipvsadm -Sn`, from a file or from standard input.
pub(super) fn import_ipvsadm(arguments: &[OsString]) -> anyhow::Result<String> {
    let (name, text) = match arguments {
        [] if std::io::stdin().is_terminal() => {
            bail!("give a table on standard input: ipvsadm -Sn | evener import ipvsadm")
        }
        [] => ("standard input".to_owned(), std::io::read_to_string(std::io::stdin())?),
        [file] => {
            let name = Path::new(file).display().to_string();
            let text = std::fs::read_to_string(file).with_context(|| name.clone())?;
            (name, text)
        }
        _ => bail!("give one file, or a table on standard input: ipvsadm -Sn | evener import ipvsadm"),
    };
    let imported = ipvsadm::read(&name, &text).map_err(|problem| config::failure(&[problem]))?;
    Ok(lua::print(&name, &imported))
}

#[cfg(test)]
mod tests;
