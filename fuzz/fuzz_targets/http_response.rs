//! The header section of a response is parsed the same in any pieces. If its framing was repaired, the
//! connection is not reused.
#![no_main]

use evener_core::wire::http::{Framing, HeaderLimits, Kind, Response, Scan};
use libfuzzer_sys::fuzz_target;

const LIMITS: HeaderLimits = HeaderLimits { bytes_max: 2048, fields_max: 16 };

fn read(bytes: &[u8], step: usize) -> Result<Option<(Response, Vec<u8>)>, String> {
    let mut scan = Scan::of_response();
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        if let Some(found) = scan.find(&bytes[..end], &LIMITS).map_err(|error| error.to_string())? {
            let section = bytes[found.start..found.end].to_vec();
            let mut response = Response::default();
            response.parse(&section, &LIMITS).map_err(|error| error.to_string())?;
            return Ok(Some((response, section)));
        }
    }
    Ok(None)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0) + 1, input.1);
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(format!("{:?}", read(bytes, step)), format!("{whole:?}"));
    let Ok(Some((response, section))) = whole else { return };
    assert!((100..=999).contains(&response.status()));
    let count = |kind| response.fields().iter().filter(|field| field.kind == kind).count();
    let (lengths, codings) = (count(Kind::ContentLength), count(Kind::TransferEncoding));
    assert!(codings <= 1 && (lengths == 0 || codings == 0 || !response.keeps_alive()));
    match response.declared_framing() {
        None => assert_eq!(lengths + codings, 0),
        Some(Framing::Length(_)) => assert!(lengths > 0 && codings == 0),
        Some(Framing::Chunked) => assert_eq!(codings, 1),
        Some(Framing::Close) => panic!("no field declares this framing"),
    }
    assert_eq!(response.framing(b"HEAD"), None);
    for field in response.passed_on(&section) {
        assert!(!field.value.of(&section).iter().any(|byte| b"\r\n\0".contains(byte)));
    }
});
