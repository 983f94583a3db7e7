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
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    payload: Vec<u8>,
    /// Time to live, or hop limit.
    ttl: u8,
    /// DSCP and ECN.
    traffic: u8,
    dont_fragment: bool,
    /// Offset of a fragment in units of 8 bytes, and whether more follow (IPv4).
    fragment: (u16, bool),
    /// VLAN tags with their Ethernet types.
    tags: Vec<(u16, u16)>,
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

    pub(crate) fn with_ports(mut self, ports: (u16, u16)) -> Self {
        self.ports = ports;
        self
    }

    pub(crate) fn with_protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    pub(crate) fn with_payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    pub(crate) fn with_ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub(crate) fn with_traffic(mut self, traffic: u8) -> Self {
        self.traffic = traffic;
        self
    }

    /// Lets routers fragment it.
    pub(crate) fn fragmentable(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    pub(crate) fn with_fragment(mut self, fragment: (u16, bool)) -> Self {
        self.fragment = fragment;
        self
    }

    pub(crate) fn with_tags(mut self, tags: Vec<(u16, u16)>) -> Self {
        self.tags = tags;
        self
    }

    /// Returns the packet behind a hop.
    pub(crate) fn after_hop(mut self) -> Self {
        self.ttl -= 1;
        self
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
    destination: [u8; 6],
    source: [u8; 6],
    tags: Vec<(u16, u16)>,
    protocol: u16,
    body: Vec<u8>,
}

impl Frame {
    /// Returns the MAC addresses: destination and source.
    pub(crate) fn macs(&self) -> [[u8; 6]; 2] {
        [self.destination, self.source]
    }

    pub(crate) fn tags(&self) -> &[(u16, u16)] {
        &self.tags
    }

    pub(crate) fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Reads the packet and checks that its version matches the Ethernet type.
    pub(crate) fn ip(&self) -> Ip {
        let ip = Ip::parse(&self.body);
        assert_eq!(self.protocol, if ip.source.is_ipv4() { 0x0800 } else { 0x86dd }, "Ethernet type");
        ip
    }

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
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ttl: u8,
    traffic: u8,
    dont_fragment: bool,
    identification: u16,
    label: u32,
    body: Vec<u8>,
}

impl Ip {
    /// Returns the source and the destination.
    pub(crate) fn addresses(&self) -> (IpAddr, IpAddr) {
        (self.source, self.destination)
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.protocol
    }

    pub(crate) fn traffic(&self) -> u8 {
        self.traffic
    }

    /// Returns whether routers must not fragment the packet, and its identification.
    pub(crate) fn fragmentation(&self) -> (bool, u16) {
        (self.dont_fragment, self.identification)
    }

    /// Returns the source port and the flow label, by which routers choose a path.
    pub(crate) fn path(&self) -> (u16, u32) {
        (u16::from_be_bytes([self.body[0], self.body[1]]), self.label)
    }

    /// Checks the headers of a tunnel and returns the packet in it: of GUE to this port, else of `protocol`.
    pub(crate) fn decapsulated(&self, gue_port: Option<u16>, protocol: u8) -> Vec<u8> {
        assert_eq!(self.ttl, 64, "TTL of the tunnel");
        let Some(port) = gue_port else {
            assert_eq!(self.protocol, protocol);
            return self.body.clone();
        };
        assert_eq!(self.protocol, UDP);
        let word = |at: usize| u16::from_be_bytes([self.body[at], self.body[at + 1]]);
        assert!(word(0) >= 49152, "a source port of the dynamic ones");
        let expected = (port, self.body.len(), 0);
        assert_eq!((word(2), usize::from(word(4)), word(6)), expected, "port, length and checksum");
        self.body[8..].to_vec()
    }

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
