//! Any text is a list of servers or an error. The list has a bounded number of servers at different addresses, and
//! is the same when its lines end in CRLF.
#![no_main]

use evener_core::server_list::{SERVERS_MAX, parse};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;

fuzz_target!(|input: (&str, Option<u16>)| {
    let (text, port) = input;
    let Ok(list) = parse(text, port.filter(|port| *port > 0)) else { return };
    assert!(!list.is_empty() && list.len() <= SERVERS_MAX);
    let addresses: BTreeSet<_> = list.iter().map(|server| server.address).collect();
    assert_eq!(addresses.len(), list.len());
    assert!(addresses.iter().all(|address| address.port() > 0));
    let again: String = list
        .iter()
        .map(|server| {
            let weight = server.weight.map(|weight| format!(" weight={weight}")).unwrap_or_default();
            let tier = server.tier.map(|tier| format!(" tier={tier}")).unwrap_or_default();
            format!("{}{weight}{tier}\r\n", server.address)
        })
        .collect();
    assert_eq!(parse(&again, None).as_ref(), Ok(&list));
});
