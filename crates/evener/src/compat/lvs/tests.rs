//! Imports of whole files. The configuration that is printed loads.

use super::{ipvsadm, lua, read, syntax};
use crate::config;
use evener_core::spec::{
    CheckKind, IpvsForward, IpvsTransport, NotifySpec, Plane, ProgramSpec, QuorumSpec, ServiceSpec, Spec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};

/// Returns the configuration of a text of keepalived, or its problems.
fn import(text: &str) -> Result<String, Vec<String>> {
    let imported = syntax::read_text("k.conf", text).and_then(|statements| read::read(&statements));
    let problems = match imported {
        Ok(imported) => return Ok(lua::print("k.conf", &imported)),
        Err(problems) => problems,
    };
    Err(problems.iter().map(ToString::to_string).collect())
}

/// Returns the configuration that the printed text has.
fn load(lua: &str) -> Spec {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("evener-import-{}-{number}.lua", std::process::id()));
    std::fs::write(&file, lua).expect("the file can be written");
    let loaded = config::load(&file);
    std::fs::remove_file(&file).expect("the file can be removed");
    match loaded {
        Ok(config) => config.spec,
        Err(problems) => panic!("{}\n{lua}", config::one_line(&problems)),
    }
}

/// The page about keepalived, with Unix line ends.
const PAGE: &str = include_str!("../../../../../docs/migrate-from-keepalived.md");

/// Returns the first block of a language in the page.
fn block(language: &str) -> &'static str {
    let begin = format!("```{language}\n");
    PAGE.split(&*begin).nth(1).and_then(|rest| rest.split("```").next()).expect("the page has the block")
}

#[test]
fn the_configuration_in_the_document_is_what_the_import_prints() {
    let file = "/etc/keepalived/keepalived.conf";
    let statements = syntax::read_text(file, block("text")).expect("the file is correct");
    let printed = lua::print(file, &read::read(&statements).expect("the file is correct"));
    if std::env::var_os("EVENER_UPDATE_DOCS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/migrate-from-keepalived.md");
        let page =
            PAGE.replacen(&format!("```lua\n{}```", block("lua")), &format!("```lua\n{printed}```"), 1);
        std::fs::write(path, page).expect("the page can be written");
        return;
    }
    assert_eq!(block("lua"), printed);
    load(&printed);
}

/// The tables have each statement that the import knows, and no other.
#[test]
fn the_document_has_a_row_for_each_keyword() {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let mut documented = BTreeMap::new();
    for (keywords, becomes) in rows {
        for keyword in keywords
            .split('`')
            .filter(|word| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_".contains(c)))
        {
            assert_eq!(documented.insert(keyword, becomes), None, "{keyword} has two rows");
        }
    }
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), read::keywords());
    for keyword in read::skipped() {
        let becomes = documented[keyword];
        assert!(becomes.starts_with("not taken over"), "{keyword} becomes {becomes}");
    }
}

const WHOLE: &str = "
global_defs { router_id LVS_1 }
vrrp_instance VI_1 { interface eth0 }
virtual_server_group sites {
  192.0.2.10-12 443
  2001:db8::1 443
}
virtual_server 192.0.2.1 80 {
  delay_loop 6
  warmup 4
  lb_algo wrr
  lb_kind DR
  persistence_timeout 50
  persistence_granularity 255.255.255.0
  protocol TCP
  sorry_server 10.0.0.9 80
  quorum 3
  quorum_up \"/usr/local/bin/announce add\" root
  quorum_down /usr/local/bin/withdraw
  hysteresis 1
  inhibit_on_failure
  real_server 10.0.0.1 80 {
    weight 3
    uthreshold 1000
    HTTP_GET {
      url {
        path /health
        status_code 200
        digest 9A0364B9E99BB480DD25E1F0284C8555
        regex \"ok \\\\d+\"
      }
      connect_port 8080
      connect_timeout 3
      retry 2
      delay_before_retry 1
    }
  }
  real_server 10.0.0.2 80 {
    weight 0
    notify_down \"/usr/local/bin/alert 'a b'\"
  }
}
virtual_server 192.0.2.1 25 {
  real_server 10.0.0.1 25 { SMTP_CHECK {
    helo_name lb.example.org
    host { connect_port 2525 }
  } }
}
virtual_server 192.0.2.1 7 {
  real_server 10.0.0.1 7 { MISC_CHECK {
    misc_path \"/usr/local/bin/probe 10.0.0.1\"
    misc_timeout 4
  } }
}
virtual_server group sites {
  lb_algo mh (mh-port,mh-fallback)
  lb_kind TUN type gue port 6080
  real_server 10.0.0.1 443 { TCP_CHECK { } }
}
virtual_server fwmark 7 {
  protocol UDP
  real_server 10.0.0.1 53 { DNS_CHECK {
    type A
    name example.org
  } }
}
";

