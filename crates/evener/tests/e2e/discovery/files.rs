//! Files that list servers: changes by rename and in place, faulty contents and missing files.

use crate::harness::{Evener, Server, who};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

fn at(server: &Server) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, server.port).into()
}

/// Returns the names of the servers of a service.
fn names(listen: u16) -> BTreeSet<String> {
    (0..10).map(|_| who(listen)).collect()
}

#[test]
fn a_changed_file_is_followed_and_a_faulty_one_changes_nothing() {
    let [a, b, c] = ["a", "b", "c"].map(Server::named);
    let config =
        "service \"s\" { listen = \"127.0.0.1:0\", discover.file \"servers\" { weight = 2, max = 5 } }";
    let directory = crate::harness::Directory::new();
    directory.write("servers", &format!("# one\n{}\n{} weight=7 tier=1\n", at(&a), at(&b)));
    let file = directory.write("evener.lua", config).display().to_string();
    let path = directory.file("servers");
    let evener =
        Evener::start(std::process::Command::new(crate::harness::BINARY), directory, &["run", &file]);
    let listen = evener.port("s");
    assert_eq!(names(listen), BTreeSet::from(["a".into(), "b".into()]));
    let server = |server: &Server| evener.server(&at(server).to_string());
    assert_eq!((&server(&a)["weight"], &server(&a)["max"]), (&2.into(), &5.into()));
    assert_eq!(server(&b)["weight"], 7);
    assert_eq!(server(&b)["source"], format!("discover.file {}", path.display()));

    // A rename, as by tools that write a new file first.
    evener.write("servers.new", &format!("{} {}", at(&b), at(&c)));
    std::fs::rename(evener.file("servers.new"), &path).unwrap();
    evener.expect_addresses("s", &[at(&b), at(&c)]);
    assert_eq!(names(listen), BTreeSet::from(["b".into(), "c".into()]));
    assert_eq!(evener.log_count("discovery_failed"), 0);

    // Faults: a wrong line, an empty file, and a missing file.
    evener.write("servers", &format!("{}\n\nwww.example:80\n", at(&a)));
    evener.expect_log("line 3: `www.example:80` is not an IP address");
    evener.expect_addresses("s", &[at(&b), at(&c)]);
    std::fs::File::create(&path).unwrap();
    evener.expect_log("it lists no servers");
    evener.expect_addresses("s", &[at(&b), at(&c)]);
    std::fs::remove_file(&path).unwrap();
    evener.expect_log("the file does not exist");
    evener.expect_addresses("s", &[at(&b), at(&c)]);
    assert_eq!(names(listen), BTreeSet::from(["b".into(), "c".into()]));

    // An edit in place, and a change of weights only.
    evener.write("servers", &format!("{}\n", at(&a)));
    evener.expect_addresses("s", &[at(&a)]);
    evener.expect_log("discovery_recovered");
    assert_eq!(evener.log_count("discovery_failed"), 3, "expected one event for each fault");
    evener.write("servers", &format!("{} weight=9\n", at(&a)));
    crate::harness::wait_until("the weight", || (server(&a)["weight"] == 9).then_some(()));
    assert_eq!(names(listen), BTreeSet::from(["a".into()]));
}

#[test]
fn a_file_of_sbulb_lists_addresses_without_ports() {
    let port = crate::harness::reserved_port();
    let on = |host: u8| SocketAddr::from(([127, 0, 0, host], port));
    let _servers = [Server::named_on("a", on(1)), Server::named_on("b", on(2))];
    let directory = crate::harness::Directory::new();
    let list = directory.write("servers", "[Other]\nx = 127.0.0.9\n[Real Servers]\n127.0.0.1\n127.0.0.2\n");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", discover.file \"{}\" {{ port = {port} }} }}",
        list.display()
    ));
    assert_eq!(names(evener.port("s")), BTreeSet::from(["a".into(), "b".into()]));
    directory.write("servers", "[Real Servers]\n; 127.0.0.1\n127.0.0.2\n");
    evener.expect_addresses("s", &[on(2)]);
}

#[test]
fn a_listed_address_of_the_service_itself_is_refused() {
    let a = Server::named("a");
    let directory = crate::harness::Directory::new();
    let list = directory.write("servers", &at(&a).to_string());
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", discover.file \"{}\" }}\n\
         service \"t\" {{ listen = \"127.0.0.1:0\", \"{}\" }}",
        list.display(),
        at(&a)
    ));
    // The port of the service is known only now.
    let (listen, other) = (evener.port("s"), evener.port("t"));
    let on = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    directory.write("servers", &format!("{} {} {}", at(&a), on(listen), on(other)));
    evener.expect_log(&format!("server_refused pool=s server=127.0.0.1:{listen}"));
    evener.expect_addresses("s", &[at(&a), on(other)]);
    assert_eq!(names(listen), BTreeSet::from(["a".into()]));
    assert_eq!(evener.log_count("server_refused"), 1, "another service that does not lead back is a server");
}

#[test]
fn a_listen_address_that_a_reload_gives_up_can_be_a_server() {
    let a = Server::named("a");
    let directory = crate::harness::Directory::new();
    let [before, after] = [crate::harness::reserved_port(), crate::harness::reserved_port()];
    let on = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let list = directory.write("servers", &format!("{} {}", at(&a), on(before)));
    let config = |port: u16| {
        let list = list.display();
        format!("service \"s\" {{ listen = \"127.0.0.1:{port}\", discover.file \"{list}\" }}")
    };
    let evener = Evener::run(&config(before));
    evener.expect_log(&format!("server_refused pool=s server=127.0.0.1:{before}"));
    evener.expect_addresses("s", &[at(&a)]);
    evener.reload(&config(after));
    evener.expect_addresses("s", &[at(&a), on(before)]);
    evener.reload(&config(before));
    evener.expect_addresses("s", &[at(&a)]);
}
