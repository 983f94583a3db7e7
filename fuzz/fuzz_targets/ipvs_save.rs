//! Any text is refused as text of ipvsadm with the number of a line, or read.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| match evener_ipvs::save::parse(text) {
    Ok(services) => assert!(services.iter().all(|saved| saved.line >= 1)),
    Err(error) => assert!((1..=text.lines().count()).contains(&error.line)),
});
