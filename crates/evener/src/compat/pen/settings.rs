//! Settings of pen, as options and commands set them. The configuration is built from them (`spec.rs`); the
//! state of clients and servers is not part of them.

mod access_lists;
mod address;
mod advice;
mod command;
mod direct;
mod options;
mod slot;
mod spec;
mod tls;
mod write;

pub(super) use address::{Listen, ListenAddress, port_number};
pub(super) use command::{InstanceAction, Query, Step, UNKNOWN, split};
pub(super) use options::{number, text, value};
pub(super) use slot::{Slot, SlotTraffic};
pub(super) use spec::{ABUSE, Compiled, EMERGENCY, NAME};

use crate::observe::LogLevel;
use access_lists::AccessLists;
use address::PenLog;
use evener_core::acl::Acl;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tls::TlsSettings;

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PenSettings {
    udp: bool,
    /// `-X`: the control port may end the program.
    exit_enabled: bool,
    /// `-r`: clients do not stay with their servers.
    roundrobin: bool,
    hash: bool,
    /// `-N`: servers are chosen by hash, and clients are not tracked.
    forget: bool,
    weight: bool,
    prio: bool,
    stubborn: bool,
    http: bool,
    dummy: bool,
    ascii: bool,
    abort_on_error: bool,
    peek: bool,
    keepalive: bool,
    tcp_nodelay: bool,
    transparent: bool,
    /// In seconds, like all times here.
    blacklist: u32,
    timeout: u32,
    /// 0: clients are tracked without a time limit.
    tracking: u32,
    /// 0: idle connections stay open.
    idle_timeout: u32,
    /// Maximum number of tracked clients; `None` until it is set. Later values can only be greater.
    clients_max: Option<u32>,
    conn_max: Option<u32>,
    pending_max: u32,
    idlers: u32,
    backlog: u32,
    debug: u32,
    client_acl: usize,
    control_acl: usize,
    /// `dsr_if`: the interface for direct server return.
    dsr_if: Option<String>,
    /// List of addresses without hosts.
    tarpit_acl: Option<usize>,
    access: AccessLists,
    log: Option<PenLog>,
    web_stats: Option<PathBuf>,
    listen: Option<Listen>,
    control: Option<String>,
    config_file: Option<PathBuf>,
    servers: Vec<Slot>,
    emergency: Option<Slot>,
    abuse: Option<Slot>,
    source: Option<IpAddr>,
    fast_close: FastClose,
    tls: TlsSettings,
}

impl PenSettings {
    const CLIENTS_MAX: u32 = 2048;
    const CONN_MAX: u32 = 500;
    const BACKLOG_MIN: u32 = 50;
    /// Highest number of a server.
    const SERVER_MAX: usize = 9_999;

    pub(super) fn clients_max(&self) -> u32 {
        self.clients_max.unwrap_or(Self::CLIENTS_MAX)
    }

    pub(super) fn conn_max(&self) -> u32 {
        self.conn_max.unwrap_or(Self::CONN_MAX)
    }

    /// Creates the tables. After that they only grow.
    pub(super) fn make_tables(&mut self) {
        self.clients_max.get_or_insert(Self::CLIENTS_MAX);
        self.conn_max.get_or_insert(Self::CONN_MAX);
    }

    /// Returns true if clients stay with their servers.
    fn tracks_clients(&self) -> bool {
        !self.roundrobin && !self.forget
    }

    /// Returns the slot with this number. The table grows as needed.
    fn slot(&mut self, number: usize) -> &mut Slot {
        if self.servers.len() <= number {
            self.servers.resize_with(number + 1, Slot::default);
        }
        &mut self.servers[number]
    }

