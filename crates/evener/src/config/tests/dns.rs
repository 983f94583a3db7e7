//! The keys of DNS services and their pools.

use super::*;
use evener_core::spec::{
    CheckSpec, ClientSubnetSpec, Dialect, DiscoverSpec, DnsCacheSpec, DnsRateSpec, DnsSpec, OnFailure,
    RetryOn, StickyBy, StickySpec,
};

const SERVER: &str = "\"10.0.0.1:53\"";

const EVERY_WORD: &str = r#"
        local binder = pool "binder" {
          "8.8.8.8:53",
          { "unix:/var/run/x", mname = true, weight = 2 },
          policy = "least_outstanding", discover = { mname = { "/var/run/binder/sockets", "more" } },
          sticky = { by = "client_ip", size = 10, ttl = "300s", failback = true, rebalance = "15s" },
          check = check.dns { name = "example.org", type = "SOA", rcode = "NXDOMAIN", every = "5s" },
        }
        service "dns" {
          protocol = "dns", listen = "127.0.0.1:5353", pool = binder, idle_timeout = "5s", connections_max = 7,
          dns = {
            query_timeout = "1s", retries = 1, on_failure = "drop", retry_on = "refused", outstanding_max = 1000, sockets = 8, pipeline_max = 9,
            cache = { entries = 10, bytes = "1MiB", ttl_max = "1h", negative_ttl_max = "10s", failure_ttl = "0s", stale = "1h" },
            client_subnet = { v4 = 20, v6 = 0 },
            rate_limit = { rate = "20/s", v4 = 32, v6 = 48, slip = 0, size = 5 },
          },
        }
        service "127.0.0.1:54" { protocol = "dns", discover = { mname = "/run/a" },
          dns = { cache = true, client_subnet = true, rate_limit = "5/m" }, check = "dns" }
        service "127.0.0.1:55" { protocol = "dns", "10.0.0.1:53" }
        "#;

/// Returns the DNS settings of the first service of [`EVERY_WORD`].
fn every_word() -> DnsSpec {
    DnsSpec {
        query_timeout: Duration::from_secs(1),
        retries: 1,
        on_failure: OnFailure::Drop,
        retry_on: RetryOn { servfail: false, refused: true },
        outstanding_max: 1000,
        sockets: 8,
        pipeline_max: 9,
        cache: Some(DnsCacheSpec {
            entries: 10,
            bytes: 1 << 20,
            ttl_max: Duration::from_secs(3600),
            negative_ttl_max: Duration::from_secs(10),
            failure_ttl: Duration::ZERO,
            stale: Duration::from_secs(3600),
        }),
        client_subnet: Some(ClientSubnetSpec { v4: 20, v6: 0 }),
        rate_limit: Some(DnsRateSpec { v4: 32, v6: 48, slip: 0, size: 5, ..rate("20/s") }),
    }
}

fn rate(text: &str) -> DnsRateSpec {
    DnsRateSpec::new(text.parse().unwrap())
}

#[test]
fn every_key_of_dns_is_read() {
    let config = load_text(EVERY_WORD).unwrap();
    let spec = config.spec;
    let binder = &spec.pools[0];
    let dialects: Vec<Dialect> = binder.servers.iter().map(|server| server.dialect).collect();
    assert_eq!(dialects, [Dialect::Plain, Dialect::Mname]);
    let [DiscoverSpec::Mname { directory }, DiscoverSpec::Mname { directory: other }] = &binder.discover[..]
    else {
        panic!("expected two directories, got {:?}", binder.discover)
    };
    assert_eq!(directory.to_str(), Some("/var/run/binder/sockets"));
    assert!(
        other.is_absolute() && other.ends_with("more"),
        "a relative path must be resolved from the file of the configuration, got {}",
        other.display()
    );
    let sticky = StickySpec {
        by: StickyBy::ClientIp,
        size: 10,
        ttl: Some(Duration::from_secs(300)),
        failback: true,
        rebalance: Some(Duration::from_secs(15)),
    };
    assert_eq!((binder.sticky.as_ref(), binder.policy), (Some(&sticky), Policy::LeastOutstanding));
    let kind = CheckKind::Dns { name: "example.org".into(), qtype: 6, rcode: Some(3) };
    let check = CheckSpec { every: Duration::from_secs(5), ..CheckSpec::new(kind) };
    assert_eq!(binder.check, Some(check));
    assert_eq!(spec.services[0].dns.as_deref(), Some(&every_word()));
    let options = &spec.services[0].options;
    assert_eq!((options.idle_timeout, options.connections_max), (Some(Duration::from_secs(5)), 7));
    let short = DnsSpec {
        cache: Some(DnsCacheSpec::default()),
        client_subnet: Some(ClientSubnetSpec::default()),
        rate_limit: Some(rate("5/m")),
        ..DnsSpec::default()
    };
    assert_eq!(spec.services[1].dns.as_deref(), Some(&short));
    assert_eq!((spec.pools[1].servers.len(), spec.pools[1].discover.len()), (0, 1));
    let check_kind = CheckKind::Dns { name: "a.root-servers.net.".into(), qtype: 1, rcode: None };
    assert_eq!(spec.pools[1].check, Some(CheckSpec::new(check_kind)));
    assert_eq!(spec.services[2].dns.as_deref(), Some(&DnsSpec::default()));
    assert_eq!(spec.services[2].options.idle_timeout, Some(Duration::from_secs(10)));
}

