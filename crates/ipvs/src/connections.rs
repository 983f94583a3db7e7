//! The kernel's table of connections, from `/proc/net/ip_vs_conn` of the thread's network namespace.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const FILE: &str = "/proc/thread-self/net/ip_vs_conn";
/// Bytes of a line at most; longer lines are not the kernel's.
const LINE_MAX: usize = 1024;

/// A connection of the kernel's table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Connection {
    /// Protocol as the kernel names it, such as `TCP`
    pub protocol: String,
    /// Client
    pub client: SocketAddr,
    /// Virtual address
    pub virtual_address: SocketAddr,
    /// Server
    pub destination: SocketAddr,
    /// State, such as `ESTABLISHED`
    pub state: String,
    /// Time until the entry expires
    pub expires: Duration,
}

/// Reads at most `count_max` connections.
///
/// # Errors
/// The file cannot be read; without IPVS there is none.
pub fn read(count_max: usize) -> io::Result<Vec<Connection>> {
    let file = BufReader::new(File::open(FILE)?);
    let mut connections = Vec::new();
    for line in file.lines() {
        if connections.len() >= count_max {
            break;
        }
        connections.extend(parse(&line?));
    }
    Ok(connections)
}

/// Reads a line. The heading, and a line that is no connection, is `None`.
#[must_use]
pub fn parse(line: &str) -> Option<Connection> {
    if line.len() > LINE_MAX {
        return None;
    }
    let mut words = line.split_whitespace();
    let mut word = || words.next();
    let protocol = word()?.to_owned();
    let client = endpoint(word()?, word()?)?;
    let virtual_address = endpoint(word()?, word()?)?;
    let destination = endpoint(word()?, word()?)?;
    let state = word()?.to_owned();
    let expires = Duration::from_secs(word()?.parse().ok()?);
    Some(Connection { protocol, client, virtual_address, destination, state, expires })
}

/// IPv4 addresses are eight hexadecimal digits, IPv6 addresses have colons.
fn endpoint(address: &str, port: &str) -> Option<SocketAddr> {
    let port = u16::from_str_radix(port, 16).ok()?;
    let address: IpAddr = if address.contains(':') {
        IpAddr::V6(address.parse().ok()?)
    } else {
        IpAddr::V4(u32::from_str_radix(address, 16).ok()?.into())
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_families_are_read() {
        let line = "TCP 0A000001 1F90 0A0000FE 0050 0A000002 0051 ESTABLISHED     899";
        let connection = parse(line).unwrap();
        assert_eq!(connection.client, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(connection.destination, "10.0.0.2:81".parse().unwrap());
        assert_eq!(connection.expires, Duration::from_secs(899));
        let line = "UDP fd00:0000:0000:0000:0000:0000:0000:0001 0035 fd00:0000:0000:0000:0000:0000:0000:0002 \
                    0035 0A000002 0035 UDP     12 sip call";
        assert_eq!(parse(line).unwrap().client, "[fd00::1]:53".parse().unwrap());
        assert_eq!(
            parse("Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData"),
            None
        );
        for length in 0..line.len() {
            let _ = parse(&line[..length]);
        }
    }
}
