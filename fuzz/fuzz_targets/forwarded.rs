//! For any bytes that a client sends, the elements that trusted proxies append determine the client. The lists
//! that are passed on determine the same client.
#![no_main]

use evener_core::wire::forwarded::{Client, Lists, Syntax, emit_before};
use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

fuzz_target!(|input: (&[u8], bool)| {
    let (written, is_same_line) = input;
    let trusts = |address| address == PEER;
    let forwarded = Lists { forwarded: &[written], ..Lists::default() };
    let forwarded_for = Lists { forwarded_for: &[written], ..Lists::default() };
    for lists in [forwarded, forwarded_for] {
        assert_eq!(lists.client(CLIENT, trusts), Client::Known(CLIENT));
        lists.client(PEER, |_| true);
    }
    for (syntax, added) in [
        (Syntax::Forwarded, &b"host=\"a\\\",\";for=\"192.0.2.7:1\", for=10.0.0.1"[..]),
        (Syntax::ForwardedFor, b"192.0.2.7:1, 10.0.0.1"),
    ] {
        let joined = [written, b",", added].concat();
        let lines: &[&[u8]] = if is_same_line { &[&joined] } else { &[written, added] };
        let mut out = Vec::new();
        emit_before(syntax, lines, &mut out);
        for lines in [lines, &[&out]] {
            let lists = match syntax {
                Syntax::Forwarded => Lists { forwarded: lines, ..Lists::default() },
                Syntax::ForwardedFor => Lists { forwarded_for: lines, ..Lists::default() },
            };
            assert_eq!(lists.client(PEER, trusts), Client::Known(CLIENT));
        }
    }
});
