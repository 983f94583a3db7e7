//! Any text is refused as an address, or is parsed to an address that stays equal when it is printed and parsed
//! again.
#![no_main]

use evener_core::Endpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse::<Endpoint>().as_ref(), Ok(&endpoint));
    }
});
