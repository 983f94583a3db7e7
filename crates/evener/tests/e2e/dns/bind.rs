//! BIND as a peer: `named` as a client that accepts no response without a cookie once it has received a cookie
//! from a server (RFC 7873), and as a server for signed queries (TSIG, RFC 8945).

use crate::harness::named::{KEY, Named, dig};
use crate::harness::{Evener, have, reserved_port};
use std::process::Command;

fn have_all() -> bool {
    ["named", "dig"].iter().all(|program| have(program))
}

fn service(listen: u16, server: u16, dns: &str) -> String {
    format!(
        "service \"d\" {{ protocol = \"dns\", listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{server}\", dns = {dns} }}"
    )
}

/// Checks that a forwarder that queries Evener resolves each name twice. Another client queries every other
/// name first.
fn check_forwarder(forwarder: u16, listen: u16) {
    for name in 0..20 {
        let queried = format!("n{name}.example");
        if name % 2 == 1 {
            dig(listen, &[&queried, "A"]);
        }
        for _ in 0..2 {
            let printed = dig(forwarder, &[&queried, "A", "+short"]);
            assert_eq!(printed.trim(), format!("192.0.2.{name}"));
        }
    }
}

#[test]
fn a_bind_forwarder_accepts_cached_responses() {
    if !have_all() {
        return;
    }
    let [server, listen, forwarder] = [reserved_port(), reserved_port(), reserved_port()];
    let (_server, _forwarder) = (Named::with_zone(server), Named::forwarder(forwarder, listen));
    let evener = Evener::run(&service(listen, server, "{ cache = true }"));
    check_forwarder(forwarder, listen);
    assert!(evener.service_counter("d", "cache_lookups.hit") >= 20);
    assert_eq!(evener.service_counter("d", "connections"), 0, "expected no retry over TCP");
    // A client that requests a cookie gets no error and no cookie, not even in the first response.
    for name in ["n50.example", "n50.example", "none.example"] {
        let printed = dig(listen, &[name, "A", "+cookie"]);
        assert!(printed.contains("status: N") && !printed.contains("COOKIE"), "{printed}");
    }
    // A response that is too large for a datagram is fetched over TCP.
    let big = dig(forwarder, &["big.example", "TXT", "+tcp"]);
    assert!(big.contains("status: NOERROR") && big.matches("xxx").count() > 20, "{big}");
}

#[test]
fn cookies_pass_through_a_service_without_a_cache() {
    if !have_all() {
        return;
    }
    let [server, listen, forwarder] = [reserved_port(), reserved_port(), reserved_port()];
    let (_server, _forwarder) = (Named::with_zone(server), Named::forwarder(forwarder, listen));
    let evener = Evener::run(&service(listen, server, "{ client_subnet = true }"));
    check_forwarder(forwarder, listen);
    assert_eq!(evener.service_counter("d", "connections"), 0);
    for more in [&[][..], &["+tcp"]] {
        let printed = dig(listen, &[&["n1.example", "A", "+cookie"], more].concat());
        assert!(printed.contains("COOKIE") && printed.contains("(good)"), "{printed}");
        // A query that requests only a cookie (RFC 7873, section 5.4).
        let printed = dig(listen, &[&["+header-only", "+cookie"], more].concat());
        assert!(printed.contains("status: NOERROR") && printed.contains("(good)"), "{printed}");
    }
}

#[test]
fn signed_messages_pass_unchanged() {
    if !have_all() {
        return;
    }
    let [server, listen] = [reserved_port(), reserved_port()];
    let _server = Named::with_zone(server);
    let _evener = Evener::run(&service(listen, server, "{ cache = true, client_subnet = true }"));
    assert!(dig(listen, &["n.secret", "A"]).contains("status: REFUSED"));
    for more in [&[][..], &["+tcp"], &["+cookie"], &["+nocookie", "+noedns"], &["+tcp", "+keepalive"]] {
        for name in ["n.secret", "n1.example", "none.secret"] {
            let printed = dig(listen, &[&[name, "A", "-y", KEY], more].concat());
            assert!(printed.contains("status: N") && printed.contains("TSIG PSEUDOSECTION"), "{printed}");
            assert!(!printed.contains("verify") && !printed.contains("BAD"), "{printed}");
        }
    }
    let printed = dig(listen, &["secret", "AXFR", "-y", KEY]);
    assert!(printed.contains("n.secret.") && printed.contains("XFR size: 5 records"), "{printed}");
    assert!(printed.matches("TSIG").count() >= 1 && !printed.contains("verify"), "{printed}");
    // The response to a query that is signed with a wrong key comes from the server. It is not a local
    // response.
    let output = Command::new("dig")
        .args(["@127.0.0.1", "-p", &listen.to_string(), "n.secret", "A", "-y", "hmac-sha256:k:d3Jvbmc="])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("BADSIG"), "{printed}");
}
