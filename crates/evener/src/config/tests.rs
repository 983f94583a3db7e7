//! Typical configurations, and the messages about invalid configurations.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod corrections;
mod discover;
mod dns;
mod habits;
mod ipvs;
mod messages;
mod mistakes;
mod notation;
mod patience;
mod plane;
mod request_log;
mod server_checks;
mod warnings;

use super::*;
use evener_core::spec::{CheckKind, Policy, Protocol};
use std::time::Duration;

fn load_text(text: &str) -> Result<Config, String> {
    let directory = std::env::temp_dir().join(format!(
        "evener-config-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("c.lua");
    std::fs::write(&path, text).unwrap();
    let loaded = load(&path);
    std::fs::remove_dir_all(&directory).unwrap();
    let prefix = format!("{}/", directory.display());
    loaded.map_err(|problems| {
        problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect::<Vec<_>>().join("\n")
    })
}

fn check_problems(text: &str, expected: &[&str]) {
    let seen = load_text(text).expect_err("the configuration must be refused");
    let lines: Vec<&str> = seen.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert_eq!(lines.len(), expected.len(), "{seen}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\ninstead of\n{expected}");
    }
}

/// Returns a service with some keys, which listens on an address unless the keys begin with `listen`.
fn service_with(keys: &str) -> String {
    let listen = if keys.starts_with("listen") { "" } else { "listen = \"127.0.0.1:1\", " };
    format!("service \"s\" {{ {listen}{keys} }}")
}

/// Checks every case of a table. `declare` completes the text of a case to a configuration of one line.
fn check_cases(cases: &str, declare: impl Fn(&str) -> String) {
    let mut lines = cases.lines().filter(|line| !line.is_empty()).peekable();
    while let Some(case) = lines.next() {
        let mut expected = Vec::new();
        while let Some(message) = lines.next_if(|line| line.starts_with("    ")) {
            expected.push(match message.trim() {
                whole if whole.starts_with("c.lua: ") => whole.to_owned(),
                message => format!("c.lua:1: {message}"),
            });
        }
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check_problems(&declare(case), &expected);
    }
}

#[test]
fn the_example_of_the_design_is_valid() {
    let config = load_text(
        r#"
        local web = pool "web" {
          "10.0.0.51:80",
          { "10.0.0.52:80", weight = 2, max = 100, hard = 120 },
          server "10.0.0.98:80" { tier = 2, name = "spare" },
          server "10.0.0.99:80",
          policy = "least_conn",
          sticky = { by = "client_ip", size = 2048, ttl = "1h" },
          check  = check.http { path = "/health", every = "2s", timeout = "1s", rise = 2, fall = 3 },
        }
        service "www" { listen = { "0.0.0.0:80", "[::]:80" }, pool = web, deny = "192.0.2.0/24" }
        service "127.0.0.1:5353" { protocol = "udp", "8.8.8.8:53", "1.1.1.1:53", idle_timeout = "5s" }
        for port = 8001, 8003 do
          service("many-" .. port) { listen = "127.0.0.1:" .. port, pool = "web" }
        end
        "#,
    )
    .unwrap();
    let spec = config.spec;
    assert_eq!((spec.pools.len(), spec.services.len()), (2, 5));
    let web = &spec.pools[0];
    assert_eq!((web.policy, web.servers.len()), (Policy::LeastConn, 4));
    assert_eq!(
        (&*web.servers[2].name, web.servers[2].tier, web.servers[1].limits.hard),
        ("spare", 2, Some(120))
    );
    assert!(matches!(&web.check.as_ref().unwrap().kind, CheckKind::Http { path, .. } if path == "/health"));
    let dns = &spec.services[1];
    assert_eq!((dns.protocol, dns.listen[0].to_string()), (Protocol::Udp, "127.0.0.1:5353".into()));
    assert_eq!(dns.options.idle_timeout, Some(Duration::from_secs(5)));
    assert_eq!(&*spec.services[4].name, "many-8003");
}

#[test]
fn every_problem_is_listed_with_its_line() {
    check_problems(
        r#"local web = pool "web" {
  "10.0.0.51:80",
  { "10.0.0.52:80", weigth = 2 },
  "10.0.0.53:99999",
  policy = "least_con",
  check = check.http {
    path = "health",
    every = "2 parsecs" },
}
pool "empty" { }
service "www" { listen = "0.0.0.0:80", pool = "wbe" }
service "again" { listen = "0.0.0.0:80", pool = web, idle_timout = "1s" }
servce "x" { }
service "any" { listen = { "0.0.0.0:0", "0.0.0.0:0" }, pool = web }
service "any more" { listen = "0.0.0.0:0", pool = web }
"#,
        &[
            "c.lua:3: server `10.0.0.52:80`: unknown key `weigth`; did you mean `weight`?",
            "c.lua:4: pool `web`: invalid port `99999` in `10.0.0.53:99999`: a port is a number from 1 to",
            "c.lua:5: pool `web`: unknown policy `least_con`; did you mean `least_conn`?",
            "c.lua:7: check.http: path must begin with / and have no spaces, got \"health\"",
            "c.lua:8: check.http: every must be a duration such as \"500ms\", \"2s\" or \"1h\", got \"2 parsecs\"",
            "c.lua:10: pool `empty`: there are no servers: list their addresses, such as \"10.0.0.1:80\"",
            "c.lua:11: service `www`: there is no pool `wbe`; did you mean `web`?",
            "c.lua:12: service `again`: unknown key `idle_timout`; did you mean `idle_timeout`?",
            "c.lua:12: service `again` listens on 0.0.0.0:80, and so does service `www`: change one of them",
            "c.lua:13: `servce` is not defined; did you mean `service`?",
            "c.lua:14: service `any` listens on 0.0.0.0:0 twice",
        ],
    );
}

