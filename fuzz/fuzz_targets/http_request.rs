//! The header section of a request is parsed the same in any pieces, and the fields that are passed on are
//! unambiguous.
#![no_main]

use evener_core::wire::http::{HeaderLimits, Kind, Request, Scan};
use libfuzzer_sys::fuzz_target;

const LIMITS: HeaderLimits = HeaderLimits { bytes_max: 2048, fields_max: 16 };

fn read(bytes: &[u8], step: usize) -> Result<Option<(Request, Vec<u8>)>, String> {
    let mut scan = Scan::default();
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        if let Some(found) = scan.find(&bytes[..end], &LIMITS).map_err(|error| error.to_string())? {
            let section = bytes[found.start..found.end].to_vec();
            let mut request = Request::default();
            request.parse(&section, &LIMITS).map_err(|error| error.to_string())?;
            return Ok(Some((request, section)));
        }
    }
    Ok(None)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0) + 1, input.1);
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(format!("{:?}", read(bytes, step)), format!("{whole:?}"));
    let Ok(Some((request, section))) = whole else { return };
    let count = |kind| request.fields().iter().filter(|field| field.kind == kind).count();
    let (lengths, codings) = (count(Kind::ContentLength), count(Kind::TransferEncoding));
    assert!(lengths + codings <= 1 && count(Kind::Host) <= 1, "{lengths} {codings}");
    // A header section in which the fields are written as they are passed on has the same meaning.
    let line = section.windows(2).position(|two| two == b"\r\n").unwrap() + 2;
    let mut again = section[..line].to_vec();
    for field in request.fields() {
        let (name, value) = (field.name.of(&section), field.value.of(&section));
        assert!(!name.is_empty() && !value.iter().any(|byte| b"\r\n\0".contains(byte)));
        again.extend([name, b": ", value, b"\r\n"].concat());
    }
    again.extend(b"\r\n");
    let mut second = Request::default();
    let limits = HeaderLimits { bytes_max: 2 * LIMITS.bytes_max, ..LIMITS };
    second.parse(&again, &limits).unwrap();
    assert_eq!(second.framing(), request.framing());
    assert_eq!(second.authority(&again), request.authority(&section));
    assert_eq!(second.keeps_alive(), request.keeps_alive());
    let names = |request: &Request, section: &[u8]| -> Vec<Vec<u8>> {
        request.passed_on(section).map(|field| field.name.of(section).to_vec()).collect()
    };
    assert_eq!(names(&second, &again), names(&request, &section));
});