#[test]
fn a_whole_file_becomes_a_configuration_that_loads() {
    let lua = import(WHOLE).expect("the file is correct");
    let spec = load(&lua);
    let [web, _, _, sites, dns] = &spec.services[..] else { panic!("five services:\n{lua}") };
    assert!(spec.services.iter().all(|service| service.plane == Plane::Ipvs), "{lua}");
    let ipvs = |index: usize| spec.services[index].ipvs.clone().expect("the plane has settings");
    assert_eq!((&*web.name, ipvs(0).forward), ("192.0.2.1:80", IpvsForward::Direct));
    assert_eq!(
        ipvs(0).persistence.as_ref().map(|one| (one.timeout.as_secs(), one.prefix_v4)),
        Some((50, 24))
    );
    assert_eq!(sites.listen.len(), 4, "three addresses of the range and one of IPv6: {lua}");
    assert_eq!(ipvs(3).forward, IpvsForward::Gue(6080));
    assert!(ipvs(3).scheduler_flags.port && ipvs(3).scheduler_flags.fallback, "{lua}");
    assert_eq!((ipvs(4).fwmark, ipvs(4).transport), (Some(7), IpvsTransport::Udp));
    assert_eq!(dns.listen.len(), 0);
    let of_dns =
        spec.pools.iter().find(|pool| Some(&pool.name) == dns.pool.as_ref()).expect("the pool of dns");
    assert_eq!(of_dns.check.as_ref().and_then(|check| check.port), Some(53), "the port of the real server");
    let pool = spec
        .pools
        .iter()
        .find(|pool| Some(&pool.name) == web.pool.as_ref())
        .expect("the pool of the service");
    let warm_up = |server: usize| pool.servers[server].check.as_ref().map(|check| check.warm_up.as_secs());
    assert_eq!(
        (pool.check.is_none(), warm_up(0), warm_up(1)),
        (true, Some(4), None),
        "one server has a check"
    );
    let quorum = QuorumSpec { weight: 3, hysteresis: 1 };
    assert_eq!((pool.quorum, pool.inhibit_on_failure), (Some(quorum), true));
    let servers: Vec<(String, u32, bool)> =
        pool.servers.iter().map(|one| (one.endpoint.to_string(), one.weight, one.is_sorry)).collect();
    assert_eq!(
        servers,
        [
            ("10.0.0.1:80".to_owned(), 3, false),
            ("10.0.0.2:80".to_owned(), 1, false),
            ("10.0.0.9:80".to_owned(), 1, true)
        ]
    );
    assert!(lua.contains("`vrrp_instance VI_1` is not taken over: VRRP stays with keepalived"), "{lua}");
}

#[test]
fn checks_and_hooks_of_a_whole_file_are_imported() {
    let lua = import(WHOLE).expect("the file is correct");
    let spec = load(&lua);
    let [web, mail, echo, ..] = &spec.services[..] else { panic!("five services:\n{lua}") };
    let pool_of =
        |service: &ServiceSpec| spec.pools.iter().find(|pool| Some(&pool.name) == service.pool.as_ref());
    let pool = pool_of(web).expect("the pool of the service");
    let check_of = |service: &ServiceSpec| {
        pool_of(service)
            .and_then(|pool| pool.check_of(&pool.servers[0]).cloned())
            .expect("the first server has a check")
    };
    let CheckKind::Http { digest, regex, .. } = check_of(web).kind else { panic!("a check of HTTP: {lua}") };
    assert_eq!(
        (digest.as_deref(), regex.as_deref()),
        (Some("9a0364b9e99bb480dd25e1f0284c8555"), Some("ok \\d+"))
    );
    let smtp = check_of(mail);
    assert_eq!((smtp.kind, smtp.port), (CheckKind::Smtp { helo: "lb.example.org".into() }, Some(2525)));
    let exec = check_of(echo);
    let program = |path: &str, argument: &str| ProgramSpec {
        path: path.into(),
        arguments: Some(argument.to_owned()).filter(|argument| !argument.is_empty()).into_iter().collect(),
    };
    let probe = program("/usr/local/bin/probe", "10.0.0.1");
    assert_eq!((exec.kind, exec.timeout.as_secs(), exec.fall), (CheckKind::Exec { program: probe }, 4, 1));
    let notify = NotifySpec {
        up: None,
        down: Some(program("/usr/local/bin/alert", "a b")),
        quorum_up: Some(program("/usr/local/bin/announce", "add")),
        quorum_down: Some(program("/usr/local/bin/withdraw", "")),
        timeout: NotifySpec::TIMEOUT,
    };
    assert_eq!(pool.notify.as_deref(), Some(&notify));
    let check = pool.servers[0].check.as_ref().expect("the server has its check");
    assert_eq!(
        (check.port, check.fall, check.every.as_secs(), check.timeout.as_secs()),
        (Some(8080), 3, 1, 3)
    );
}

