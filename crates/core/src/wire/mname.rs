//! The frames between mname-balancer and a server of the Node library `mname` (its `lib/balancer.js`, 1.5.1),
//! as the balancer sends and receives them. The data plane decides the order of the frames.
//!
//! All integers are 32 bits long and little-endian, and a frame begins with its type. An IPv4 address is an
//! integer, too, so its bytes are reversed. IPv6 addresses cannot be represented.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Maximum size of a datagram, in either direction. The data plane does not send longer datagrams.
pub const DATAGRAM_BYTES_MAX: usize = 1500;
/// Maximum size of a frame.
pub const FRAME_BYTES_MAX: usize = OUTBOUND_UDP_FIXED + DATAGRAM_BYTES_MAX;

/// Type, address, port and length of OUTBOUND_UDP.
const OUTBOUND_UDP_FIXED: usize = 16;
/// Size of an integer.
const WORD: usize = 4;

const CLIENT_HELLO: u32 = 1;
const INBOUND_UDP: u32 = 2;
const INBOUND_TCP: u32 = 3;
const CLIENT_HEARTBEAT: u32 = 4;
const SERVER_HELLO: u32 = 1001;
const OUTBOUND_UDP: u32 = 1002;
const INBOUND_TCP_OK: u32 = 1003;
const SERVER_HEARTBEAT: u32 = 1004;

/// A frame from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// SERVER_HELLO: the server is present, in response to CLIENT_HELLO.
    Hello,
    /// OUTBOUND_UDP: a datagram for a client.
    OutboundUdp {
        /// The client.
        to: SocketAddrV4,
        /// Content of the datagram.
        data: &'a [u8],
    },
    /// INBOUND_TCP_OK: the server accepted the connection of a TCP client. The bytes of that connection follow.
    TcpOk,
    /// SERVER_HEARTBEAT: the server is alive, in response to CLIENT_HEARTBEAT.
    Heartbeat,
}

/// Reason why bytes are not a frame of a server. The connection cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The type is unknown.
    #[error("a frame of the unknown type {0}")]
    Unknown(u32),
    /// The datagram is longer than [`DATAGRAM_BYTES_MAX`].
    #[error("a datagram of {0} bytes, more than {DATAGRAM_BYTES_MAX}")]
    TooLong(u32),
    /// The port is beyond 65535.
    #[error("a datagram for port {0}, beyond 65535")]
    Port(u32),
}

/// Parses the frame at the start of `bytes`. Returns the frame and its size, or `Ok(None)` if more bytes are
/// needed. A frame has at most [`FRAME_BYTES_MAX`] bytes.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Fault> {
    match word(bytes, 0) {
        None => Ok(None),
        Some(SERVER_HELLO) => Ok(Some((Frame::Hello, WORD))),
        Some(OUTBOUND_UDP) => parse_outbound_udp(bytes),
        Some(INBOUND_TCP_OK) => Ok(Some((Frame::TcpOk, WORD))),
        Some(SERVER_HEARTBEAT) => Ok(Some((Frame::Heartbeat, WORD))),
        Some(unknown) => Err(Fault::Unknown(unknown)),
    }
}

