//! Packets for the program and a reader of its packets, with checksums computed from scratch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// MAC address of the host that packets come from.
pub(crate) const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of the interface with the program.
pub(crate) const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Returns the Internet checksum of bytes (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Returns the checksum of a transport segment with its pseudo-header.
pub(crate) fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((segment.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(segment);
    checksum(&bytes)
}

/// A packet of a client to a virtual address.
#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ports: (u16, u16),
    pub(crate) payload: Vec<u8>,
    /// Time to live, or hop limit.
    pub(crate) ttl: u8,
    /// DSCP and ECN.
    pub(crate) traffic: u8,
    pub(crate) dont_fragment: bool,
    /// Offset of a fragment in units of 8 bytes, and whether more follow (IPv4).
    pub(crate) fragment: (u16, bool),
    /// VLAN tags with their Ethernet types.
    pub(crate) tags: Vec<(u16, u16)>,
}

impl Packet {
    pub(crate) fn udp(source: &str, destination: &str) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: UDP,
            ports: (40000, 5000),
            payload: b"a request of some bytes".to_vec(),
            ttl: 60,
            traffic: 0,
            dont_fragment: true,
            fragment: (0, false),
            tags: Vec::new(),
        }
    }

    /// Gives the IP packet a length.
    pub(crate) fn with_length(mut self, length: usize) -> Self {
        let headers = if self.source.is_ipv4() { 20 } else { 40 } + if self.protocol == UDP { 8 } else { 20 };
        self.payload = (0..length - headers).map(|at| at as u8).collect();
        self
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.ports.0.to_be_bytes());
        segment.extend(self.ports.1.to_be_bytes());
        let at = if self.protocol == UDP {
            segment.extend((8 + self.payload.len() as u16).to_be_bytes());
            6
        } else {
            // Sequence numbers, a header of 20 bytes, SYN, a window.
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x10, 0]);
            16
        };
        segment.extend([0; 4][..if self.protocol == UDP { 2 } else { 4 }].iter());
        segment.extend(&self.payload);
        let sum = transport_checksum(self.source, self.destination, self.protocol, &segment);
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// Returns the IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let segment = if self.fragment.0 == 0 { self.segment() } else { self.payload.clone() };
        let mut packet = Vec::new();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let flags =
                    u16::from(self.dont_fragment) << 14 | u16::from(self.fragment.1) << 13 | self.fragment.0;
                packet.extend([0x45, self.traffic]);
                packet.extend((20 + segment.len() as u16).to_be_bytes());
                packet.extend([0x12, 0x34]);
                packet.extend(flags.to_be_bytes());
                packet.extend([self.ttl, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let sum = checksum(&packet);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                packet.extend((6 << 28 | u32::from(self.traffic) << 20 | 0xabcde).to_be_bytes());
                packet.extend((segment.len() as u16).to_be_bytes());
                packet.extend([self.protocol, self.ttl]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
            }
            _ => panic!("addresses of one family"),
        }
        packet.extend(segment);
        packet
    }

    /// Returns the frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut frame = [LOCAL_MAC, SENDER_MAC].concat();
        for (protocol, tag) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(if self.source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] });
        frame.extend(self.ip());
        frame
    }
}

/// The Ethernet header of a frame and the bytes behind it.
pub(crate) struct Frame {
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
    pub(crate) tags: Vec<(u16, u16)>,
    pub(crate) protocol: u16,
    pub(crate) body: Vec<u8>,
}

impl Frame {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (mut at, mut tags) = (12, Vec::new());
        while matches!(word(at), 0x8100 | 0x88a8) {
            tags.push((word(at), word(at + 2)));
            at += 4;
        }
        Self {
            destination: bytes[..6].try_into().unwrap(),
            source: bytes[6..12].try_into().unwrap(),
            tags,
            protocol: word(at),
            body: bytes[at + 2..].to_vec(),
        }
    }
}

/// An IP header, and the bytes behind it. Options and extension headers are not expected.
#[derive(Debug)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) traffic: u8,
    pub(crate) dont_fragment: bool,
    pub(crate) identification: u16,
    pub(crate) label: u32,
    pub(crate) body: Vec<u8>,
}

impl Ip {
    /// Reads the packet and checks its length and checksum.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        if bytes[0] >> 4 == 4 {
            assert_eq!(bytes[0], 0x45, "an IPv4 header without options");
            assert_eq!(checksum(&bytes[..20]), 0, "the checksum of the IPv4 header");
            let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap()).into();
            return Self {
                source: address(12),
                destination: address(16),
                protocol: bytes[9],
                ttl: bytes[8],
                traffic: bytes[1],
                dont_fragment: word(6) & 0x4000 != 0,
                identification: word(4),
                label: 0,
                body: bytes[20..usize::from(word(2))].to_vec(),
            };
        }
        assert_eq!(bytes[0] >> 4, 6, "version of IP");
        let first = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap()).into();
        Self {
            source: address(8),
            destination: address(24),
            protocol: bytes[6],
            ttl: bytes[7],
            traffic: (first >> 20) as u8,
            dont_fragment: true,
            identification: 0,
            label: first & 0xf_ffff,
            body: bytes[40..40 + usize::from(word(4))].to_vec(),
        }
    }

    /// Checks the checksum of an ICMP or ICMPv6 message and returns its type, code, MTU and quoted packet.
    pub(crate) fn icmp(&self) -> (u8, u8, u32, Vec<u8>) {
        let sum = match self.protocol {
            ICMP => checksum(&self.body),
            ICMPV6 => transport_checksum(self.source, self.destination, ICMPV6, &self.body),
            other => panic!("protocol {other} instead of ICMP"),
        };
        assert_eq!(sum, 0, "the checksum of the ICMP message");
        let mtu = u32::from_be_bytes(self.body[4..8].try_into().unwrap());
        (self.body[0], self.body[1], mtu, self.body[8..].to_vec())
    }
}
