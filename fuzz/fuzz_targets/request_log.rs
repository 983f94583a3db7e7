//! For any bytes of a client, each format makes one line of printable ASCII with the same fields.
#![no_main]

use evener_core::request_log::{Record, RequestLogFormat, RequestText};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;

fuzz_target!(|input: (&[u8], &[u8], &[u8], &[u8], bool)| {
    let (line, host, user_agent, referer, is_http2) = input;
    let text = RequestText::new(line).with_fields(host, user_agent, referer);
    let text = if is_http2 { text.with_protocol(b"HTTP/2.0") } else { text };
    let record = Record {
        received_at: Duration::from_secs(1_763_870_000),
        service: "s",
        client: [192, 0, 2, 7].into(),
        client_port: None,
        request: &text,
        status: None,
        cause: None,
        server: None,
        retries: 0,
        request_bytes: 0,
        response_bytes: 0,
        connected: None,
        first_byte: None,
        duration: Duration::ZERO,
        tls: None,
        sni: None,
    };
    // The number of separators outside quotes: of fields in JSON, and of words in text.
    for (name, separator, expected) in
        [("json", b',', 24), ("text", b' ', 12), ("common", b' ', 7), ("combined", b' ', 9)]
    {
        let mut out = Vec::new();
        RequestLogFormat::named(name).expect("a named format").write(&record, &mut out);
        assert!(out.len() < 32 * 1024);
        assert_eq!(out.pop(), Some(b'\n'));
        assert!(out.iter().all(|byte| matches!(byte, b' '..=b'~')));
        let (mut is_quoted, mut is_escaped, mut found) = (false, false, 0);
        for byte in out {
            let is_literal = std::mem::take(&mut is_escaped);
            match byte {
                b'\\' if !is_literal => is_escaped = true,
                b'"' if !is_literal => is_quoted = !is_quoted,
                byte if byte == separator && !is_quoted => found += 1,
                _ => {}
            }
        }
        assert!(!is_quoted && found == expected, "{name}: {found}");
    }
});
