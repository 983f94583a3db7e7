//! Printed configurations are read back as equal specifications.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod random;

pub(crate) use random::spec as random_spec;

use super::*;
use crate::config::{fields, load};
use evener_core::Random;
use evener_core::acl::{Access, Prefix};
use evener_core::diff::{Action, diff_specs};
use evener_core::spec::Protocol;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A directory that is removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evener-print-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, text: &str) -> PathBuf {
        let path = self.0.join("c.lua");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn load(&self, text: &str) -> Spec {
        let loaded = load(&self.write(text));
        loaded.unwrap_or_else(|problems| panic!("{problems:#?}\n{text}")).spec
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn printed(spec: &Spec) -> String {
    print(spec, &|_| None)
}

/// Loads a configuration, prints it, and checks that the printed text is loaded as an equal specification.
/// Returns the printed text.
fn check_round_trip(scratch: &Scratch, text: &str) -> String {
    let spec = scratch.load(text);
    let printed = printed(&spec);
    assert_eq!(scratch.load(&printed), spec, "{printed}");
    printed
}

#[test]
fn a_printed_random_specification_is_read_back_unchanged() {
    let scratch = Scratch::new("random");
    let (mut all, mut inline) = (String::new(), 0);
    for seed in 0..500 {
        let spec = random::spec(&mut Random::seeded(seed), &scratch.0);
        let text = printed(&spec);
        let seen = load(&scratch.write(&text));
        let seen = seen.unwrap_or_else(|problems| panic!("seed {seed}: {problems:#?}\n{text}")).spec;
        for (seen, pool) in seen.pools.iter().zip(&spec.pools) {
            assert_eq!(seen, pool, "seed {seed}\n{text}");
        }
        for (seen, service) in seen.services.iter().zip(&spec.services) {
            assert_eq!(seen, service, "seed {seed}\n{text}");
        }
        assert_eq!(seen, spec, "seed {seed}\n{text}");
        all.push_str(&text);
        inline += in_place(&spec);
    }
    assert!(inline > 100, "only {inline} pools were written inline");
    for (_, _, key) in fields::READ.with_borrow(Clone::clone) {
        assert!(all.contains(&format!(" {key} = ")), "`{key}` was never printed");
    }
}

/// Gives the pools and services of a specification the names of their numbers.
fn numbered(mut spec: Spec) -> Spec {
    spec.pools.iter_mut().enumerate().for_each(|(number, pool)| pool.name = number.to_string().into());
    spec.services.iter_mut().enumerate().for_each(|(number, one)| one.name = number.to_string().into());
    for pool in &mut spec.pools {
        let servers = pool.servers.iter_mut().enumerate();
        servers.for_each(|(number, server)| server.name = number.to_string().into());
    }
    spec
}

#[test]
fn changed_settings_are_reported_by_the_names_of_their_keys() {
    let scratch = Scratch::new("changes");
    let (mut seen, mut before) = (BTreeSet::new(), Spec::default());
    for seed in 0..300 {
        let spec = random::spec(&mut Random::seeded(seed), &scratch.0);
        load(&scratch.write(&printed(&spec))).unwrap();
        let spec = numbered(spec);
        let changes = diff_specs(&before, &spec);
        assert_eq!(changes.is_empty(), before == spec, "seed {seed}");
        assert!(diff_specs(&spec, &spec).is_empty(), "seed {seed}");
        for change in changes.iter() {
            if let Action::Set(fields) = &change.action {
                seen.extend(fields.iter().map(|field| field.field.clone()));
            }
        }
        before = spec;
    }
    let keys = fields::READ.with_borrow(Clone::clone);
    // The position of a server, its address and the program of a check have no key.
    let is_known = |name: &str| {
        ["order", "address", "program"].contains(&name) || keys.iter().any(|(_, _, key)| *key == name)
    };
    let unknown: Vec<_> = seen.iter().filter(|field| !field.split('.').all(is_known)).collect();
    assert_eq!(
        unknown,
        Vec::<&String>::new(),
        "the changes have names that are not keys of the configuration"
    );
    assert!(seen.len() > 90, "only {} settings changed: {seen:?}", seen.len());
}

#[test]
fn printed_examples_and_lua_of_the_documents_are_read_back_unchanged() {
    let root = format!("{}/../..", env!("CARGO_MANIFEST_DIR"));
    let scratch = Scratch::new("documents");
    let mut seen = 0;
    let mut check = |text: &str| {
        let printed = check_round_trip(&scratch, text);
        assert!(printed.lines().all(|line| line.len() <= 100), "{printed}");
        seen += 1;
    };
    // The text of a function cannot be printed, so that examples/scripts is not read here.
    let examples = std::fs::read_dir(format!("{root}/examples")).unwrap().flatten();
    for example in examples.filter(|example| example.path().is_file()) {
        check(&std::fs::read_to_string(example.path()).unwrap());
    }
    for name in ["README.md", "docs/configuration.md"] {
        let text = std::fs::read_to_string(format!("{root}/{name}")).unwrap();
        text.split("```lua\n").skip(1).for_each(|block| check(block.split("```").next().unwrap()));
    }
    assert!(seen >= 5, "only {seen} configurations were checked");
}

#[test]
fn the_layout_is_as_a_person_would_write_it() {
    let scratch = Scratch::new("looks");
    let check = |text: &str, expected: &str| assert_eq!(check_round_trip(&scratch, text), expected);
    check(
        r#"
        local web = pool "web" { "10.0.0.1:80", { "10.0.0.2:80", weight = 2 }, tls = {}, policy = policy.ewma {}, slow_start = "120s" }
        local drop = pool "drop" { "10.0.0.9:80" }
        service "www" {
          listen = { "0.0.0.0:80", "[::]:80" }, pool = web, denied = drop, idle_timeout = "3600s",
          access = { { permit = "10.1.0.0/16" }, { deny = { "10.0.0.0/8", "192.0.2.1" } }, otherwise = "permit" },
        }
        service "127.0.0.1:53" { protocol = "udp", "10.0.0.3:53", idle_timeout = "90000ms" }
        service "127.0.0.1:54" { protocol = "udp", plane = "proxy", "10.0.0.3:53", deny = "2001:db8::/32" }
        service "a" {
          listen = "127.0.0.1:2", protocol = "http",
          respond = { type = "text/html", body = "<h1>It works</h1>\n<p>\"A service\" with a local response.</p>\n" },
        }
        "#,
        r#"pool "web" {
  "10.0.0.1:80",
  { "10.0.0.2:80", weight = 2 },

  policy = "ewma",
  tls = true,
  slow_start = "2min",
}

local drop_pool = pool "drop" { "10.0.0.9:80" }

service "www" {
  listen = { "0.0.0.0:80", "[::]:80" },
  pool = "web",
  access = { { permit = "10.1.0.0/16" }, { deny = { "192.0.2.1", "10.0.0.0/8" } } },
  denied = drop_pool,
}

service "127.0.0.1:53" { protocol = "udp", "10.0.0.3:53", idle_timeout = "90s" }
service "127.0.0.1:54" { protocol = "udp", "10.0.0.3:53", deny = "2001:db8::/32" }

service "a" {
  listen = "127.0.0.1:2",
  protocol = "http",
  respond = {
    type = "text/html",
    body = [[
<h1>It works</h1>
<p>"A service" with a local response.</p>
]],
  },
}
"#,
    );
}

#[test]
fn programs_of_checks_of_single_servers_are_allowed_in_the_printed_configuration() {
    let scratch = Scratch::new("programs");
    let text = r#"exec { allow = { "/bin/a", "/bin/b" } }
service "s" {
  listen = "127.0.0.1:1",
  { "10.0.0.1:1", check = check.exec { "/bin/a" } },
  { "10.0.0.2:1", check = check.exec { "/bin/b" } },
}
"#;
    let printed = check_round_trip(&scratch, text);
    assert!(printed.contains("\"/bin/a\", \"/bin/b\""), "{printed}");
}

#[test]
fn a_caller_may_provide_the_source_of_a_list() {
    let scratch = Scratch::new("lists");
    std::fs::write(scratch.0.join("bad.txt"), "192.0.2.0/24\n").unwrap();
    let text = r#"service "s" {
  listen = "127.0.0.1:1",
  "10.0.0.1:1",
  access = { { deny = prefixes "bad.txt" } },
  proxy_from = prefixes "bad.txt",
}
"#;
    let spec = scratch.load(text);
    let acl = spec.services[0].acl.clone().unwrap();
    let lists = |list: &Arc<Acl>| {
        let text = if Arc::ptr_eq(list, &acl) {
            "{ { deny = prefixes \"bad.txt\" } }"
        } else {
            "prefixes \"bad.txt\""
        };
        Some(text.to_owned())
    };
    let seen = print(&spec, &lists);
    assert_eq!(scratch.load(&seen), spec);
    let words = |text: &str| text.split_whitespace().collect::<String>().replace(",}", "}");
    assert_eq!(words(&seen), words(text));
}

