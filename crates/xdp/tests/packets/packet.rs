//! Packets, built from scratch.

use std::net::IpAddr;

pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
pub(crate) const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

/// Extension header of IPv6: hop-by-hop options.
pub(crate) const HOP_BY_HOP: u8 = 0;
/// Extension header of IPv6: routing.
pub(crate) const ROUTING: u8 = 43;
/// Extension header of IPv6: destination options.
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;

/// Returns the Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Position of a fragment in its packet.
#[derive(Clone, Copy, Debug)]
struct Fragment {
    id: u16,
    /// Offset in bytes, a multiple of 8.
    offset: u16,
    more: bool,
}

/// A packet of UDP or TCP.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    macs: [[u8; 6]; 2],
    /// Types and contents of VLAN tags.
    tags: Vec<(u16, u16)>,
    source: IpAddr,
    destination: IpAddr,
    ports: (u16, u16),
    protocol: u8,
    ttl: u8,
    /// Options of IPv4, a multiple of 4 bytes.
    options: Vec<u8>,
    /// Extension headers of IPv6, with the lengths of their contents.
    extensions: Vec<(u8, usize)>,
    fragment: Option<Fragment>,
    payload: Vec<u8>,
    without_checksum: bool,
    /// Flags of TCP.
    flags: u8,
}

impl Packet {
    pub(crate) fn new(protocol: u8, source: (&str, u16), destination: (&str, u16)) -> Self {
        Self {
            macs: [LOCAL_MAC, CLIENT_MAC],
            tags: Vec::new(),
            source: source.0.parse().unwrap(),
            destination: destination.0.parse().unwrap(),
            ports: (source.1, destination.1),
            protocol,
            ttl: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            payload: b"some bytes of payload".to_vec(),
            without_checksum: false,
            flags: 2,
        }
    }

    pub(crate) fn with_macs(mut self, macs: [[u8; 6]; 2]) -> Self {
        self.macs = macs;
        self
    }

    pub(crate) fn with_tags(mut self, tags: Vec<(u16, u16)>) -> Self {
        self.tags = tags;
        self
    }

    pub(crate) fn with_protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    pub(crate) fn with_ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub(crate) fn with_options(mut self, options: Vec<u8>) -> Self {
        self.options = options;
        self
    }

    pub(crate) fn with_extensions(mut self, extensions: Vec<(u8, usize)>) -> Self {
        self.extensions = extensions;
        self
    }

    pub(crate) fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn with_payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// Makes it a fragment: at an offset in bytes, a multiple of 8.
    pub(crate) fn with_fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { id, offset, more });
        self
    }

    pub(crate) fn without_checksum(mut self) -> Self {
        self.without_checksum = true;
        self
    }

    /// Sends it from another port.
    pub(crate) fn with_source_port(mut self, port: u16) -> Self {
        self.ports.0 = port;
        self
    }

    /// Returns the same packet to another server of the service.
    pub(crate) fn to_address(&self, address: &str) -> Self {
        self.to(address, self.ports.1)
    }

    /// Returns the response of a server to this packet, with the same tags.
    pub(crate) fn response_of(&self, server: &str, port: u16) -> Self {
        let ports = (port, self.ports.0);
        let macs = [LOCAL_MAC, CLIENT_MAC];
        let (source, destination) = (server.parse().unwrap(), self.source);
        let mut response = Self { macs, source, destination, ports, ..self.clone() };
        (response.options, response.extensions) = (Vec::new(), Vec::new());
        response
    }

    /// Returns the frame and the length of its headers.
    pub(crate) fn frame_and_headers(&self) -> (Vec<u8>, usize) {
        let frame = self.frame();
        let headers = frame.len() - self.payload.len();
        (frame, headers)
    }

    /// The packet as it leaves to where it came from: MAC addresses exchanged, one hop less.
    pub(crate) fn returned(&self) -> Self {
        Self { macs: [self.macs[1], self.macs[0]], ttl: self.ttl - 1, ..self.clone() }
    }

    pub(crate) fn to(&self, address: &str, port: u16) -> Self {
        Self { destination: address.parse().unwrap(), ports: (self.ports.0, port), ..self.clone() }
    }

    pub(crate) fn from(&self, address: &str, port: u16) -> Self {
        Self { source: address.parse().unwrap(), ports: (port, self.ports.1), ..self.clone() }
    }

    /// Header of UDP or TCP and payload, of the whole packet.
    fn segment(&self) -> Vec<u8> {
        let mut segment = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        let at = if self.protocol == UDP {
            segment.extend((8 + self.payload.len() as u16).to_be_bytes());
            segment.extend([0, 0]);
            6
        } else {
            segment.extend([0, 0, 1, 2, 0, 0, 3, 4, 0x50, self.flags, 0x20, 0, 0, 0, 0, 0]);
            16
        };
        segment.extend(&self.payload);
        if !self.without_checksum {
            let sum = pseudo_checksum(self.source, self.destination, self.protocol, &segment);
            let sum = if sum == 0 && self.protocol == UDP { 0xffff } else { sum };
            segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        segment
    }

    /// Part of the segment that this packet has: 64 bytes of a fragment that is not the last.
    fn part(&self) -> Vec<u8> {
        let segment = self.segment();
        match self.fragment {
            None => segment,
            Some(Fragment { offset, more: true, .. }) => {
                segment[offset as usize..offset as usize + 64].to_vec()
            }
            Some(Fragment { offset, .. }) => segment[offset as usize..].to_vec(),
        }
    }

    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let part = self.part();
        let content = IpContent { protocol: self.protocol, ttl: self.ttl, body: &part };
        match self.source {
            IpAddr::V4(_) => self.ipv4(&content),
            IpAddr::V6(_) => self.ipv6(&content),
        }
    }

    fn ipv4(&self, content: &IpContent<'_>) -> Vec<u8> {
        let length = 20 + self.options.len();
        let Fragment { id, offset, more } =
            self.fragment.unwrap_or(Fragment { id: 0x77, offset: 0, more: false });
        let mut header = vec![0x40 | (length / 4) as u8, 0];
        header.extend(((length + content.body.len()) as u16).to_be_bytes());
        header.extend(id.to_be_bytes());
        header.extend(((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        header.extend([content.ttl, content.protocol, 0, 0]);
        header.extend(octets(self.source));
        header.extend(octets(self.destination));
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&header, content.body].concat()
    }

    fn ipv6(&self, content: &IpContent<'_>) -> Vec<u8> {
        let mut types: Vec<u8> = self.extensions.iter().map(|extension| extension.0).collect();
        if self.fragment.is_some() {
            types.push(FRAGMENT);
        }
        types.push(content.protocol);
        let mut body = Vec::new();
        for (at, (kind, length)) in self.extensions.iter().enumerate() {
            // Next header, length in units of 8 bytes without the first, and an option of padding, or the type of
            // routing and the segments left.
            let third = if *kind == ROUTING { [4, 0] } else { [1, (length + 4) as u8] };
            body.extend([types[at + 1], (length / 8) as u8, third[0], third[1]]);
            body.extend(vec![0; length + 4]);
        }
        if let Some(Fragment { id, offset, more }) = self.fragment {
            body.extend([content.protocol, 0]);
            body.extend((offset | u16::from(more)).to_be_bytes());
            body.extend(u32::from(id).to_be_bytes());
        }
        body.extend(content.body);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([types[0], content.ttl]);
        packet.extend(octets(self.source));
        packet.extend(octets(self.destination));
        packet.extend(body);
        packet
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        frame(self.macs, &self.tags, self.source.is_ipv4(), &self.ip())
    }
}

struct IpContent<'a> {
    protocol: u8,
    ttl: u8,
    body: &'a [u8],
}