#[test]
fn settings_that_do_not_fit_the_protocol_are_refused_with_a_message() {
    let check = |body: &str, expected: &str| {
        let text = format!("service \"s\" {{ listen = \"127.0.0.1:1\", {body} }}");
        check_problems(&text, &[&format!("c.lua:1: {expected}")]);
    };
    check(&format!("dns = {{}}, {SERVER}"), "service `s`: dns needs protocol = \"dns\"");
    for (protocol, server) in
        [("tcp", "{ \"/run/x\", mname = true }"), ("http", "discover = { mname = \"/a\" }")]
    {
        check(
            &format!("protocol = \"{protocol}\", {server}"),
            "service `s`: pool `s` has servers of mname, which need protocol = \"dns\"",
        );
    }
    check(
        "protocol = \"dns\", \"/run/x\"",
        "server `/run/x` is a unix socket: a dns service needs IP servers",
    );
    check(
        &format!("protocol = \"dns\", {SERVER}, send_proxy = \"v1\""),
        "service `s`: version 1 of the PROXY protocol does not support UDP",
    );
    check(
        &format!("protocol = \"dns\", {SERVER}, denied = \"tarpit\""),
        "service `s`: a dns service does not support \"tarpit\"",
    );
    check(
        &format!("protocol = \"dns\", {SERVER}, sticky = {{ by = \"cookie\" }}"),
        "service `s`: pool `s` is sticky by cookie, which needs protocol = \"http\"",
    );
    check("\"/run/x\", check = check.dns {}", "server `/run/x` is a unix socket: check.dns needs IP servers");
    check(
        "protocol = \"dns\"",
        "service `s`: there is neither a pool nor a server: add pool = \"web\" or addresses",
    );
    let listen = "listen = \"/run/dns.sock\"";
    check_problems(
        &format!("service \"s\" {{ protocol = \"dns\", {listen}, {SERVER} }}"),
        &[
            "c.lua:1: service `s`: `/run/dns.sock` is a unix socket: a dns service must listen on IP addresses",
        ],
    );
    check_problems(
        &format!(
            "pool \"p\" {{ {SERVER}, tls = true }}\nservice \"s\" {{ protocol = \"dns\", listen = \"[::1]:1\", pool = \"p\" }}"
        ),
        &["c.lua:2: service `s`: a dns service cannot use TLS: remove `tls` of its pool"],
    );
}

#[test]
fn a_dns_service_uses_the_port_of_both_transports() {
    let of = |protocol: &str, name: &str| {
        format!("service \"{name}\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:1\", {SERVER} }}\n")
    };
    for other in ["tcp", "udp", "http", "dns"] {
        let expected = "c.lua:2: service `b` listens on 127.0.0.1:1, and so does service `a`";
        check_problems(&(of("dns", "a") + &of(other, "b")), &[expected]);
        check_problems(&(of(other, "a") + &of("dns", "b")), &[expected]);
    }
    assert!(load_text(&(of("tcp", "a") + &of("udp", "b"))).is_ok());
}