#[test]
fn a_list_of_two_layers_is_printed_as_an_equivalent_list() {
    let scratch = Scratch::new("layers");
    let rule = |text: &str, access| (text.parse::<Prefix>().unwrap(), access);
    let countries = [rule("10.0.0.0/8", Access::Deny), rule("10.1.0.0/16", Access::Permit)];
    let prefixes = [rule("10.1.2.0/24", Access::Deny), rule("10.1.2.3", Access::Permit)];
    let acl = Acl::new(&countries, Access::Permit).after(&prefixes);
    let service = ServiceSpec {
        listen: vec!["127.0.0.1:1".parse().unwrap()],
        pool: Some("s".into()),
        acl: Some(Arc::new(acl.clone())),
        ..ServiceSpec::new("s", Protocol::Tcp)
    };
    let server = evener_core::spec::ServerSpec::new("10.0.0.1:1".parse().unwrap());
    let spec =
        Spec { pools: vec![PoolSpec::new("s", vec![server])], services: vec![service], ..Spec::default() };
    let seen = scratch.load(&printed(&spec)).services[0].acl.clone().unwrap();
    for client in ["10.1.2.3", "10.1.2.4", "10.1.3.1", "10.2.0.1", "11.0.0.1", "::1"] {
        let client = client.parse().unwrap();
        assert_eq!(seen.access(client), acl.access(client), "{client}");
    }
}
