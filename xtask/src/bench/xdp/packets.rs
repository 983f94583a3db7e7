//! Packets of the benchmark: 64 bytes, with valid checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of each packet.
pub(super) const LENGTH: usize = 64;
/// A packet.
pub(super) type Packet = [u8; LENGTH];
const ETHERNET: usize = 14;
const UDP: u8 = 17;

/// Offset of the word of the source address that differs between clients.
pub(super) fn client_offset(packet: &Packet) -> u32 {
    if packet[12..14] == [0x08, 0x00] { 26 } else { 34 }
}

/// Returns a UDP packet.
pub(super) fn udp(source: SocketAddr, destination: SocketAddr) -> Packet {
    let mut packet = [0; LENGTH];
    packet[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    let at = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4_header(&mut packet, source, destination),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6_header(&mut packet, source, destination),
        _ => unreachable!("both addresses have one family"),
    };
    packet[at..at + 2].copy_from_slice(&source.port().to_be_bytes());
    packet[at + 2..at + 4].copy_from_slice(&destination.port().to_be_bytes());
    let length = (LENGTH - at) as u16;
    packet[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
    let addresses = match source.ip() {
        IpAddr::V4(_) => &packet[26..34],
        IpAddr::V6(_) => &packet[22..54],
    };
    let sum = sum_of(addresses) + u64::from(UDP) + u64::from(length) + sum_of(&packet[at..]);
    packet[at + 6..at + 8].copy_from_slice(&(!folded(sum)).to_be_bytes());
    packet
}

/// Removes the checksum of UDP from a packet of IPv4.
pub(super) fn without_udp_checksum(mut packet: Packet) -> Packet {
    packet[40..42].fill(0);
    packet
}

fn ipv4_header(packet: &mut Packet, source: Ipv4Addr, destination: Ipv4Addr) -> usize {
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    let header = &mut packet[ETHERNET..ETHERNET + 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((LENGTH - ETHERNET) as u16).to_be_bytes());
    header[8] = 64;
    header[9] = UDP;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let sum = !folded(sum_of(header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    ETHERNET + 20
}

fn ipv6_header(packet: &mut Packet, source: Ipv6Addr, destination: Ipv6Addr) -> usize {
    packet[12..14].copy_from_slice(&[0x86, 0xdd]);
    let header = &mut packet[ETHERNET..ETHERNET + 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&((LENGTH - ETHERNET - 40) as u16).to_be_bytes());
    header[6] = UDP;
    header[7] = 64;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&destination.octets());
    ETHERNET + 40
}

fn sum_of(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low))).sum()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_packets_are_valid() {
        let packet = udp("192.0.2.1:1000".parse().unwrap(), "198.51.100.1:53".parse().unwrap());
        assert_eq!(folded(sum_of(&packet[14..34])), 0xffff, "checksum of IPv4");
        let length = u64::from(UDP) + 30;
        assert_eq!(folded(sum_of(&packet[26..]) + length), 0xffff, "checksum of UDP");
        let packet = udp("[2001:db8::1]:1000".parse().unwrap(), "[2001:db8::2]:53".parse().unwrap());
        let length = u64::from(UDP) + 10;
        assert_eq!(folded(sum_of(&packet[22..]) + length), 0xffff, "checksum of UDP over IPv6");
    }
}
