//! Sources of servers, and the keys `resolve` and `resolver`.

use super::*;
use evener_core::limits::Limits;
use evener_core::spec::{DiscoverSpec, FoundSettings, PoolSpec, Resolve};

const MISTAKES: &str = r#"
discover.dns "app.example"
    discover.dns "app.example": `app.example` has no port: write it as app.example:80
discover.dns "10.0.0.2:80"
    discover.dns "10.0.0.2:80": "10.0.0.2:80" is an address and not a name: list "10.0.0.2:80" as a server
discover.dns "app.example:http"
    discover.dns "app.example:http": the port of `app.example:http` must be a number: write app.example:80
discover.dns { "app.example:80" }
    discover.dns takes a string, got a table: write discover.dns "app.example:80"
discover.dns "app.example:80", discover.dns "app.example:80"
    discover.dns "app.example:80": it is listed twice
discover.dns "app.example:80" { "10.0.0.2:80" }
    discover.dns "app.example:80": a source has only keys, got "10.0.0.2:80"
discover.dns "app.example:80" { port = 80 }
    discover.dns "app.example:80": port is a key of discover.file: write discover.file "servers.txt" { port = 80 }
discover.srv "a b"
    discover.srv "a b": "a b" is not a name of SRV records, such as "_http._tcp.example.org"
discover.srv "_http._tcp.example:80"
    discover.srv "_http._tcp.example:80": "_http._tcp.example:80" is not a name of SRV records, such as "_http._tcp.example.org"
discover.srv "_http._tcp.example" { weight = 2 }
    discover.srv "_http._tcp.example": unknown key `weight`; SRV records have the weights, priorities and ports
discover.file ""
    discover.file "": the path is empty: write discover.file "servers.txt"
discover.file "servers.txt" { port = 0 }
    discover.file "servers.txt": port must be between 1 and 65535, got 0
discover.file "servers.txt" { max = 5, hard = 2 }
    discover.file "servers.txt": hard (2) must be at least max (5)
discover.dsn "app.example:80"
    `discover.dsn` is not defined; did you mean `dns`?
resolve = "optionl"
    service `s`: resolve must be "required" or "optional", got "optionl"
resolver = "ns.example"
    service `s`: resolver must be the address of a name server, such as "10.0.0.53" or "127.0.0.1:5353", got "ns.example"
resolver = "127.0.0.1:0"
    service `s`: resolver must be the address of a name server, such as "10.0.0.53" or "127.0.0.1:5353", got "127.0.0.1:0"
resolver = { "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4" }
    service `s`: a pool must have at most 3 resolvers
"#;

fn pool(items: &str) -> PoolSpec {
    let text = format!("service \"s\" {{ listen = \"127.0.0.1:1\", {items} }}");
    let mut config = load_text(&text).unwrap_or_else(|problems| panic!("{items}: {problems:?}"));
    config.spec.pools.remove(0)
}

#[test]
fn sources_are_items_among_the_servers() {
    let settings = FoundSettings { weight: 3, tier: 2, limits: Limits { soft: Some(5), hard: Some(6) } };
    let pool = pool(
        "discover.file \"servers.txt\" { port = 80, weight = 3, tier = 2, max = 5, hard = 6 }, \"10.0.0.1:80\", \
         discover.dns \"app.example:80\", discover.srv \"_http._tcp.example.org\" { max = 5 }",
    );
    assert_eq!(pool.servers.len(), 1);
    let [DiscoverSpec::File { path, port, settings: of_file }, rest @ ..] = &pool.discover[..] else {
        panic!("expected a file first, got {:?}", pool.discover)
    };
    assert!(path.is_absolute() && path.ends_with("servers.txt"), "{}", path.display());
    assert_eq!((*port, *of_file), (Some(80), settings));
    let dns = DiscoverSpec::Dns { name: "app.example".into(), port: 80, settings: FoundSettings::DEFAULT };
    let limits = Limits { soft: Some(5), hard: None };
    assert_eq!(rest, [dns, DiscoverSpec::Srv { name: "_http._tcp.example.org".into(), limits }]);
}

#[test]
fn a_pool_can_name_its_resolvers_and_have_servers_that_are_not_required() {
    let usual = pool("\"app.example:80\"");
    assert_eq!((usual.resolve, usual.resolvers), (Resolve::Required, Vec::new()));
    let changed =
        pool("\"app.example:80\", resolve = \"optional\", resolver = { \"::1\", \"127.0.0.1:5353\" }");
    let resolvers = ["[::1]:53", "127.0.0.1:5353"].map(|address| address.parse().unwrap());
    assert_eq!((changed.resolve, changed.resolvers), (Resolve::Optional, resolvers.to_vec()));
}

#[test]
fn each_mistake_in_a_source_has_its_message() {
    let start = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:1\",";
    check_cases(MISTAKES, |case| format!("{start} {case} }}"));
}
