//! Any bytes are refused as a message of IPVS, or read.
#![no_main]

use evener_ipvs::message::Message;
use evener_ipvs::model::Family;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::parse(1, bytes) {
        if let Ok(state) = message.service() {
            assert!(state.service.persistence.is_none_or(|persistence| persistence.prefix <= 128));
        }
        for family in [Family::V4, Family::V6] {
            let _ = message.destination(family);
        }
        let _ = message.timeouts();
        let _ = message.info();
    }
});
