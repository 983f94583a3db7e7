//! The parts of a TLS ClientHello (RFC 8446, section 4.1.2) that routing without decryption needs: the
//! server name (RFC 6066, section 3) and the application protocols (RFC 7301). Unknown extensions, among them
//! GREASE (RFC 8701), are ignored. With Encrypted ClientHello, only the outer name is visible.

/// Maximum number of record bytes that are parsed. A ClientHello with post-quantum key shares has about 2
/// KiB.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

const RECORD_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_BYTES_MAX: usize = 1 << 14;

/// Parameters of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The host name, in lower case.
    pub name: Option<String>,
    /// The application protocols in the client's order of preference.
    pub alpn: Vec<Vec<u8>>,
}

/// Reason why bytes are not a ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The bytes are not a TLS handshake.
    #[error("this is not TLS")]
    NotTls,
    /// The bytes begin like a ClientHello, but are malformed.
    #[error("malformed ClientHello")]
    Malformed,
    /// The ClientHello is longer than [`HELLO_BYTES_MAX`].
    #[error("ClientHello too long")]
    TooLong,
}

/// Parses the ClientHello at the start of `bytes`, which may be spread over records. Returns `Ok(None)` if
/// more bytes are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
    let mut message = Vec::new();
    // Bytes beyond the maximum are ignored, so the result does not depend on the sizes of the pieces.
    let mut rest = &bytes[..bytes.len().min(HELLO_BYTES_MAX)];
    loop {
        // The start of a record, of which perhaps only a part was received.
        if rest.first().is_some_and(|&kind| kind != HANDSHAKE) || rest.get(1).is_some_and(|&major| major != 3)
        {
            return Err(HelloError::NotTls);
        }
        let Some(header) = rest.get(..RECORD_HEADER) else { return more(bytes) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        // A handshake record is never empty (RFC 8446, section 5.1).
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(HelloError::Malformed);
        }
        let body = &rest[RECORD_HEADER..rest.len().min(RECORD_HEADER + length)];
        message.extend_from_slice(body);
        if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return Err(HelloError::Malformed);
        }
        if let Some(&[_, a, b, c]) = message.first_chunk() {
            let wanted = u32::from_be_bytes([0, a, b, c]) as usize;
            if wanted > HELLO_BYTES_MAX {
                return Err(HelloError::TooLong);
            }
            if let Some(hello) = message.get(4..4 + wanted) {
                return parse_body(hello).map(Some).ok_or(HelloError::Malformed);
            }
        }
        if body.len() < length {
            return more(bytes);
        }
        rest = &rest[RECORD_HEADER + length..];
    }
}

/// Returns whether the bytes begin like a record of a TLS handshake.
#[must_use]
pub fn is_record(bytes: &[u8]) -> bool {
    bytes.starts_with(&[HANDSHAKE, 3])
}

fn more(bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
    if bytes.len() >= HELLO_BYTES_MAX { Err(HelloError::TooLong) } else { Ok(None) }
}

/// Takes bytes from the front. Each method returns `None` if too few bytes are left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|bytes| usize::from(bytes[0]))
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2).map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }

    /// Takes a vector that comes after its length of one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length)
    }

    /// Takes a vector that comes after its length of two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length)
    }
}

fn parse_body(body: &[u8]) -> Option<Hello> {
    let mut body = Reader(body);
    // legacy_version and random, legacy_session_id, cipher_suites, legacy_compression_methods
    body.take(2 + 32)?;
    body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    let mut hello = Hello::default();
    if body.0.is_empty() {
        // TLS 1.2 allows a ClientHello without extensions (RFC 5246, section 7.4.1.2).
        return Some(hello);
    }
    let mut extensions = Reader(body.vector16()?);
    if !body.0.is_empty() {
        return None;
    }
    let mut seen_name = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        match kind {
            // A second name would be ambiguous (RFC 8446, section 4.2: no extension twice).
            0 if seen_name => return None,
            0 => (hello.name, seen_name) = (server_name(data)?, true),
            16 => hello.alpn = protocols(data)?,
            _ => {}
        }
    }
    Some(hello)
}

