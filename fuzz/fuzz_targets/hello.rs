//! Once some bytes are a ClientHello, or are refused, more bytes do not change the result.
#![no_main]

use evener_core::wire::hello;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = hello::parse(bytes);
    // All lengths of a short input, some lengths of a long input.
    let step = bytes.len() / 256 + 1;
    let results = (0..bytes.len()).step_by(step).map(|end| hello::parse(&bytes[..end]));
    if let Some(first) = results.into_iter().find(|result| *result != Ok(None)) {
        assert_eq!(first, whole);
    }
    if let Ok(Some(found)) = whole {
        let name = found.name.unwrap_or_default();
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
        assert!(found.alpn.iter().all(|protocol| (1..=255).contains(&protocol.len())));
    }
});
