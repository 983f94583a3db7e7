//! Any text is refused as a prefix, or makes an access list that matches the prefix's own address.
#![no_main]

use evener_core::acl::{Access, Acl, Prefix};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(prefix) = text.parse::<Prefix>() {
        let acl = Acl::new(&[(prefix, Access::Deny)], Access::Permit);
        let address = text.split('/').next().and_then(|address| address.parse().ok());
        assert_eq!(address.map(|address| acl.access(address)), Some(Access::Deny));
    }
});
