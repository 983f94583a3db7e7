//! Checks that single servers have instead of the check of their pool.

use super::*;
use evener_core::spec::{CheckKind, OnDown, ServerSpec};

fn load_valid(text: &str) -> Config {
    load_text(text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

/// Returns the server `a` of a pool with these keys and servers.
fn server_a(pool: &str) -> ServerSpec {
    let text = format!(
        "exec {{ allow = {{ \"/bin/probe\" }} }} pool \"p\" {{ {pool} }} service \"s\" {{ listen = \"127.0.0.1:1\", pool = \"p\" }}"
    );
    let spec = load_valid(&text).spec;
    let server = spec.pools[0].servers.iter().find(|server| &*server.name == "a");
    server.unwrap_or_else(|| panic!("{text}: no server `a`")).clone()
}

/// Returns the problems of a pool with these keys and servers.
fn problems(pool: &str) -> String {
    let text = format!("pool \"p\" {{ {pool} }} service \"s\" {{ listen = \"127.0.0.1:1\", pool = \"p\" }}");
    load_text(&text).expect_err("the configuration must be refused")
}

#[test]
fn the_https_check_of_a_server_inherits_the_tls_settings_of_the_pool() {
    let server = server_a(
        "{ \"10.0.0.1:443\", name = \"a\", check = \"https\" }, tls = { sni = \"www.example.org\", verify = false }",
    );
    let check = server.check.expect("the server has its own check");
    let CheckKind::Http { tls: Some(tls), .. } = &check.kind else { panic!("{check:?}") };
    assert_eq!((tls.sni.as_deref(), tls.insecure), (Some("www.example.org"), true));
}

#[test]
fn checks_of_servers_without_tls_are_refused_if_the_servers_use_tls() {
    for (kind, advice) in [
        ("\"http\"", "https"),
        ("\"smtp\"", "check.tls"),
        ("check.tcp { send = \"a\", expect = \"b\" }", "tls"),
    ] {
        let found = problems(&format!("{{ \"10.0.0.1:443\", name = \"a\", check = {kind} }}, tls = true"));
        let expected = "server `a`: the servers of this pool use TLS: write ";
        assert!(found.contains(expected) && found.contains(advice), "{kind}: {found}");
    }
}

#[test]
fn a_check_of_a_server_is_enough_for_closing_its_connections() {
    let text = "pool \"p\" { { \"10.0.0.1:80\", check = \"tcp\" }, on_down = \"close\" } service \"s\" { listen = \"127.0.0.1:1\", pool = \"p\" }";
    assert_eq!(load_valid(text).spec.pools[0].on_down, OnDown::Close);
}

#[test]
fn dns_checks_of_unix_sockets_are_refused() {
    let found = problems("\"10.0.0.1:53\", { \"unix:/run/a\", name = \"a\", check = \"dns\" }");
    assert!(found.contains("server `a` is a unix socket: check.dns needs IP servers"), "{found}");
    server_a("\"10.0.0.1:53\", { \"unix:/run/a\", name = \"a\", check = \"tcp\" }, check = \"dns\"");
}

#[test]
fn a_sorry_server_has_no_check() {
    let found = problems("\"10.0.0.1:80\", sorry = { \"10.0.0.9:80\", check = \"tcp\" }");
    assert!(found.contains("a sorry server has no check: remove the key"), "{found}");
}

#[test]
fn checks_of_servers_without_a_port_get_the_port_of_the_service() {
    let text = "service \"s\" { plane = \"xdp\", interface = \"lo\", listen = \"192.0.2.1:80\", forward = \"direct\", { \"10.0.0.1\", check = \"tcp\" } }";
    let config = load_valid(text);
    let check = config.spec.pools[0].servers[0].check.as_ref().expect("the server has its own check");
    assert_eq!(check.port, Some(80));
    assert!(config.warnings.is_empty(), "each server has a check: {:?}", config.warnings);
}

#[test]
fn the_xdp_plane_warns_of_servers_without_a_check() {
    let text = "service \"s\" { plane = \"xdp\", interface = \"lo\", listen = \"192.0.2.1:80\", forward = \"direct\", { \"10.0.0.1\", check = \"tcp\" }, \"10.0.0.2\" }";
    let warnings: String = load_valid(text).warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.contains("has no check"), "{warnings}");
}