#[test]
fn invalid_files_are_refused_with_a_message() {
    check_problems(
        "service \"s\" { listen = \"localhost:80\", \"10.0.0.1:1\" }",
        &["c.lua:1: service `s`: `localhost:80` is not a listen address"],
    );
    check_problems(
        "service \"s\" { \"10.0.0.1:1\" }",
        &["c.lua:1: service `s`: there is no listen address: add listen = \"0.0.0.0:80\""],
    );
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\" }",
        &["c.lua:1: service `s`: there is neither a pool nor a server: add pool = \"web\" or addresses"],
    );
    check_problems("pool \"p\" { \"10.0.0.1:1\" }", &["c.lua:1: there is no service"]);
    check_problems(
        "service \"s\" { listen = \"8080\", \"10.0.0.1:1\" }",
        &["c.lua:1: service `s`: `8080` has no host: write 0.0.0.0:8080"],
    );
    check_problems("for _, s in ipairs(srvs) do print(s) end", &["c.lua:1: `srvs` is not defined"]);
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:\" .. prt, \"10.0.0.1:1\" }",
        &["c.lua:1: `prt` is not defined"],
    );
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:\" .. nosuch.port + 1, error(\"stop\") }",
        &["c.lua:1: `nosuch` is not defined", "c.lua:1: stop"],
    );
    check_problems("error({})", &["c.lua:1: error was called with a table: write error(\"text\")"]);
    check_problems(
        "pool \"p\" { { \"10.0.0.1:1\", weight = 0 } } service \"s\" { listen = \"127.0.0.1:1\", pool = \"p\" }",
        &["c.lua:1: pool `p`: every server has weight 0"],
    );
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", { \"10.0.0.1:1\", weight = 0 } }",
        &["c.lua:1: service `s`: every server has weight 0: give at least one a higher weight"],
    );
    check_problems(
        "service \"a\\nb\" { listen = \"127.0.0.1:1\", \"10.0.0.1:1\" }",
        &[
            "c.lua:1: the name of a service must have 1 to 255 bytes without control characters, got \"a\\nb\"",
        ],
    );
    check_problems(
        "pool \"p\"\nservice \"q\"",
        &["c.lua:1: pool \"p\" has no body", "c.lua:2: service \"q\" has no body"],
    );
    check_problems(
        "pool(5)",
        &["c.lua:1: pool takes a name first, got a number: write pool \"web\" { \"10.0.0.1:80\" }"],
    );
    check_problems("x = = 1", &["c.lua:1: unexpected symbol near '='"]);
    check_problems("\n\nerror('no')", &["c.lua:3: no"]);
    check_problems("include 'gone.lua'", &["c.lua:1: gone.lua: the file does not exist"]);
}

