//! Any bytes are refused as a PROXY header, are an incomplete header, or begin with a header. Fewer bytes than
//! the header has are incomplete, and the header has the same meaning after it is written again.
#![no_main]

use evener_core::wire::proxy::{self, Transport};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(header)) = proxy::parse(bytes) else { return };
    assert!(header.length <= bytes.len() && header.length <= proxy::HEADER_BYTES_MAX);
    for length in 0..header.length {
        assert_eq!(proxy::parse(&bytes[..length]), Ok(None), "{length} bytes");
    }
    let mut written = Vec::new();
    if bytes.starts_with(b"PROXY") {
        proxy::emit_v1(header.ends, &mut written);
        assert_eq!(proxy::parse(&written).unwrap().unwrap().ends, header.ends);
        return;
    }
    proxy::emit_v2(header.ends, Transport::Stream, &header.extras, &mut written);
    let again = proxy::parse(&written)
        .expect("the written header is well-formed")
        .expect("the written header is complete");
    assert_eq!((again.ends, again.length), (header.ends, written.len()));
    // The writer cuts long values.
    if header.length < 1000 {
        assert_eq!(again.extras, header.extras);
    }
});
