//! The PROXY protocol, versions 1 and 2 (haproxy's `doc/proxy-protocol.txt`), which reports the client to the
//! next hop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Start of a version 2 header (section 2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Maximum size of a version 1 header (section 2.1).
const V1_BYTES_MAX: usize = 107;
/// Size of the fixed part of a version 2 header.
const V2_FIXED: usize = 16;
/// Maximum size of an accepted header. The protocol would allow 64 KiB of TLVs; real headers are smaller than
/// a tenth of this maximum.
pub const HEADER_BYTES_MAX: usize = V2_FIXED + 4096;
/// Maximum size of the value of a sub-TLV about TLS. All sub-TLVs together stay below the size at which
/// `emit_tlv` cuts.
const PART_BYTES_MAX: usize = 256;
/// Maximum size of a unique id (section 2.2.5).
pub const UNIQUE_ID_BYTES_MAX: usize = 128;

const TLV_ALPN: u8 = 0x01;
const TLV_AUTHORITY: u8 = 0x02;
const TLV_CRC32C: u8 = 0x03;
const TLV_UNIQUE_ID: u8 = 0x05;
/// Hop count, in the range for applications (section 2.2.7).
const TLV_HOPS: u8 = 0xE7;
const TLV_SSL: u8 = 0x20;
const TLV_SSL_VERSION: u8 = 0x21;
const TLV_SSL_CN: u8 = 0x22;
const TLV_SSL_CIPHER: u8 = 0x23;

const SSL_CLIENT: u8 = 0x01;
const SSL_CLIENT_CERT_CONN: u8 = 0x02;
const SSL_CLIENT_CERT_SESS: u8 = 0x04;

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text; TCP only.
    V1,
    /// Binary, with TLVs.
    V2,
}

/// Transport of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A stream.
    Stream,
    /// A datagram.
    Datagram,
}

/// The two ends of the reported connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: SocketAddr,
    /// The address that the client connected to.
    pub destination: SocketAddr,
}

/// A parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Size of the header in bytes.
    pub length: usize,
    /// Ends of the connection; `None` for a connection of the proxy itself (LOCAL, UNKNOWN) or a family
    /// without IP addresses.
    pub ends: Option<Ends>,
    /// Further information of version 2.
    pub extras: Extras<'a>,
}

/// Content of the TLVs of version 2 (section 2.2.1 ff.).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras<'a> {
    /// The application protocol that was negotiated.
    pub alpn: Option<&'a [u8]>,
    /// The server name of the client: SNI.
    pub authority: Option<&'a [u8]>,
    /// Unique id of the connection.
    pub unique_id: Option<&'a [u8]>,
    /// The client's TLS, if it used TLS.
    pub ssl: Option<Ssl<'a>>,
    /// Number of instances of Evener that passed the header on. The header has no TLV for 0.
    pub hops: u8,
}

/// Information about the client's TLS (section 2.2.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ssl<'a> {
    /// The version, such as `TLSv1.3`.
    pub version: Option<&'a [u8]>,
    /// The cipher, such as `TLS_AES_128_GCM_SHA256`.
    pub cipher: Option<&'a [u8]>,
    /// The common name of the client's verified certificate.
    pub common_name: Option<&'a [u8]>,
    /// The client sent a certificate, which was verified.
    pub verified: bool,
}

/// Reason why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The bytes do not begin like a header of either version.
    #[error("no PROXY header")]
    Signature,
    /// The line of version 1 is malformed.
    #[error("malformed PROXY v1 line")]
    Line,
    /// The binary part is malformed.
    #[error("malformed PROXY v2 header")]
    Binary,
    /// The header is longer than [`HEADER_BYTES_MAX`].
    #[error("PROXY header too long")]
    TooLong,
    /// The CRC32c TLV does not match.
    #[error("PROXY header with a wrong checksum")]
    Checksum,
}