/// Returns the first host name of the list, `Some(None)` if the list has no host name, or `None` if the list
/// is malformed.
fn server_name(data: &[u8]) -> Option<Option<String>> {
    let mut names = Reader(Reader(data).vector16()?);
    let mut found = None;
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?;
        if kind == 0 && found.is_none() {
            found = Some(host_name(name)?);
        }
    }
    Some(found)
}

/// Returns a name in lower case and without a trailing dot, or `None` if it has a character other than visible
/// ASCII.
fn host_name(name: &[u8]) -> Option<String> {
    let fits = !name.is_empty() && name.len() <= 255 && name.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(name).ok().filter(|_| fits)?;
    Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

fn protocols(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(Reader(data).vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.vector8().filter(|protocol| !protocol.is_empty())?.to_vec());
    }
    Some(protocols)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
    }

    fn vector16(data: &[u8]) -> Vec<u8> {
        [&(data.len() as u16).to_be_bytes()[..], data].concat()
    }

    fn name(name: &str) -> Vec<u8> {
        extension(0, &vector16(&[&[0][..], &vector16(name.as_bytes())].concat()))
    }

    fn alpn(protocols: &[&str]) -> Vec<u8> {
        let list: Vec<u8> =
            protocols.iter().flat_map(|p| [&[p.len() as u8][..], p.as_bytes()].concat()).collect();
        extension(16, &vector16(&list))
    }

    /// Returns a ClientHello with these extensions, in records of at most `record` bytes.
    fn hello(extensions: &[Vec<u8>], record: usize) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0]);
        body.extend(vector16(&[0x1a, 0x1a, 0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(vector16(&extensions.concat()));
        let mut message = vec![1];
        message.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message.chunks(record).flat_map(|part| [&[22, 3, 1][..], &vector16(part)].concat()).collect()
    }

    #[test]
    fn name_and_protocols_are_found_in_records_of_any_size() {
        // GREASE first (RFC 8701), an outer ClientHello of ECH, padding.
        let extensions = [
            extension(0x1a1a, &[]),
            name("Shop.Example."),
            extension(0xfe0d, &[0, 1, 2, 3]),
            alpn(&["h2", "http/1.1"]),
            extension(21, &[0; 300]),
        ];
        for record in [1, 2, 7, 100, 16_000] {
            let bytes = hello(&extensions, record);
            let found = parse(&bytes).unwrap().unwrap();
            assert_eq!(found.name.as_deref(), Some("shop.example"));
            assert_eq!(found.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
            for length in 0..bytes.len() {
                assert_eq!(parse(&bytes[..length]), Ok(None), "{length} of {} bytes", bytes.len());
            }
        }
    }

    #[test]
    fn malformed_hellos_and_other_bytes_are_refused() {
        let check = |bytes: &[u8], expected: HelloError| assert_eq!(parse(bytes), Err(expected), "{bytes:?}");
        check(b"GET / HTTP/1.1", HelloError::NotTls);
        check(&[22, 2], HelloError::NotTls);
        check(&[22, 3, 1, 0, 0], HelloError::Malformed);
        check(&[22, 3, 1, 0xff, 0xff], HelloError::Malformed);
        check(&[22, 3, 1, 0, 4, 2, 0, 0, 0], HelloError::Malformed);
        check(&[22, 3, 1, 0, 4, 1, 1, 0, 0], HelloError::TooLong);
        check(&hello(&[name("a.example"), name("b.example")], 16_000), HelloError::Malformed);
        check(&hello(&[name("a b")], 16_000), HelloError::Malformed);
        check(&hello(&[extension(0, &[0, 9, 0])], 16_000), HelloError::Malformed);
    }

    #[test]
    fn a_hello_may_have_no_extensions_or_name() {
        assert_eq!(parse(&hello(&[], 16_000)), Ok(Some(Hello::default())));
        assert_eq!(parse(&hello(&[name("a.example")], 16_000)).unwrap().unwrap().alpn, Vec::<Vec<u8>>::new());
    }
}
