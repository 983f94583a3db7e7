//! The reference has exactly the keys that are read, with the right defaults and protocols, and its examples are
//! valid. The tables of docs/configuration.md are made from it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod documented;
mod generated;

use super::*;
use crate::config::fields::{READ, ReadKey};
use crate::config::{hints, load};
use evener_core::spec::Spec;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A directory with the files that the examples name. It is removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evener-reference-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (file, text) in [("ca.pem", certificate), ("bad.txt", "192.0.2.0/24\n"), ("pools.lua", "")] {
            std::fs::write(path.join(file), text).unwrap();
        }
        Self(path)
    }

    fn load(&self, text: &str) -> Result<Spec, String> {
        let file = self.0.join("c.lua");
        std::fs::write(&file, text).unwrap();
        load(&file).map(|config| config.spec).map_err(|problems| format!("{problems:#?}\n{text}"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the protocol of a service that can use a key of a table.
fn protocol_of(table: &str, key: &Key) -> &'static str {
    let mut parts = table.split('.');
    let outer = find(parts.next().unwrap(), parts.next().unwrap_or_default());
    let of = |key: &Key| key.protocols.first().copied();
    of(key).or_else(|| outer.and_then(of)).unwrap_or("tcp")
}

/// Returns a configuration with the contents of a table, in which `key` may stand.
fn configuration(table: &str, key: &Key, contents: &str, protocol: &str) -> String {
    let mut parts = table.split('.');
    let outer = find(parts.next().unwrap(), parts.next().unwrap_or_default());
    let is_of_xdp = key.plane == "xdp" || outer.is_some_and(|outer| outer.plane == "xdp");
    if is_of_xdp {
        return xdp_service(table, key, contents, protocol);
    }
    if key.plane == "ipvs" || outer.is_some_and(|outer| outer.plane == "ipvs") {
        return ipvs_service(table, key, contents, protocol);
    }
    let placed = hints::in_table(table, contents);
    let placed = match table {
        // The certificate needs an address.
        "admin.tls" => {
            placed.replacen("admin {", "admin { listen = \"192.0.2.1:1\", token_file = \"/t\",", 1)
        }
        _ => placed,
    };
    let root = table.split('.').next().unwrap();
    let has = |name: &str| table == root && key.name == name;
    match root {
        "" if contents.contains("service \"") => contents.to_owned(),
        "xdp" | "ipvs" | "admin" => {
            format!("{placed} service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:80\" }}")
        }
        "" => format!("{contents} service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:80\" }}"),
        "service" => {
            let listen = if has("listen") { "" } else { "listen = \"127.0.0.1:1\"," };
            let pool = if has("pool") { "" } else { "pool = \"web\"," };
            let protocol =
                if has("protocol") { String::new() } else { format!("protocol = \"{protocol}\",") };
            // These tables must have a limit.
            let placed = placed
                .replace("per_client = { exceeded", "per_client = { connections = 1, exceeded")
                .replace("rate_limit = { v", "rate_limit = { rate = \"20/s\", v");
            format!(
                "pool \"web\" {{ \"10.0.0.1:80\" }} service \"s\" {{ {listen} {pool} {protocol} {placed} }}"
            )
        }
        _ => {
            let placed = match table {
                "check.script" if !contents.contains("run =") => {
                    placed.replace('{', "{\nrun = function() return true end,\n")
                }
                "check.udp" if !contents.contains("send =") => placed.replace('{', "{ send = \"x\","),
                "check.exec" => placed.replace('{', "{ \"/usr/bin/true\","),
                "server" if key.name == "mname" => placed.replace("10.0.0.1:80", "/run/a.sock"),
                "check.http" | "check.tcp" => placed,
                _ => placed,
            };
            let server = if root == "server" { "" } else { "\"10.0.0.9:80\"," };
            let allowed =
                if placed.contains("/usr/bin/true") { "exec { allow = { \"/usr/bin/true\" } } " } else { "" };
            format!(
                "{allowed}pool \"web\" {{ {server} {placed} }} service \"s\" {{ listen = \"127.0.0.1:1\", protocol = \"{protocol}\", pool = \"web\" }}"
            )
        }
    }
}

/// Returns a configuration with a service of the XDP plane.
fn xdp_service(table: &str, key: &Key, contents: &str, protocol: &str) -> String {
    let placed = hints::in_table(table, contents);
    // A tunnel needs another key.
    let placed = placed
        .replace("tunnel = {", "forward = \"gue\", tunnel = {")
        .replace("forward = \"gue\", forward = \"gue\"", "forward = \"gue\"");
    let listen = if placed.contains("listen =") { "" } else { "listen = \"192.0.2.1:80\"," };
    let interface = if key.name.starts_with("interface") { "" } else { "interface = \"eth0\"," };
    format!(
        "pool \"web\" {{ \"10.0.0.1\", check = check.tcp {{ port = 80 }} }}
         service \"s\" {{ {listen} {interface} plane = \"xdp\", pool = \"web\", protocol = \"{protocol}\", {placed} }}"
    )
}

/// Returns a configuration with a service of the IPVS plane.
fn ipvs_service(table: &str, key: &Key, contents: &str, protocol: &str) -> String {
    let placed = hints::in_table(table, contents);
    let placed = if key.name == "engine" || contents.contains("engine") {
        placed.replace("protocol = \"tcp\"", "protocol = \"udp\"")
    } else {
        placed
    };
    let listen = if key.name == "fwmark" { "" } else { "listen = \"192.0.2.1:80\"," };
    format!(
        "pool \"web\" {{ \"10.0.0.1\", check = check.tcp {{ port = 80 }} }}
         service \"s\" {{ {listen} plane = \"ipvs\", pool = \"web\", protocol = \"{protocol}\", {placed} }}"
    )
}

/// Returns the contents of a table without one of its keys.
fn without(contents: &str, name: &str) -> String {
    let (mut depth, mut quoted, mut begin, mut rest) = (0, false, 0, Vec::new());
    let ends = contents.char_indices().map(|(at, c)| (at, Some(c))).chain([(contents.len(), None)]);
    for (at, c) in ends {
        match c {
            Some('"') => quoted = !quoted,
            Some('{') => depth += i32::from(!quoted),
            Some('}') => depth -= i32::from(!quoted),
            Some(',') | None if depth == 0 && !quoted => {
                let part = contents[begin..at].trim();
                rest.extend((!part.starts_with(&format!("{name} ="))).then_some(part));
                begin = at + 1;
            }
            _ => {}
        }
    }
    rest.join(", ")
}

#[test]
fn the_reference_has_exactly_the_keys_that_are_read() {
    let scratch = Scratch::new("keys");
    let mut expected = BTreeSet::new();
    for key in all() {
        for table in key.tables {
            // The example needs a database, which a test does not have.
            if key.example.contains("geoip") {
                continue;
            }
            let protocol = if key.example.contains("\"cookie\"") { "http" } else { protocol_of(table, key) };
            let text = configuration(table, key, key.example, protocol);
            if let Err(problems) = scratch.load(&text) {
                panic!("the example of {} is refused: {problems}", key.path_in(table));
            }
            expected.extend((!table.is_empty()).then(|| key.path_in(table)));
        }
    }
    let read: BTreeSet<String> = READ.with_borrow(|read| {
        let path = |(declaration, prefix, key): &ReadKey| {
            let table = table_of(declaration, prefix);
            // A service with its own servers has the keys of a pool, too.
            let is_of_pool = table == "service" && find(&table, key).is_none();
            format!("{}.{key}", if is_of_pool { "pool" } else { &table })
        };
        read.iter().map(path).collect()
    });
    let missing: Vec<_> = read.difference(&expected).collect();
    assert!(missing.is_empty(), "keys that are read but not in the reference: {missing:#?}");
    let unread: Vec<_> = expected.difference(&read).collect();
    assert!(unread.is_empty(), "keys of the reference that are never read: {unread:#?}");
}

#[test]
fn each_default_of_the_reference_is_what_a_configuration_without_the_key_has() {
    let scratch = Scratch::new("defaults");
    let mut compared = 0;
    for key in all() {
        let default = key.default.trim_matches('`');
        let is_value = default.starts_with(['"', '{', 't', 'f']) || default.parse::<f64>().is_ok();
        if !is_value || default.contains('`') || default.starts_with("those") || default.starts_with("the ") {
            continue;
        }
        for table in key.tables {
            let protocol = if key.example.contains("\"cookie\"") { "http" } else { protocol_of(table, key) };
            let mut others = without(key.example, key.name);
            // Some tables must not be empty.
            if others.is_empty() && *table == "service.source_rate" {
                others = "rate = \"9/s\"".into();
            }
            if others.is_empty() && *table == "service.dns.rate_limit" {
                others = "rate = \"20/s\"".into();
            }
            let with =
                format!("{}{}{} = {default}", others, if others.is_empty() { "" } else { ", " }, key.name);
            let spec = |contents: &str| scratch.load(&configuration(table, key, contents, protocol));
            if let (Ok(without), with) = (spec(&others), spec(&with)) {
                assert_eq!(with.as_ref(), Ok(&without), "default of {}", key.path_in(table));
                compared += 1;
            }
        }
    }
    assert!(compared > 90, "only {compared} defaults were compared");
}

#[test]
fn services_refuse_keys_of_other_protocols() {
    let scratch = Scratch::new("protocols");
    // The values of these keys depend on the protocol.
    let depends = ["protocol", "denied", "source", "routes"];
    let is_common = |key: &&Key| !depends.contains(&key.name) && !["xdp", "ipvs"].contains(&key.plane);
    for key in keys_of("service").filter(is_common) {
        for protocol in ["tcp", "udp", "http", "dns"] {
            let text = configuration("service", key, key.example, protocol);
            let seen = scratch.load(&text);
            assert_eq!(seen.is_ok(), key.fits(protocol), "{} with {protocol}: {seen:?}", key.name);
        }
    }
}

#[test]
fn services_of_a_plane_refuse_keys_of_another_plane() {
    let scratch = Scratch::new("planes");
    // Its value depends on the protocol.
    let is_one = |key: &&Key| !key.plane.is_empty() && key.name != "routes";
    for key in keys_of("service").filter(is_one) {
        let protocol = if key.fits("tcp") { "tcp" } else { key.protocols[0] };
        if !["tcp", "udp"].contains(&protocol) {
            continue;
        }
        let other = Key { plane: if key.plane == "xdp" { "" } else { "xdp" }, ..*key };
        assert_eq!(scratch.load(&configuration("service", key, key.example, protocol)).err(), None);
        let refused = scratch.load(&configuration("service", &other, key.example, protocol)).unwrap_err();
        let name = key.name;
        let expected = match key.plane {
            "xdp" | "ipvs" => format!("{name} needs plane = \\\"{}\\\"", key.plane),
            _ => format!("{name} is not available with plane = \\\"xdp\\\": "),
        };
        assert!(refused.contains(&expected), "{refused}");
    }
}

#[test]
fn the_functions_of_the_reference_are_those_of_the_language() {
    let scratch = Scratch::new("functions");
    for key in keys_of("") {
        // A function is called without an argument: the problem is not that it is undefined.
        let problems = scratch.load(&format!("x = {}", key.name)).unwrap_err();
        assert!(!problems.contains("is not defined"), "{problems}");
    }
}

#[test]
fn keys_are_described_with_their_subordinate_keys() {
    let check = |word: &str, expected: &[&str]| {
        let seen = help::describe(word).unwrap_or_else(|message| message);
        let mut rest = seen.as_str();
        for part in expected {
            let at = rest.find(part).unwrap_or_else(|| panic!("{word}: `{part}` is missing:\n{seen}"));
            rest = &rest[at..];
        }
        assert!(seen.lines().all(|line| line.chars().count() <= 80), "{seen}");
    };
    check("check.warm_up", &["check.", "random"]);
    check("exec.allow", &["notify", "exec { allow = {"]);
    check("http.get", &["http.get(url, options)", "http.post(", "timeout", "docs/scripting.md"]);
    check(
        "pool.sticky",
        &["pool.sticky\n", "keeps its server", "Default:   none", "  Keys:\n", "    by ", "ttl"],
    );
    check("service.sticky", &["pool.sticky\n"]);
    check("sticky", &["pool.sticky\n", "  Keys:\n"]);
    check("path", &["service.routes.path\n", "check.http.path, check.https.path\n"]);
    check("pool", &["service.pool", "pool\n", "  Keys:\n", "    policy"]);
    check("service.dns.cache", &["dns = { cache = {", "    entries"]);
    check("check.http", &["Syntax:", "    path"]);
    check("server", &["    weight"]);
    check("env", &["Syntax:", "env("]);
    check("polcy", &["there is no command, key or function `polcy`; did you mean `policy`?"]);
    check("maxConn", &["service.connections_max"]);
    check("round_robin", &["\"round_robin\" is a value of pool.policy. See:\n    evener help pool.policy\n"]);
    check("routes.path", &["service.routes.path\n"]);
    check("keys", &["`evener help --keys` lists all keys"]);
    check("duration", &["\"1h 30m\"", "Keys:", "pool.slow_start"]);
    check(
        "rate",
        &["service.dns.rate_limit.rate", "rate (a form of values)", "service.per_client.request_rate"],
    );
    check("balance", &["evener help pool.policy ", "(of Caddy, Envoy or HAProxy)"]);
    check("service", &["\"FILE\"`, `country \"SE\"`,"]);
    check("frobnicate", &["there is no command, key or function `frobnicate`\n"]);
    assert!(help::overview().lines().all(|line| line.chars().count() <= 80), "{}", help::overview());
    assert!(help::list().contains("pool.sticky.by"));
    assert!(help::list().lines().all(|line| line.chars().count() <= 80), "{}", help::list());
}