/// Parses the header at the start of `bytes`. Returns `Ok(None)` if more bytes are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<Header<'_>>, ProxyError> {
    let v2 = bytes.len().min(SIGNATURE.len());
    let v1 = bytes.len().min(6);
    if bytes[..v2] == SIGNATURE[..v2] {
        parse_v2(bytes)
    } else if bytes[..v1] == b"PROXY "[..v1] {
        parse_v1(bytes)
    } else {
        Err(ProxyError::Signature)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header<'_>>, ProxyError> {
    let start = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = start.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() >= V1_BYTES_MAX { Err(ProxyError::Line) } else { Ok(None) };
    };
    let line = start[..end].strip_suffix(b"\r").ok_or(ProxyError::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::Line)?;
    let words: Vec<&str> = line.split(' ').collect();
    let ends = match words[..] {
        // "the receiver must ignore anything presented before the CRLF" (section 2.1).
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, from, to] => {
            let address = |text: &str| {
                let address: IpAddr = text.parse().ok()?;
                (address.is_ipv4() == (family == "TCP4")).then_some(address)
            };
            // Decimal, no leading zeros or signs.
            let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
            let end = |a: &str, p: &str| Some(SocketAddr::new(address(a)?, port(p)?));
            let ends = end(source, from).zip(end(destination, to));
            let (source, destination) = ends.ok_or(ProxyError::Line)?;
            Some(Ends { source, destination })
        }
        _ => return Err(ProxyError::Line),
    };
    Ok(Some(Header { length: end + 1, ends, extras: Extras::default() }))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header<'_>>, ProxyError> {
    let Some(fixed) = bytes.get(..V2_FIXED) else { return Ok(None) };
    let (command, family) = (fixed[12], fixed[13]);
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if command >> 4 != 2 || command & 0xf > 1 {
        return Err(ProxyError::Binary);
    }
    if length > HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    let Some(body) = bytes.get(V2_FIXED..length) else { return Ok(None) };
    let is_local = command & 0xf == 0;
    let parsed = addresses(family, body)
        .and_then(|(ends, tlvs)| parse_tlvs(tlvs, &bytes[..length]).map(|extras| (ends, extras)));
    let (ends, extras) = match parsed {
        // "discard the protocol block including the family which is ignored" (section 2.2).
        Err(ProxyError::Binary) if is_local => (None, Extras::default()),
        parsed => parsed?,
    };
    Ok(Some(Header { length, ends: ends.filter(|_| !is_local), extras }))
}

/// Returns the addresses of a family and the TLVs after them.
fn addresses(family: u8, body: &[u8]) -> Result<(Option<Ends>, &[u8]), ProxyError> {
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let size = match family {
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        0x00 => 0,
        _ => return Err(ProxyError::Binary),
    };
    let (block, rest) = body.split_at_checked(size).ok_or(ProxyError::Binary)?;
    let ends = match size {
        12 => {
            let address = |at: usize| <[u8; 4]>::try_from(&block[at..at + 4]).map(Ipv4Addr::from);
            let (Ok(source), Ok(destination)) = (address(0), address(4)) else {
                return Err(ProxyError::Binary);
            };
            let end = |address: Ipv4Addr, at| SocketAddr::from((address, port(at)));
            Some(Ends { source: end(source, 8), destination: end(destination, 10) })
        }
        36 => {
            let address = |at: usize| <[u8; 16]>::try_from(&block[at..at + 16]).map(Ipv6Addr::from);
            let (Ok(source), Ok(destination)) = (address(0), address(16)) else {
                return Err(ProxyError::Binary);
            };
            let end = |address: Ipv6Addr, at| SocketAddr::from((address, port(at)));
            Some(Ends { source: end(source, 32), destination: end(destination, 34) })
        }
        _ => None,
    };
    Ok((ends, rest))
}

/// Returns the kind and the value of the first TLV, and the bytes after it.
fn next_tlv(bytes: &[u8]) -> Result<(u8, &[u8], &[u8]), ProxyError> {
    let (start, rest) = bytes.split_at_checked(3).ok_or(ProxyError::Binary)?;
    let length = usize::from(u16::from_be_bytes([start[1], start[2]]));
    let (value, rest) = rest.split_at_checked(length).ok_or(ProxyError::Binary)?;
    Ok((start[0], value, rest))
}

fn parse_tlvs<'a>(mut rest: &'a [u8], whole: &'a [u8]) -> Result<Extras<'a>, ProxyError> {
    let mut extras = Extras::default();
    while !rest.is_empty() {
        let at = whole.len() - rest.len() + 3;
        let (kind, value, next) = next_tlv(rest)?;
        match kind {
            TLV_ALPN => extras.alpn = Some(value),
            TLV_AUTHORITY => extras.authority = Some(value),
            TLV_UNIQUE_ID if value.len() > UNIQUE_ID_BYTES_MAX => return Err(ProxyError::Binary),
            TLV_UNIQUE_ID => extras.unique_id = Some(value),
            TLV_SSL => extras.ssl = Some(parse_ssl(value)?),
            TLV_HOPS => extras.hops = value.first().copied().unwrap_or_default(),
            TLV_CRC32C => {
                let sum: [u8; 4] = value.try_into().map_err(|_| ProxyError::Binary)?;
                // The checksum is computed with zeros in place of its value (section 2.2.3).
                let mut zeroed = whole.to_vec();
                zeroed[at..at + 4].fill(0);
                if crc32c(&zeroed) != u32::from_be_bytes(sum) {
                    return Err(ProxyError::Checksum);
                }
            }
            _ => {}
        }
        rest = next;
    }
    Ok(extras)
}

