//! The file with the real servers, in the format of Python's configparser:
//!
//! ```text
//! [Real Servers]
//! 10.0.0.4
//! 10.0.0.2
//! ```

use super::CommandLine;
use super::command_line::distinct;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Name of the section with the servers.
const SECTION: &str = "Real Servers";
/// Maximum size of the file.
const BYTES_MAX: u64 = 1 << 20;

/// A file that is read again and again.
#[derive(Debug)]
pub(super) struct ServerFile {
    path: PathBuf,
    /// Text, or the reason why it could not be read, at the last time.
    last: Option<Result<String, String>>,
}

impl ServerFile {
    /// Creates a file that was not read yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, last: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file, and returns its servers or the reason why it has none. Returns `None` if neither the text nor
    /// the reason differs from the last time.
    pub(super) fn read(&mut self) -> Option<Result<Vec<IpAddr>, String>> {
        let now = Some(read(&self.path));
        if now == self.last {
            return None;
        }
        self.last = now;
        let text = self.last.as_ref().map(Result::as_deref)?;
        Some(text.map_err(Clone::clone).and_then(parse))
    }

    /// Forgets the last time, so that the next read returns a result.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = Vec::new();
    let bytes = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut text));
    match bytes {
        Ok(_) if text.len() as u64 > BYTES_MAX => Err(format!("longer than {BYTES_MAX} bytes")),
        Ok(_) => String::from_utf8(text).map_err(|_| "not a text in UTF-8".into()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// Returns the addresses of the section, without repetitions.
fn parse(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut servers = None;
    let mut is_inside = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_inside = section == SECTION;
            if is_inside {
                servers.get_or_insert_with(Vec::new);
            }
            continue;
        }
        if let Some(servers) = servers.as_mut().filter(|_| is_inside) {
            let address = line.parse().map_err(|_| {
                format!("line {}: '{}' is not an IP address", number + 1, line.escape_debug())
            })?;
            servers.push(address);
        }
    }
    match servers.map(distinct) {
        None => Err(format!("the section [{SECTION}] is missing")),
        Some(servers) if servers.is_empty() => Err(format!("the section [{SECTION}] lists no servers")),
        Some(servers) => Ok(servers),
    }
}

/// Returns the servers of a file if the command line allows them.
pub(super) fn checked(servers: Vec<IpAddr>, line: &CommandLine) -> Result<Vec<IpAddr>, String> {
    one_family(&servers, line.virtual_server)?;
    line.check_count(servers.len())?;
    Ok(servers)
}

/// Checks that the servers have addresses of the family of the virtual server.
pub(super) fn one_family(servers: &[IpAddr], virtual_server: IpAddr) -> Result<(), String> {
    let Some(other) = servers.iter().find(|server| server.is_ipv4() != virtual_server.is_ipv4()) else {
        return Ok(());
    };
    Err(format!(
        "{other} is an {} address, but the virtual server {virtual_server} is an {} address",
        family(*other),
        family(virtual_server)
    ))
}

/// Returns the name of the family of an address.
pub(super) const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Returns the wanted servers in an order in which the present servers keep their positions, if there are enough
/// servers for all positions. New servers take the positions of removed ones.
pub(super) fn in_slots(present: &[IpAddr], wanted: &[IpAddr]) -> Vec<IpAddr> {
    let mut added = wanted.iter().filter(|server| !present.contains(server));
    let present = present
        .iter()
        .filter_map(|server| if wanted.contains(server) { Some(*server) } else { added.next().copied() });
    let mut servers: Vec<IpAddr> = present.collect();
    servers.extend(added);
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn the_section_lists_the_servers() {
        let check = |text: &str, expected: &str| assert_eq!(parse(text), Ok(addresses(expected)), "{text}");
        check("[Real Servers]\n10.0.0.4\n10.0.0.2\n10.0.0.6\n", "10.0.0.4 10.0.0.2 10.0.0.6");
        check("# servers\r\n\r\n[Real Servers]\r\n  fd00::2  \r\n; none\r\nfd00::1", "fd00::2 fd00::1");
        check("[Other]\nx = y\n[Real Servers]\n10.0.0.4\n[Last]\n10.0.0.5\n", "10.0.0.4");
        check("[Real Servers]\n10.0.0.4\n10.0.0.4\n", "10.0.0.4");
    }

    #[test]
    fn a_bad_file_is_refused_with_the_reason() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "the section [Real Servers] is missing");
        check("[real servers]\n10.0.0.4", "the section [Real Servers] is missing");
        check("10.0.0.4\n", "the section [Real Servers] is missing");
        check("[Real Servers]\n# 10.0.0.4\n", "lists no servers");
        check("[Real Servers]\n10.0.0.4\n10.0.0.256\n", "line 3: '10.0.0.256' is not an IP address");
        check("[Real Servers]\n10.0.0.4:80\n", "line 2: '10.0.0.4:80'");
    }

    #[test]
    fn a_file_is_reported_when_its_text_changes() {
        let path = std::env::temp_dir().join(format!("evener-sbulb-{}", std::process::id()));
        let mut file = ServerFile::new(path.clone());
        let missing = file.read().unwrap().unwrap_err();
        assert!(missing.contains("cannot be read: No such file"), "{missing}");
        assert_eq!(file.read(), None);
        std::fs::write(&path, "[Real Servers]\n10.0.0.4\n").unwrap();
        assert_eq!(file.read(), Some(Ok(addresses("10.0.0.4"))));
        assert_eq!(file.read(), None);
        file.forget();
        assert_eq!(file.read(), Some(Ok(addresses("10.0.0.4"))));
        std::fs::write(&path, vec![b' '; BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(file.read(), Some(Err("longer than 1048576 bytes".into())));
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(file.read(), Some(Err("not a text in UTF-8".into())));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.read(), Some(Err(missing)));
    }

    #[test]
    fn present_servers_keep_their_slots() {
        let check = |present: &str, wanted: &str, expected: &str| {
            let servers = in_slots(&addresses(present), &addresses(wanted));
            assert_eq!(servers, addresses(expected), "{present} -> {wanted}");
        };
        check("", "10.0.0.1 10.0.0.2", "10.0.0.1 10.0.0.2");
        check("10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.4 10.0.0.3 10.0.0.1", "10.0.0.1 10.0.0.4 10.0.0.3");
        check("10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.3 10.0.0.1", "10.0.0.1 10.0.0.3");
        check(
            "10.0.0.1 10.0.0.2",
            "10.0.0.5 10.0.0.2 10.0.0.6 10.0.0.1",
            "10.0.0.1 10.0.0.2 10.0.0.5 10.0.0.6",
        );
    }
}
