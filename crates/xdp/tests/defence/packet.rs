//! Frames for the program, and a reader of its frames that computes checksums from scratch.

use std::net::IpAddr;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// A TCP segment or UDP datagram.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packet {
    vlans: Vec<u16>,
    macs: [[u8; 6]; 2],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: [u16; 2],
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    flags: u8,
    window: u16,
    /// Options of TCP, in units of 4 bytes.
    options: Vec<u8>,
    payload: Vec<u8>,
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(octets: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(octets) {
        Ok(octets) => octets.into(),
        Err(_) => <[u8; 16]>::try_from(octets).unwrap().into(),
    }
}

/// Returns the Internet checksum (RFC 1071): 0 for bytes that contain their valid checksum.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Returns the checksum of a segment with its pseudo-header.
pub(crate) fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let length = (segment.len() as u32).to_be_bytes();
    checksum(&[&octets(source), &octets(destination), &length[..], &[0, 0, 0, protocol], segment].concat())
}

impl Packet {
    pub(crate) fn new(source: &str, destination: &str, protocol: u8) -> Self {
        Self {
            vlans: Vec::new(),
            macs: [LOCAL_MAC, SENDER_MAC],
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            ports: [40_000, 80],
            sequence: 0x8000_0001,
            acknowledgement: 0,
            flags: 0,
            window: 1000,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// A TCP segment without data.
    pub(crate) fn segment(source: &str, destination: &str, flags: u8) -> Self {
        Self { flags, ..Self::new(source, destination, TCP) }
    }

    pub(crate) fn with_vlans(mut self, vlans: Vec<u16>) -> Self {
        self.vlans = vlans;
        self
    }

    pub(crate) fn with_macs(mut self, macs: [[u8; 6]; 2]) -> Self {
        self.macs = macs;
        self
    }

    pub(crate) fn with_ports(mut self, ports: [u16; 2]) -> Self {
        self.ports = ports;
        self
    }

    pub(crate) fn with_sequence(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    pub(crate) fn with_acknowledgement(mut self, acknowledgement: u32) -> Self {
        self.acknowledgement = acknowledgement;
        self
    }

    pub(crate) fn with_flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn with_window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    pub(crate) fn with_options(mut self, options: Vec<u8>) -> Self {
        self.options = options;
        self
    }

    pub(crate) fn with_payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.ports[0].to_be_bytes(), self.ports[1].to_be_bytes()].concat();
        if self.protocol == UDP {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            bytes.extend([self.sequence.to_be_bytes(), self.acknowledgement.to_be_bytes()].concat());
            bytes.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            bytes.extend([&self.window.to_be_bytes()[..], &[0, 0, 0, 0], &self.options].concat());
        }
        bytes.extend(&self.payload);
        let check = transport_checksum(self.source, self.destination, self.protocol, &bytes);
        let at = if self.protocol == UDP { 6 } else { 16 };
        bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = self.macs.concat();
        for vlan in &self.vlans {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        let mut ip;
        if self.source.is_ipv4() {
            frame.extend([8, 0]);
            ip = vec![0x45, 0];
            ip.extend((20 + transport.len() as u16).to_be_bytes());
            ip.extend([0, 7, 0x40, 0, 61, self.protocol, 0, 0]);
            ip.extend([octets(self.source), octets(self.destination)].concat());
            let check = checksum(&ip);
            ip[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            frame.extend([0x86, 0xdd]);
            ip = vec![0x60, 0, 0, 0];
            ip.extend((transport.len() as u16).to_be_bytes());
            ip.extend([self.protocol, 61]);
            ip.extend([octets(self.source), octets(self.destination)].concat());
        }
        [frame, ip, transport].concat()
    }

    /// Reads a frame of TCP without IP options. All checksums and lengths have to be right.
    pub(crate) fn read(frame: &[u8]) -> Self {
        let mut rest = &frame[12..];
        let mut vlans = Vec::new();
        while rest[..2] == [0x81, 0] {
            vlans.push(u16::from_be_bytes([rest[2], rest[3]]));
            rest = &rest[4..];
        }
        let is_v4 = rest[..2] == [8, 0];
        let ip = &rest[2..];
        let length = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
        let (addresses, protocol, header, total) =
            if is_v4 { (12, ip[9], 20, length(2)) } else { (8, ip[6], 40, 40 + length(4)) };
        if is_v4 {
            assert_eq!((ip[0], checksum(&ip[..20])), (0x45, 0), "{ip:x?}");
        }
        assert_eq!((total, protocol), (ip.len(), TCP), "{ip:x?}");
        let size = if is_v4 { 4 } else { 16 };
        let source = address(&ip[addresses..addresses + size]);
        let destination = address(&ip[addresses + size..addresses + 2 * size]);
        let tcp = &ip[header..];
        assert_eq!(transport_checksum(source, destination, TCP, tcp), 0, "{tcp:x?}");
        let short = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let word = |at: usize| u32::from(short(at)) << 16 | u32::from(short(at + 2));
        let data = usize::from(tcp[12] >> 4) * 4;
        Self {
            vlans,
            macs: [frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap()],
            source,
            destination,
            protocol,
            ports: [short(0), short(2)],
            sequence: word(4),
            acknowledgement: word(8),
            flags: tcp[13],
            window: short(14),
            options: tcp[20..data].to_vec(),
            payload: tcp[data..].to_vec(),
        }
    }

    /// Returns a segment in the other direction, without options and data.
    pub(crate) fn response(&self) -> Self {
        Self {
            macs: [self.macs[1], self.macs[0]],
            source: self.destination,
            destination: self.source,
            ports: [self.ports[1], self.ports[0]],
            options: Vec::new(),
            payload: Vec::new(),
            ..self.clone()
        }
    }
}
