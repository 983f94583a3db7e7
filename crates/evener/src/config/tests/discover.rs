//! Sources of servers, and the keys `resolve` and `resolver`.

use super::*;
use evener_core::limits::Limits;
use evener_core::spec::{DiscoverSpec, FoundSettings, PoolSpec, Resolve};

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
fn a_pool_can_have_its_own_name_servers_and_servers_that_are_not_required() {
    let usual = pool("\"app.example:80\"");
    assert_eq!((usual.resolve, usual.resolvers), (Resolve::Required, Vec::new()));
    let own = pool("\"app.example:80\", resolve = \"optional\", resolver = { \"::1\", \"127.0.0.1:5353\" }");
    let resolvers = ["[::1]:53", "127.0.0.1:5353"].map(|address| address.parse().unwrap());
    assert_eq!((own.resolve, own.resolvers), (Resolve::Optional, resolvers.to_vec()));
}