/// Checksum of a segment with the pseudo-header of its addresses.
pub(crate) fn pseudo_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = [octets(source), octets(destination)].concat();
    bytes.extend((segment.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(segment);
    checksum(&bytes)
}

pub(crate) fn frame(macs: [[u8; 6]; 2], tags: &[(u16, u16)], is_ipv4: bool, ip: &[u8]) -> Vec<u8> {
    let mut frame = macs.concat();
    for (kind, tag) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(if is_ipv4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(ip);
    frame
}

/// An ICMP error about a packet.
#[derive(Clone, Debug)]
pub(crate) struct IcmpError {
    /// The carrier's addresses, MAC addresses and TTL are used.
    carrier: Packet,
    kind: (u8, u8),
    /// The second word of the header: the MTU of "too big".
    rest: u32,
    /// Bytes of the packet that the error is about.
    quoted: Vec<u8>,
}

impl IcmpError {
    /// Creates an error with a type and code, which quotes bytes of a packet. Only the addresses, MAC addresses and TTL
    /// of `carrier` are used.
    pub(crate) fn new(carrier: Packet, kind: (u8, u8), rest: u32, quoted: Vec<u8>) -> Self {
        Self { carrier, kind, rest, quoted }
    }

    /// Returns the error as it leaves to where it came from.
    pub(crate) fn returned(&self) -> Self {
        Self { carrier: self.carrier.returned(), ..self.clone() }
    }

    /// Returns the error with a quotation of this many bytes at most, and of 20 bytes more for the longer header of IPv6.
    pub(crate) fn quoting(&self, length: usize) -> Self {
        let length = if self.carrier.source.is_ipv4() { length } else { length + 20 };
        let mut error = self.clone();
        error.quoted.truncate(length);
        error
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let is_ipv4 = self.carrier.source.is_ipv4();
        let mut icmp = vec![self.kind.0, self.kind.1, 0, 0];
        icmp.extend(self.rest.to_be_bytes());
        icmp.extend(&self.quoted);
        let sum = if is_ipv4 {
            checksum(&icmp)
        } else {
            pseudo_checksum(self.carrier.source, self.carrier.destination, ICMPV6, &icmp)
        };
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let protocol = if is_ipv4 { ICMP } else { ICMPV6 };
        let content = IpContent { protocol, ttl: self.carrier.ttl, body: &icmp };
        let ip = if is_ipv4 { self.carrier.ipv4(&content) } else { self.carrier.ipv6(&content) };
        frame(self.carrier.macs, &self.carrier.tags, is_ipv4, &ip)
    }
}