/// Parses OUTBOUND_UDP. Faults are reported only once all fixed fields are present, so that the result does not
/// depend on the sizes of the pieces.
fn parse_outbound_udp(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Fault> {
    let fixed = (word(bytes, WORD), word(bytes, 2 * WORD), word(bytes, 3 * WORD));
    let (Some(address), Some(port), Some(length)) = fixed else { return Ok(None) };
    let narrow = u16::try_from(port).map_err(|_| Fault::Port(port))?;
    if length as usize > DATAGRAM_BYTES_MAX {
        return Err(Fault::TooLong(length));
    }
    let end = OUTBOUND_UDP_FIXED + length as usize;
    let to = SocketAddrV4::new(Ipv4Addr::from(address), narrow);
    Ok(bytes.get(OUTBOUND_UDP_FIXED..end).map(|data| (Frame::OutboundUdp { to, data }, end)))
}

/// Returns the integer at an offset, or `None` if not all of its bytes are present.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// Appends CLIENT_HELLO, which begins the persistent connection.
pub fn emit_client_hello(out: &mut Vec<u8>) {
    put(CLIENT_HELLO, out);
}

/// Appends INBOUND_UDP: the datagram of a client, with at most [`DATAGRAM_BYTES_MAX`] bytes.
pub fn emit_inbound_udp(source: SocketAddrV4, data: &[u8], out: &mut Vec<u8>) {
    put(INBOUND_UDP, out);
    put_source(source, out);
    put(data.len() as u32, out);
    out.extend_from_slice(data);
}

/// Appends INBOUND_TCP, which begins the connection of a TCP client.
pub fn emit_inbound_tcp(source: SocketAddrV4, out: &mut Vec<u8>) {
    put(INBOUND_TCP, out);
    put_source(source, out);
}

/// Appends CLIENT_HEARTBEAT, which requests the server's heartbeat.
pub fn emit_client_heartbeat(out: &mut Vec<u8>) {
    put(CLIENT_HEARTBEAT, out);
}

fn put_source(source: SocketAddrV4, out: &mut Vec<u8>) {
    put(u32::from(*source.ip()), out);
    put(u32::from(source.port()), out);
}

fn put(word: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&word.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 1, 2, 3), 0x1234);

    fn emitted(emit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        // Frames are appended to existing bytes.
        let mut out = vec![0xaa];
        emit(&mut out);
        assert_eq!(out.remove(0), 0xaa);
        out
    }

    /// Returns OUTBOUND_UDP as a server writes it.
    fn outbound(address: [u8; 4], port: u32, length: u32, data: &[u8]) -> Vec<u8> {
        let fixed = [OUTBOUND_UDP, u32::from_be_bytes(address), port, length];
        fixed.iter().flat_map(|word| word.to_le_bytes()).chain(data.iter().copied()).collect()
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<Option<(Frame<'_>, usize)>, Fault>) {
        assert_eq!(parse(bytes), expected, "{bytes:02x?}");
    }

    #[test]
    fn emitted_frames_have_the_layout_of_the_protocol() {
        assert_eq!(emitted(emit_client_hello), [1, 0, 0, 0]);
        assert_eq!(emitted(emit_client_heartbeat), [4, 0, 0, 0]);
        let tcp = emitted(|out| emit_inbound_tcp(CLIENT, out));
        assert_eq!(tcp, [3, 0, 0, 0, 3, 2, 1, 10, 0x34, 0x12, 0, 0]);
        let udp = emitted(|out| emit_inbound_udp(CLIENT, b"ab", out));
        assert_eq!(udp, [2, 0, 0, 0, 3, 2, 1, 10, 0x34, 0x12, 0, 0, 2, 0, 0, 0, b'a', b'b']);
    }

    #[test]
    fn server_frames_are_parsed_one_by_one() {
        check(&[0xe9, 3, 0, 0], Ok(Some((Frame::Hello, 4))));
        check(&[0xeb, 3, 0, 0, 7, 7], Ok(Some((Frame::TcpOk, 4))));
        check(&[0xec, 3, 0, 0, 0xe9], Ok(Some((Frame::Heartbeat, 4))));
        let bytes = [0xea, 3, 0, 0, 3, 2, 1, 10, 0x34, 0x12, 0, 0, 2, 0, 0, 0, b'a', b'b', b'c'];
        check(&bytes, Ok(Some((Frame::OutboundUdp { to: CLIENT, data: b"ab" }, 18))));
        check(
            &outbound([10, 1, 2, 3], 0x1234, 0, b""),
            Ok(Some((Frame::OutboundUdp { to: CLIENT, data: b"" }, 16))),
        );
    }

    #[test]
    fn unknown_types_and_invalid_fields_are_faults() {
        for kind in [0, CLIENT_HELLO, INBOUND_UDP, INBOUND_TCP, CLIENT_HEARTBEAT, 1000, 1005, u32::MAX] {
            check(&kind.to_le_bytes(), Err(Fault::Unknown(kind)));
        }
        check(&outbound([1; 4], 65_536, 1, b"a"), Err(Fault::Port(65_536)));
        check(&outbound([1; 4], 53, 1501, &[0; 1501]), Err(Fault::TooLong(1501)));
        check(&outbound([1; 4], 53, u32::MAX, b""), Err(Fault::TooLong(u32::MAX)));
        assert_eq!(Fault::TooLong(1501).to_string(), "a datagram of 1501 bytes, more than 1500");
    }

    #[test]
    fn an_incomplete_frame_needs_more_bytes() {
        let whole = outbound([10, 1, 2, 3], 0x1234, 1500, &[7; DATAGRAM_BYTES_MAX]);
        assert_eq!(whole.len(), FRAME_BYTES_MAX);
        (0..whole.len()).for_each(|cut| check(&whole[..cut], Ok(None)));
        check(
            &whole,
            Ok(Some((Frame::OutboundUdp { to: CLIENT, data: &[7; DATAGRAM_BYTES_MAX] }, FRAME_BYTES_MAX))),
        );
        (0..4).for_each(|cut| check(&SERVER_HELLO.to_le_bytes()[..cut], Ok(None)));
    }

    #[test]
    fn random_bytes_give_a_result_within_the_size_of_a_frame() {
        let mut random = Random::seeded(5);
        for _ in 0..20_000 {
            // Often a known type, often a small port and length, so that most of the bytes pass the first
            // checks.
            let words =
                [999 + random.below(7), random.below(1 << 20), random.below(70_000), random.below(1_600)];
            let mut bytes: Vec<u8> = words.iter().flat_map(|&word| (word as u32).to_le_bytes()).collect();
            bytes.resize(random.below(FRAME_BYTES_MAX + 200), random.below(256) as u8);
            match parse(&bytes) {
                Ok(None) => assert!(bytes.len() < FRAME_BYTES_MAX),
                Ok(Some((frame, length))) => {
                    assert!((WORD..=bytes.len().min(FRAME_BYTES_MAX)).contains(&length));
                    // Bytes after the frame make no difference; without its last byte the frame is incomplete.
                    assert_eq!(parse(&bytes[..length]), Ok(Some((frame, length))));
                    assert_eq!(parse(&bytes[..length - 1]), Ok(None));
                }
                Err(fault) => {
                    bytes.push(0);
                    assert_eq!(parse(&bytes), Err(fault));
                }
            }
        }
    }
}