fn parse_ssl(value: &[u8]) -> Result<Ssl<'_>, ProxyError> {
    let (fixed, mut rest) = value.split_at_checked(5).ok_or(ProxyError::Binary)?;
    let shown = fixed[0] & (SSL_CLIENT_CERT_CONN | SSL_CLIENT_CERT_SESS) != 0;
    let mut ssl = Ssl { verified: shown && fixed[1..5] == [0; 4], ..Ssl::default() };
    while !rest.is_empty() {
        let (kind, value, next) = next_tlv(rest)?;
        match kind {
            TLV_SSL_VERSION => ssl.version = Some(value),
            TLV_SSL_CN => ssl.common_name = Some(value),
            TLV_SSL_CIPHER => ssl.cipher = Some(value),
            _ => {}
        }
        rest = next;
    }
    Ok(ssl)
}

/// Returns both ends in one address family: if only one of them is IPv4, it becomes an IPv4-mapped IPv6
/// address (RFC 4291, section 2.5.5.2).
fn in_one_family(ends: Ends) -> Ends {
    let mapped = |end: SocketAddr| match end.ip() {
        IpAddr::V4(address) => SocketAddr::from((address.to_ipv6_mapped(), end.port())),
        IpAddr::V6(_) => end,
    };
    if ends.source.is_ipv4() == ends.destination.is_ipv4() {
        ends
    } else {
        Ends { source: mapped(ends.source), destination: mapped(ends.destination) }
    }
}

/// Writes a version 1 header. Without ends the header is UNKNOWN.
pub fn emit_v1(ends: Option<Ends>, out: &mut Vec<u8>) {
    let line = match ends.map(in_one_family) {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some(Ends { source, destination }) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.port(), destination.port());
            format!("PROXY {family} {} {} {from} {to}\r\n", source.ip(), destination.ip())
        }
    };
    out.extend_from_slice(line.as_bytes());
}

/// Writes a version 2 header with a checksum. Without ends the header is LOCAL: this instance opened the
/// connection, but not for a client.
pub fn emit_v2(ends: Option<Ends>, transport: Transport, extras: &Extras<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&SIGNATURE);
    out.push(0x20 | u8::from(ends.is_some()));
    let carried = if transport == Transport::Stream { 1 } else { 2 };
    let ends = ends.map(in_one_family);
    out.push(match ends {
        None => 0,
        Some(ends) if ends.source.is_ipv4() => 0x10 | carried,
        Some(_) => 0x20 | carried,
    });
    out.extend_from_slice(&[0, 0]);
    if let Some(ends) = ends {
        for end in [ends.source, ends.destination] {
            match end.ip() {
                IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
                IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
            }
        }
        out.extend_from_slice(&ends.source.port().to_be_bytes());
        out.extend_from_slice(&ends.destination.port().to_be_bytes());
    }
    emit_extras(extras, out);
    emit_tlv(TLV_CRC32C, &[0; 4], out);
    let length = (out.len() - start - V2_FIXED) as u16;
    out[start + 14..start + V2_FIXED].copy_from_slice(&length.to_be_bytes());
    let sum = crc32c(&out[start..]);
    let end = out.len();
    out[end - 4..].copy_from_slice(&sum.to_be_bytes());
}

fn emit_extras(extras: &Extras<'_>, out: &mut Vec<u8>) {
    let simple =
        [(TLV_ALPN, extras.alpn), (TLV_AUTHORITY, extras.authority), (TLV_UNIQUE_ID, extras.unique_id)];
    for (kind, value) in simple {
        value.into_iter().for_each(|value| emit_tlv(kind, value, out));
    }
    if extras.hops > 0 {
        emit_tlv(TLV_HOPS, &[extras.hops], out);
    }
    let Some(ssl) = extras.ssl else { return };
    let mut inner =
        vec![SSL_CLIENT | if ssl.verified { SSL_CLIENT_CERT_CONN | SSL_CLIENT_CERT_SESS } else { 0 }];
    inner.extend_from_slice(&u32::from(!ssl.verified).to_be_bytes());
    let parts = [(TLV_SSL_VERSION, ssl.version), (TLV_SSL_CN, ssl.common_name), (TLV_SSL_CIPHER, ssl.cipher)];
    for (kind, value) in parts {
        value
            .into_iter()
            .for_each(|value| emit_tlv(kind, &value[..value.len().min(PART_BYTES_MAX)], &mut inner));
    }
    emit_tlv(TLV_SSL, &inner, out);
}

