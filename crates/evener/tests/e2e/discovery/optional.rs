//! Pools with `resolve = "optional"`: names and files that are missing at the start or at a reload.

use crate::admin::status_text::unwrapped_status;
use crate::harness::dns::{A, Nameserver, ask, host, query};
use crate::harness::dnsmasq::Dnsmasq;
use crate::harness::{BINARY, Directory, Evener, Server, reserved_port, wait_until, who};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Output};

const LOOPBACK: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::LOCALHOST)];

fn evener_command(command: &str, directory: &Directory, config: &str) -> Output {
    let file = directory.write("evener.lua", config);
    let admin = directory.file("admin.sock");
    let options: &[&std::ffi::OsStr] =
        if command == "run" { &["--admin".as_ref(), admin.as_os_str()] } else { &[] };
    Command::new(BINARY).arg(command).arg(file).args(options).output().unwrap()
}

#[test]
fn an_instance_starts_without_a_name_server_and_gets_its_servers_later() {
    let Some(mut dnsmasq) = Dnsmasq::prepare(&[]) else { return };
    let (known, port) = (Nameserver::of(1), reserved_port());
    let server = Nameserver::of_at(port, 2);
    let evener = Evener::run(&format!(
        "service \"d\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", \"{}\", \"ns.test:{port}\", \
         resolve = \"optional\", resolver = \"{}\" }}",
        known.name(),
        dnsmasq.address()
    ));
    let listen = evener.port("d");
    for number in 0..4 {
        assert_eq!(host(&ask(listen, &query(number, "x.test", A))), 1, "expected the server that is known");
    }
    assert!(evener.log().contains("discovery_failed pool=d"), "{}", evener.log());
    let text = unwrapped_status(&evener);
    assert!(text.contains(&format!("ns.test:{port}: ")), "expected the status to name the source: {text}");

    dnsmasq.write(&[("ns.test", &LOOPBACK)]);
    dnsmasq.run();
    let on = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    evener.expect_addresses("d", &[on(known.port), on(port)]);
    wait_until("the new server", || (host(&ask(listen, &query(9, "x.test", A))) == 2).then_some(()));
    evener.expect_log("discovery_recovered");
    assert_eq!(evener.log_count("discovery_failed"), 1);
    drop(server);
}

#[test]
fn a_pool_without_any_server_yet_gets_the_servers_of_its_file() {
    let a = Server::named("a");
    let directory = Directory::new();
    let list = directory.file("later/servers");
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", discover.file \"{}\", resolve = \"optional\" }}",
        list.display()
    );
    let output = evener_command("check", &directory, &config);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("note: pool `s`: discover.file ") && text.contains("does not exist"), "{text}");
    let evener = Evener::run(&config);
    std::fs::create_dir(directory.file("later")).unwrap();
    std::fs::write(&list, format!("127.0.0.1:{}", a.port)).unwrap();
    wait_until("the server", || (who(evener.port("s")) == "a").then_some(()));
    evener.expect_log("discovery_recovered");
}

#[test]
fn a_required_source_that_is_missing_is_a_problem_at_the_start_and_at_a_reload() {
    let Some(dnsmasq) = Dnsmasq::start(&[("app.test", &LOOPBACK)]) else { return };
    let a = Server::named("a");
    let directory = Directory::new();
    directory.write("bad", "10.0.0.1:80\nx\n");
    let start =
        format!("service \"s\" {{\n listen = \"127.0.0.1:0\", resolver = \"{}\",\n", dnsmasq.address());
    let path = |name: &str| directory.file(name).display().to_string();
    let cases = [
        ("\"missing.test:80\"".to_owned(), "`missing.test` does not resolve: no such name".to_owned()),
        (
            "discover.dns \"missing.test:80\"".into(),
            "pool `s`: discover.dns missing.test:80: `missing.test` does not resolve: no such name".into(),
        ),
        (
            "discover.srv \"_x._tcp.test\"".into(),
            "pool `s`: discover.srv _x._tcp.test: `_x._tcp.test` does not resolve: no such name".into(),
        ),
        (
            format!("discover.file \"{}\"", path("missing")),
            format!("pool `s`: discover.file {}: the file does not exist", path("missing")),
        ),
        (
            format!("discover.file \"{}\"", path("bad")),
            format!("pool `s`: discover.file {}: line 2: `x` is not an IP address", path("bad")),
        ),
    ];
    let evener =
        Evener::run(&format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", a.port));
    for (item, problem) in &cases {
        let config = format!("{start} {item} }}");
        for command in ["check", "run"] {
            let output = evener_command(command, &directory, &config);
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && text.contains(problem), "{command} {item}: {text}");
            assert!(text.contains("evener.lua:3: "), "expected the line of the source: {text}");
        }
        evener.write_config(&config);
        let output = evener.run_command(&["reload"]);
        assert!(!output.status.success(), "{item}: {output:?}");
        assert_eq!(who(evener.port("s")), "a", "expected the running configuration to stay");
    }
    evener.write_config(&format!("{start} \"app.test:{}\" }}", a.port));
    assert!(evener.run_command(&["reload"]).status.success());
    assert_eq!(who(evener.port("s")), "a");
}

#[test]
fn a_reload_with_an_optional_name_that_fails_keeps_its_last_addresses() {
    let Some(mut dnsmasq) = Dnsmasq::start(&[("app.test", &LOOPBACK)]) else { return };
    let a = Server::named("a");
    let config = |more: &str| {
        format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", \"app.test:{}\", resolve = \"optional\", resolver = \"{}\", {more} }}",
            a.port,
            dnsmasq.address()
        )
    };
    let (first, second) = (config(""), config("policy = \"least_conn\""));
    let evener = Evener::run(&first);
    assert_eq!(who(evener.port("s")), "a");
    dnsmasq.kill();
    evener.reload(&second);
    assert_eq!(who(evener.port("s")), "a");
    evener.expect_addresses("s", &[SocketAddr::from((Ipv4Addr::LOCALHOST, a.port))]);
}
