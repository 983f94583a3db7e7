//! Server IDs in connection IDs of QUIC (draft-ietf-quic-load-balancers).

use evener_xdp_native::quic_server_id;

/// Checks the server ID that is read from a payload in hexadecimal digits; `-` if there is none.
fn check(payload: &str, length: usize, expected: &str) {
    let digits: String = payload.split_whitespace().collect();
    let bytes: Vec<u8> = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("two digits"))
        .collect();
    let text = quic_server_id(&bytes, length)
        .map_or("-".to_owned(), |id| id.iter().map(|byte| format!("{byte:02x}")).collect());
    assert_eq!(text, expected, "{payload}, {length} bytes");
}

#[test]
fn short_headers_have_the_server_id_behind_two_bytes() {
    check("40 07 ed793a 80497d 44 ffff", 3, "ed793a");
    check("40 07 ed793a 80497d44", 3, "ed793a");
    check("7f 05 aa 11223344", 1, "aa");
    check("40 13 000102030405060708090a0b0c0d0e 11223344", 15, "000102030405060708090a0b0c0d0e");
    // Any rotation but 7.
    check("40 c7 ed793a 80497d44", 3, "ed793a");
    check("40 e7 ed793a 80497d44", 3, "-");
}

#[test]
fn long_headers_have_the_length_of_the_connection_id() {
    check("c0 00000001 08 07 ed793a 80497d44 00", 3, "ed793a");
    // Unknown versions, and the bits of the first byte besides the highest, do not matter (RFC 8999).
    check("80 faceb00c 08 07 ed793a 80497d44 00", 3, "ed793a");
    check("ff 00000000 08 07 ed793a 80497d44 00", 3, "ed793a");
    check("c0 00000001 14 f3 ed793a 80497d44 0102030405060708090a0b0c", 3, "-");
    // The connection ID has no room for a nonce of 4 bytes.
    check("c0 00000001 07 07 ed793a 80497d44 00", 3, "-");
    check("c0 00000001 00", 3, "-");
}

#[test]
fn truncated_datagrams_have_no_server_id() {
    let payloads: [&[u8]; 2] = [b"\x40\x07abcNONC", b"\xc0\x00\x00\x00\x01\x08\x07abcNONC"];
    for payload in payloads {
        assert_eq!(quic_server_id(payload, 3).as_deref(), Some(&b"abc"[..]));
        for length in 0..payload.len() {
            // A copy of that size, so that a tool that watches memory sees a read behind its end.
            let cut = payload[..length].to_vec();
            assert_eq!(quic_server_id(&cut, 3), None, "{length} bytes");
        }
    }
    for length in [0, 16, 255] {
        assert_eq!(quic_server_id(&[0x40; 64], length), None);
    }
}
