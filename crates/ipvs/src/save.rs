//! Text of `ipvsadm -Sn`: written, and parsed with the number of the line in each error.

mod words;

use crate::model::{
    Destination, Entry, Family, Forwarding, Protocol, Service, ServiceKey, Tunnel, TunnelFlags,
};
use std::fmt::Write as _;
use std::net::SocketAddr;
use words::Words;

/// Services a text may have at most, and destinations.
const ENTRIES_MAX: usize = 100_000;

/// A line of the text that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ParseError {
    /// Number of the line, from 1
    pub line: usize,
    /// Reason
    pub problem: String,
}

/// A service of the text with its destinations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedService {
    /// The service
    pub service: Service,
    /// The destinations
    pub destinations: Vec<Destination>,
    /// Number of the service's line, from 1
    pub line: usize,
}

/// Returns the text that `ipvsadm -R` reads.
#[must_use]
pub fn text(table: &[Entry]) -> String {
    let mut text = String::new();
    for entry in table {
        let service = &entry.service.service;
        let key = key_words(&service.key);
        let _ = writeln!(text, "-A {key}{}", service_words(service));
        for state in &entry.destinations {
            let _ = writeln!(text, "-a {key}{}", destination_words(&state.destination));
        }
    }
    text
}

fn key_words(key: &ServiceKey) -> String {
    match key {
        ServiceKey::Address { protocol, address, port } => {
            let option = match protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
                Protocol::Sctp => "--sctp-service",
            };
            format!("{option} {}", SocketAddr::new(*address, *port))
        }
        ServiceKey::Fwmark { mark, family: Family::V4 } => format!("-f {mark}"),
        ServiceKey::Fwmark { mark, family: Family::V6 } => format!("-f {mark} -6"),
    }
}

fn service_words(service: &Service) -> String {
    let mut words = format!(" -s {}", service.scheduler);
    if let Some(persistence) = &service.persistence {
        let _ = write!(words, " -p {}", persistence.timeout.as_secs());
        let family = service.key.family();
        if persistence.prefix != family.bits() {
            let _ = write!(words, " -M {}", words::netmask(family, persistence.prefix));
        }
        if let Some(engine) = &persistence.engine {
            let _ = write!(words, " --pe {engine}");
        }
    }
    if service.flags.one_packet {
        words.push_str(" -o");
    }
    let flags = words::scheduler_flags(&service.scheduler, service.flags);
    if !flags.is_empty() {
        let _ = write!(words, " -b {flags}");
    }
    words
}

fn destination_words(destination: &Destination) -> String {
    let method = match destination.forwarding {
        // The kernel makes a destination local by itself; ipvsadm has no word for the others.
        Forwarding::Nat => "-m",
        Forwarding::Direct | Forwarding::Local | Forwarding::Bypass => "-g",
        Forwarding::Tunnel(_) => "-i",
    };
    let mut words = format!(" -r {} {method} -w {}", destination.key, destination.weight);
    for (option, value) in [("-x", destination.upper_threshold), ("-y", destination.lower_threshold)] {
        if value > 0 {
            let _ = write!(words, " {option} {value}");
        }
    }
    let checksum = |flags| match flags {
        TunnelFlags::NoChecksum => "--tun-nocsum",
        TunnelFlags::Checksum => "--tun-csum",
        TunnelFlags::RemoteChecksum => "--tun-remcsum",
    };
    match destination.forwarding {
        Forwarding::Tunnel(Tunnel::Gue { port, flags }) => {
            let _ = write!(words, " --tun-type gue --tun-port {port} {}", checksum(flags));
        }
        Forwarding::Tunnel(Tunnel::Gre { flags }) => {
            let _ = write!(words, " --tun-type gre {}", checksum(flags));
        }
        _ => {}
    }
    words
}

/// Parses the text. Empty lines, and lines that begin with `#`, are skipped.
///
/// # Errors
/// A line has an unknown option, a wrong value or a destination of a service that no earlier line adds.
pub fn parse(text: &str) -> Result<Vec<SavedService>, ParseError> {
    let mut services: Vec<SavedService> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if index >= ENTRIES_MAX {
            return Err(ParseError { line: line_number, problem: format!("more than {ENTRIES_MAX} lines") });
        }
        parse_line(line, line_number, &mut services)
            .map_err(|problem| ParseError { line: line_number, problem })?;
    }
    Ok(services)
}

fn parse_line(line: &str, number: usize, services: &mut Vec<SavedService>) -> Result<(), String> {
    let mut words = Words::new(line);
    let command = words.next().unwrap_or_default();
    let options = words::Options::parse(words)?;
    let key = options.key()?;
    let position = services.iter().position(|saved| saved.service.key == key);
    match command {
        "-A" | "--add-service" => {
            if let Some(position) = position {
                return Err(format!("service {key} is added on line {}, too", services[position].line));
            }
            let service = options.service(key)?;
            services.push(SavedService { service, destinations: Vec::new(), line: number });
        }
        "-a" | "--add-server" => {
            let position = position.ok_or_else(|| format!("no line before adds service {key}"))?;
            let destination = options.destination()?;
            let destinations = &mut services[position].destinations;
            if destinations.iter().any(|other| other.key == destination.key) {
                return Err(format!("destination {} is added twice", destination.key));
            }
            destinations.push(destination);
        }
        other => return Err(format!("expected -A or -a, got `{other}`")),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
