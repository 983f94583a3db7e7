//! A chunked body is decoded the same in any pieces, and decoded to the same bytes after it is encoded again.
#![no_main]

use evener_core::wire::chunked::{BODY_END, CHUNK_END, Decoder, Step, emit_size};
use libfuzzer_sys::fuzz_target;

/// Returns the body, the number of bytes after which it was complete, and true if it is malformed.
fn read(bytes: &[u8], size: usize) -> (Vec<u8>, Option<usize>, bool) {
    let (mut decoder, mut body, mut used) = (Decoder::default(), Vec::new(), 0);
    for end in (0..bytes.len()).step_by(size).chain([bytes.len()]) {
        loop {
            let Ok((taken, step)) = decoder.step(&bytes[used..end]) else { return (body, None, true) };
            used += taken;
            match step {
                Step::Data(data) => body.extend_from_slice(data),
                Step::More => break,
                Step::Done => return (body, Some(used), false),
            }
        }
    }
    (body, None, false)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = (usize::from(input.0) + 1, input.1);
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(read(bytes, size), whole);
    let (body, Some(_), _) = whole else { return };
    let mut written = Vec::new();
    for part in body.chunks(size) {
        emit_size(part.len(), &mut written);
        written.extend_from_slice(part);
        written.extend_from_slice(CHUNK_END);
    }
    written.extend_from_slice(BODY_END);
    assert_eq!(read(&written, size), (body, Some(written.len()), false));
});