/// Writes a TLV. Values longer than 1024 bytes are cut: no name is that long, and the length of the header
/// has only 16 bits.
fn emit_tlv(kind: u8, value: &[u8], out: &mut Vec<u8>) {
    let value = &value[..value.len().min(1024)];
    out.push(kind);
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

/// Computes the reflected CRC-32C (RFC 3309, required by section 2.2.3) with a table.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0_u32; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut sum, mut bit) = (byte as u32, 0);
            while bit < 8 {
                sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
                bit += 1;
            }
            table[byte] = sum;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |sum, &byte| TABLE[(sum as u8 ^ byte) as usize] ^ (sum >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Option<Ends> {
        Some(Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    const FULL: Extras<'static> = Extras {
        alpn: Some(b"h2"),
        authority: Some(b"a.example"),
        unique_id: Some(b"id-1"),
        ssl: Some(Ssl {
            version: Some(b"TLSv1.3"),
            cipher: Some(b"TLS_AES_128_GCM_SHA256"),
            common_name: Some(b"someone"),
            verified: true,
        }),
        hops: 3,
    };

    #[test]
    fn emitted_headers_are_parsed_and_incomplete_headers_need_more_bytes() {
        let pairs =
            [ends("192.0.2.1:1000", "192.0.2.2:443"), ends("[2001:db8::1]:1000", "[2001:db8::2]:443"), None];
        for pair in pairs {
            let mut written = Vec::new();
            emit_v1(pair, &mut written);
            round_trip(&written, pair, Extras::default());
            for extras in [FULL, Extras::default()] {
                for transport in [Transport::Stream, Transport::Datagram] {
                    let mut written = Vec::new();
                    emit_v2(pair, transport, &extras, &mut written);
                    round_trip(&written, pair, extras);
                }
            }
        }
    }

    fn round_trip(written: &[u8], ends: Option<Ends>, extras: Extras<'_>) {
        for length in 0..written.len() {
            assert_eq!(parse(&written[..length]), Ok(None), "{length} bytes of {written:?}");
        }
        let header = Header { length: written.len(), ends, extras };
        assert_eq!(parse(written), Ok(Some(header.clone())));
        let followed = [written, b"PROXY "].concat();
        assert_eq!(parse(&followed), Ok(Some(header)));
    }

    #[test]
    fn an_ipv4_address_is_mapped_if_the_other_end_is_ipv6() {
        let mut written = Vec::new();
        emit_v1(ends("192.0.2.1:1000", "[2001:db8::2]:443"), &mut written);
        assert_eq!(written, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1000 443\r\n");
    }

    #[test]
    fn malformed_headers_are_refused() {
        let check = |bytes: &[u8], expected: ProxyError| assert_eq!(parse(bytes), Err(expected), "{bytes:?}");
        check(b"GET / HTTP/1.1\r\n", ProxyError::Signature);
        check(b"PROXX", ProxyError::Signature);
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", ProxyError::Line);
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", ProxyError::Line);
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", ProxyError::Line);
        check(b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", ProxyError::Line);
        check(b"PROXY TCP4 ::1 ::2 1 2\r\n", ProxyError::Line);
        check(b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", ProxyError::Line);
        check(b"PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n", ProxyError::Line);
        check(b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", ProxyError::Line);
        check(&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 120]].concat(), ProxyError::Line);
        let mut good = Vec::new();
        emit_v2(ends("192.0.2.1:1000", "192.0.2.2:443"), Transport::Stream, &FULL, &mut good);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            parse(&bytes).unwrap_err()
        };
        assert_eq!(with(12, 0x11), ProxyError::Binary, "version 1");
        assert_eq!(with(12, 0x22), ProxyError::Binary, "command 2");
        assert_eq!(with(13, 0x41), ProxyError::Binary, "family 4");
        assert_eq!(with(14, 0xff), ProxyError::TooLong);
        assert_eq!(with(16, 1), ProxyError::Checksum);
        assert_eq!(with(30, 0xff), ProxyError::Binary, "a TLV longer than the header");
    }

    #[test]
    fn the_checksum_matches_the_examples_of_rfc_3720() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