    /// Returns the table of servers.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.servers
    }

    /// Reads the file of commands (`-F`), if any. Each problem has its line. A missing file is accepted,
    /// because `write` may create it.
    pub(super) fn read_commands(&mut self) -> Result<Vec<Step>, Vec<String>> {
        let Some(file) = self.config_file.clone() else { return Ok(Vec::new()) };
        if file.try_exists().is_ok_and(|exists| !exists) {
            return Ok(vec![Step::Warn(format!("{} does not exist: no commands were read", file.display()))]);
        }
        self.read_file(&file)
    }

    /// Reads the file of commands again, and looks up the networks of countries again.
    pub(super) fn reload(&mut self) -> Result<Vec<Step>, Vec<String>> {
        // Countries that cannot be looked up any more stay as they are.
        let _ = self.access.renew_countries();
        self.read_commands()
    }

    pub(super) fn command_file(&self) -> Option<&Path> {
        self.config_file.as_deref()
    }

    /// Returns the address of the control port, as written.
    pub(super) fn control_address(&self) -> Option<&str> {
        self.control.as_deref()
    }

    pub(super) fn status_page_file(&self) -> Option<&Path> {
        self.web_stats.as_deref()
    }

    pub(super) fn is_udp(&self) -> bool {
        self.udp
    }

    /// Returns true if servers see the addresses of clients.
    pub(super) fn is_transparent(&self) -> bool {
        self.transparent
    }

    /// Returns the wanted number of idle connections to servers.
    pub(super) fn idlers(&self) -> u32 {
        self.idlers
    }

    /// Returns the lowest level of logged events.
    pub(super) fn log_level(&self) -> LogLevel {
        if self.debug == 0 { LogLevel::Info } else { LogLevel::Debug }
    }

    /// Returns the database of countries, if an access list uses it.
    pub(super) fn used_geoip_file(&self) -> Option<&Path> {
        self.access.used_geoip_file()
    }

    /// Returns the source of an access list with countries, instead of their many networks.
    pub(super) fn access_list_source(&self, acl: &Arc<Acl>) -> Option<String> {
        self.access.source_with_countries(acl)
    }

    /// Makes the paths absolute that are opened before the root is changed.
    pub(super) fn make_absolute(&mut self, directory: &Path) {
        let paths = [&mut self.config_file, self.access.geoip_file_mut()];
        for path in paths.into_iter().chain(self.tls.paths_mut()).flatten() {
            *path = directory.join(&*path);
        }
        if let Some(control) = self.control.as_mut().filter(|control| control.contains('/')) {
            *control = directory.join(&*control).display().to_string();
        }
        if let Some(listen) = &mut self.listen {
            listen.make_absolute(directory);
        }
    }
}

impl Default for PenSettings {
    fn default() -> Self {
        Self {
            udp: false,
            exit_enabled: false,
            roundrobin: false,
            hash: false,
            forget: false,
            weight: false,
            prio: false,
            stubborn: false,
            http: false,
            dummy: false,
            ascii: false,
            abort_on_error: false,
            peek: false,
            keepalive: false,
            tcp_nodelay: false,
            transparent: false,
            blacklist: 30,
            timeout: 3,
            tracking: 0,
            idle_timeout: 0,
            clients_max: None,
            conn_max: None,
            pending_max: 100,
            idlers: 0,
            backlog: 500,
            debug: 0,
            client_acl: 0,
            control_acl: 0,
            dsr_if: None,
            tarpit_acl: None,
            access: AccessLists::default(),
            log: None,
            web_stats: None,
            listen: None,
            control: None,
            config_file: None,
            servers: Vec::new(),
            emergency: None,
            abuse: None,
            source: None,
            fast_close: FastClose::Off,
            tls: TlsSettings::default(),
        }
    }
}

/// Value of `tcp_fastclose`, with pen's names: up is the side of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FastClose {
    Off,
    Up,
    Down,
    Both,
}

impl FastClose {
    const ALL: [(&'static str, Self); 4] =
        [("off", Self::Off), ("up", Self::Up), ("down", Self::Down), ("both", Self::Both)];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("off", |(name, _)| name)
    }
}