#[test]
fn a_missing_brace_at_the_end_is_a_problem_with_its_line() {
    let text = "virtual_server 192.168.0.1 80 {\n real_server 192.168.0.2 80 {\n  HTTP_GET {\n    url {\n      path /\n real_server 192.168.0.3 80 {\n";
    let problems = import(text).expect_err("a brace is missing");
    assert!(
        problems[0].contains("k.conf:1: the block of `virtual_server 192.168.0.1 80` is not closed"),
        "{problems:?}"
    );
    let text = "virtual_server 192.0.2.1 80 {\n real_server 10.0.0.1 80 {\n weight 1\n real_server 10.0.0.2 80 {\n }\n}\n}\n";
    let problems = import(text).expect_err("a brace is in the wrong line");
    assert_eq!(
        problems,
        ["k.conf:4: keepalived has no `real_server` in real_server: a } is missing above this line"]
    );
}

#[test]
fn unknown_words_and_wrong_values_are_problems_with_their_lines() {
    let text = "virtual_server 192.0.2.1 80 {\n lb_alog rr\n lb_kind NATT\n protocol tcp\n lb_algo wlcc\n delay_loop x\n real_server 10.0.0.1 80 {\n  wieght 1\n  TCP_CHEK { }\n }\n}\nvirtual_sever x { }\n";
    let problems = import(text).expect_err("most lines are wrong");
    let lines: Vec<&str> = problems.iter().filter_map(|problem| problem.split(": ").next()).collect();
    assert_eq!(
        lines,
        ["k.conf:2", "k.conf:3", "k.conf:4", "k.conf:5", "k.conf:6", "k.conf:8", "k.conf:9", "k.conf:12"],
        "{problems:#?}"
    );
    assert!(problems[0].contains("did you mean `lb_algo`?"), "{problems:#?}");
    assert!(problems[7].contains("did you mean `virtual_server`?"), "{problems:#?}");
}

#[test]
fn a_file_without_virtual_servers_is_refused() {
    let problems = import("vrrp_instance VI_1 { }\n").expect_err("there is nothing to import");
    assert_eq!(problems, ["the file has no virtual_server: there is nothing to import"]);
}

#[test]
fn a_saved_table_becomes_a_configuration_that_loads() {
    let text = "-A -t 192.0.2.1:80 -s wrr -p 300 -M 255.255.255.0\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -g -w 3 -x 100 -y 50\n-a -t 192.0.2.1:80 -r 10.0.0.2:80 -g -w 0\n-A -f 7 -6 -s mh -b mh-port\n-a -f 7 -6 -r [2001:db8::2]:0 -m -w 1\n-A -u [2001:db8::1]:53 -s rr -o\n-a -u [2001:db8::1]:53 -r [2001:db8::2]:53 -i -w 1\n";
    let imported = ipvsadm::read("saved", text).expect("the table is correct");
    let lua = lua::print("saved", &imported);
    let spec = load(&lua);
    let [web, mark, dns] = &spec.services[..] else { panic!("three services:\n{lua}") };
    assert_eq!((&*web.name, &*mark.name, &*dns.name), ("192.0.2.1:80", "fwmark 7", "[2001:db8::1]:53"));
    let dns = dns.ipvs.as_ref().expect("the plane has settings");
    assert_eq!((dns.transport, dns.one_packet, dns.forward), (IpvsTransport::Udp, true, IpvsForward::Ipip));
    let pool = spec
        .pools
        .iter()
        .find(|pool| Some(&pool.name) == web.pool.as_ref())
        .expect("the pool of the service");
    assert_eq!(pool.servers.iter().map(|server| server.weight).collect::<Vec<_>>(), [3, 1]);
    assert!(lua.contains("max = 50, hard = 100"), "both thresholds are taken: {lua}");
    assert!(lua.contains("state = \"drain\""), "the weight 0 of ipvsadm drains: {lua}");
    assert!(lua.contains("check = \"tcp\""), "ipvsadm has no checks, so the servers of TCP get one: {lua}");
}

#[test]
fn a_wrong_line_of_a_saved_table_is_a_problem_with_its_line() {
    let text = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -q\n";
    let problem = ipvsadm::read("saved", text).expect_err("-q is unknown");
    assert!(problem.to_string().starts_with("saved:2: "), "{problem}");
}

#[test]
fn different_checks_of_servers_are_imported() {
    let real = |number: u8, check: &str| format!(" real_server 10.0.0.{number} 80 {{\n {check}\n }}\n");
    let server = |servers: &[String]| format!("virtual_server 192.0.2.1 80 {{\n{}}}\n", servers.concat());
    let (tcp, smtp) = ("TCP_CHECK {\n connect_port 81\n }", "SMTP_CHECK {\n }");
    let differ = import(&server(&[real(1, tcp), real(2, smtp), real(3, "")])).expect("the file is correct");
    let pools = load(&differ).pools;
    let kinds = pools[0].servers.iter().map(|server| server.check.as_ref().map(|check| check.kind.name()));
    assert_eq!(kinds.collect::<Vec<_>>(), [Some("tcp"), Some("smtp"), None], "{differ}");
    assert_eq!(pools[0].check, None, "{differ}");
    let equal = import(&server(&[real(1, tcp), real(2, tcp)])).expect("the file is correct");
    let pool = &load(&equal).pools[0];
    assert!(pool.check.is_some() && pool.servers.iter().all(|server| server.check.is_none()), "{equal}");
}