#[test]
fn a_configuration_cannot_access_the_system_or_exceed_its_limits() {
    for name in ["os", "io", "debug", "package", "load", "dofile", "require", "collectgarbage", "coroutine"] {
        let seen = load_text(&format!("local x = {name}.x")).expect_err("the global must not be defined");
        assert!(seen.contains(&format!("`{name}` is not defined")), "{seen}");
    }
    let endless = "while true do pcall(function() while true do end end) end";
    assert!(load_text(endless).expect_err("an endless loop must be refused").contains("endless loop"));
    let greedy = "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1e6) .. i end";
    assert!(load_text(greedy).expect_err("excessive use of memory must be refused").contains("256 MiB"));
    let finalizer = "setmetatable({}, { __gc = function() while true do end end })";
    assert!(load_text(finalizer).expect_err("a finalizer must be refused").contains("must not have __gc"));
    let shared = "local t = {'10.0.0.1:1'} for d = 1, 6 do local n = {} for i = 1, 200 do n[i] = t end t = n end service 'x' {t}";
    assert!(
        load_text(shared).expect_err("too many values must be refused").contains("more than 4000000 values")
    );
    assert!(
        load(Path::new("/dev/zero")).expect_err("a device must be refused")[0]
            .to_string()
            .contains("not a regular file")
    );
    let recursive = load_text("include 'c.lua'").expect_err("a file that includes itself must be refused");
    assert!(recursive.contains("a file that includes itself"), "{recursive}");
}

#[test]
fn twenty_thousand_servers_on_separate_lines_are_read_quickly() {
    let servers: String =
        (0..20_000).map(|n| format!("  {{ \"10.{}.{}.1:80\", wieght = 1 }},\n", n / 250, n % 250)).collect();
    let began = std::time::Instant::now();
    let seen = load_text(&format!(
        "pool \"p\" {{\n{servers}}}\nservice \"s\" {{ listen = \"127.0.0.1:1\", pool = \"p\" }}"
    ));
    let seen = seen.expect_err("each server has an unknown key");
    assert_eq!(seen.lines().count(), 20_000);
    assert!(seen.contains("c.lua:20001: server `10.79.249.1:80`: unknown key `wieght`"));
    // This bound is no measurement: if the whole file were searched for each line, the test would take much longer.
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[test]
fn fifty_thousand_pools_and_services_are_read_quickly() {
    let began = std::time::Instant::now();
    let config = load_text(
        "for i = 1, 50000 do pool('p' .. i) { '10.0.0.1:80' } service('s' .. i) {
            listen = ('127.%d.%d.1:80'):format(i >> 8, i & 255), pool = 'p' .. i, protocol = 'http' } end",
    );
    assert_eq!(config.expect("the configuration is valid").spec.services.len(), 50_000);
    // This bound is no measurement: if all pools were searched for each service, the test would take much longer.
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[test]
fn files_include_other_files_and_read_the_environment() {
    let directory = std::env::temp_dir().join(format!("evener-include-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("sub")).unwrap();
    std::fs::write(
        directory.join("a.lua"),
        "include 'sub/b.lua'\nservice 'w' { listen = env('EVENER_NOWHERE', '127.0.0.1:1'), pool = 'p' }",
    )
    .unwrap();
    std::fs::write(directory.join("sub/b.lua"), "include 'c.lua'").unwrap();
    std::fs::write(directory.join("sub/c.lua"), "pool 'p' {\n '10.0.0.1:1', wieght = 1 }").unwrap();
    let problems = load(&directory.join("a.lua")).expect_err("the pool has an unknown key");
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].to_string().contains("sub/c.lua:2: pool `p`: unknown key `wieght`"),
        "{}",
        problems[0]
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn access_is_read_as_an_ordered_list() {
    use evener_core::acl::{Access, Acl};
    let groups = |text: &str| -> Vec<(Access, Vec<evener_core::acl::Prefix>)> {
        let group = |words: &str| {
            let access = if words.starts_with('+') { Access::Permit } else { Access::Deny };
            (access, words[1..].split(' ').map(|word| word.parse().unwrap()).collect())
        };
        text.split("; ").filter(|text| !text.is_empty()).map(group).collect()
    };
    let check = |list: &str, expected: &str, otherwise| {
        let server = format!("{{ \"10.0.0.1:1\", access = {list} }}");
        let text = format!("service \"s\" {{ listen = \"127.0.0.1:1\", {server}, access = {list} }}");
        let spec = load_text(&text).unwrap().spec;
        let expected = Acl::in_order(&groups(expected), otherwise);
        for acl in [&spec.services[0].acl, &spec.pools[0].servers[0].acl] {
            assert_eq!(**acl.as_ref().unwrap(), expected, "{list}");
        }
    };
    check(
        r#"{ { permit = "10.0.0.0/8" }, { deny = { "192.0.2.0/24", "::/0" } }, { permit = "::1" } }"#,
        "+10.0.0.0/8; -192.0.2.0/24 ::/0; +::1",
        Access::Deny,
    );
    check(
        r#"{ { permit = "10.1.0.0/16" }, { deny = "10.0.0.0/8" } }"#,
        "+10.1.0.0/16; -10.0.0.0/8",
        Access::Permit,
    );
    check(r#"{ { deny = "::/0" }, otherwise = "deny" }"#, "-::/0", Access::Deny);
    check(r#"{ { deny = {} } }"#, "", Access::Permit);
    check("{}", "", Access::Permit);
    check("{ otherwise = \"deny\" }", "", Access::Deny);
}

#[test]
fn each_mistake_in_an_ordered_list_has_its_line() {
    check_problems(
        r#"service "s" { listen = "127.0.0.1:1", "10.0.0.1:1",
  access = {
    { permit = "10.0.0.0/8" },
    { permit = "10.0.0.0/40" },
    { deny = 5 },
    { deny = { "x", country "SE" } },
    { dney = "10.0.0.0/8" },
    { permit = "::1",
      "::2" },
    { permit = "::3", deny = "::4" },
    "10.0.0.0/9",
    { deny = country "Sweden" },
    otherwise = "both",
  } }
"#,
        &[
            "c.lua:2: service `s`: country needs a database: write geoip \"GeoLite2-Country.mmdb\" above it",
            "c.lua:4: service `s`: `10.0.0.0/40` is too long: an IPv4 prefix has at most 32 bits",
            "c.lua:5: service `s`: access.deny must be a prefix such as \"10.0.0.0/8\", prefixes \"FILE\" or",
            "c.lua:6: service `s`: `x` is neither an address nor a prefix such as 192.0.2.0/24",
            "c.lua:7: service `s`: unknown key `access.dney`; did you mean `deny`?",
            "c.lua:8: service `s`: an item of access must be either { permit = ... } or { deny = ... }",
            "c.lua:10: service `s`: an item of access must be either { permit = ... } or { deny = ... }",
            "c.lua:11: service `s`: an item of access needs permit or deny: write { permit = \"10.0.0.0/9\" }",
            "c.lua:12: service `s`: `SWEDEN` is not a country code: give two letters (ISO 3166-1), such as",
            "c.lua:13: service `s`: access.otherwise must be \"permit\" or \"deny\", got \"both\"",
        ],
    );
    let check = |keys: &str, expected: &str| {
        let text = format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\",\n {keys} }}");
        check_problems(&text, &[&format!("c.lua:2: {expected}")]);
    };
    check(
        "access = \"10.0.0.0/8\"",
        "service `s`: access must be a list of { permit = \"10.0.0.0/8\" } and { deny = \"192.0.2.0/24\" },",
    );
    check(
        "access = { permit = \"10.0.0.0/8\" }",
        "service `s`: each item of access needs its own braces: access = { { permit = \"10.0.0.0/8\" },",
    );
    check(
        "access = {}, deny = \"10.0.0.0/8\"",
        "service `s`: access cannot be combined with `allow` or `deny`: move their prefixes to `access`",
    );
    check("access = { { deny = {} }, other = 1 }", "service `s`: unknown key `access.other`");
}

fn document(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../../{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn the_examples_and_the_lua_of_the_documents_are_valid() {
    let examples = format!("{}/../../examples", env!("CARGO_MANIFEST_DIR"));
    let folders = [examples.clone(), format!("{examples}/scripts")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap().flatten());
    let mut seen = 0;
    for example in files.filter(|example| example.path().is_file()) {
        let loaded = load(&example.path()).unwrap_or_else(|problems| panic!("{example:?}: {problems:?}"));
        assert!(loaded.warnings().is_empty(), "{example:?}: {:?}", loaded.warnings());
        seen += 1;
    }
    for name in ["README.md", "docs/configuration.md", "docs/migrate-from-mname-balancer.md"] {
        let text = document(name);
        for block in text.split("```lua\n").skip(1) {
            let block = block.split("```").next().unwrap();
            let loaded = load_text(block).unwrap_or_else(|problems| panic!("{name}: {problems}\n{block}"));
            // The programs of the documents are not on this machine.
            let is_about_reader =
                |warning: &&Warning| !warning.to_string().contains("there is no program /usr/local/bin/");
            let warnings: Vec<&Warning> = loaded.warnings().iter().filter(is_about_reader).collect();
            assert!(warnings.is_empty(), "{name}: {warnings:?}\n{block}");
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen} configurations were checked");
}

#[test]
fn the_reference_has_every_key_and_counter() {
    let every_key = r#"
        xdp { tarpit = {} }
        service "x" { plane = "xdp", listen = "192.0.2.1:1", interface = "a", "10.0.0.1", forward = "gue", tunnel = {}, source_rate = { rate = "1/s" } }
        local checks = { check.tcp {}, check.http {}, check.https {}, check.udp { send = "x" }, check.dns {}, check.smtp {} }
        for number, one in ipairs(checks) do
          pool("p" .. number) { { "10.0.0.1:1" }, check = one, sticky = {}, passive = {}, retry_budget = {}, policy = policy.ewma {} }
          service("s" .. number) { listen = "127.0.0.1:" .. number, pool = "p" .. number }
        end
        service "u" { listen = "127.0.0.1:1", access = { { permit = {} } }, protocol = "udp", "10.0.0.1:1", policy = policy.maglev {} }
        local safe = pool "safe" { "10.0.0.1:1", tls = { ca = "ca.crt" }, sticky = { by = "cookie" } }
        service "h" {
          listen = "127.0.0.1:9", protocol = "http", pool = safe, forwarded = {}, redirect = { port = 1 },
          routes = { { host = "a.example", pool = safe } }, denied = { tarpit = "1s" },
          per_client = { connections = 1 }, tls = { certificate = "a.crt", certificates = { { certificate = "b.crt" } } },
        }
        service "d" {
          listen = "127.0.0.1:11", protocol = "dns", discover = { mname = "sockets" },
          dns = { cache = {}, client_subnet = {}, rate_limit = { rate = "1/s" } },
        }
        pool "f" {
          discover.file "servers" { port = 80, weight = 2, tier = 2, max = 1, hard = 2 },
          discover.dns "app.example:80", discover.srv "_http._tcp.example",
          resolve = "optional", resolver = "127.0.0.1",
        }
        service "t" { listen = "127.0.0.1:10", routes = { { sni = "a.example", pool = "p1" } } }
    "#;
    let directory = std::env::temp_dir().join(format!("evener-keys-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("c.lua");
    std::fs::write(&path, every_key).unwrap();
    build::build(&lua::run(&path, None).unwrap()).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let reference = document("docs/configuration.md");
    let keys = fields::READ.with_borrow(Clone::clone);
    assert!(keys.len() > 40, "{keys:?}");
    for (_, _, key) in keys {
        let named = [format!("`{key}`"), format!(" {key} = "), format!("`{key}, "), format!("`{key} = ")]
            .iter()
            .any(|form| reference.contains(form));
        assert!(named || key == "by", "docs/configuration.md does not have `{key}`");
    }
}
