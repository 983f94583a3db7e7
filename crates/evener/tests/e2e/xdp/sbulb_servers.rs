//! The file with the servers of `evener sbulb`, which is read every second.

use super::sbulb::{Family, PORTS, refused};
use crate::harness::sbulb::Sbulb;
use crate::harness::xdp::{Echo, Traffic, UdpClient, XdpNetwork};
use crate::harness::{Directory, wait_until};
use std::fs;
use std::net::IpAddr;

fn file_of(servers: &[IpAddr]) -> String {
    servers.iter().fold("[Real Servers]\n".to_owned(), |text, server| format!("{text}{server}\n"))
}

fn start<'a>(network: &'a XdpNetwork, family: Family, servers: &[IpAddr]) -> Sbulb<'a> {
    let directory = Directory::new();
    directory.write("servers.cfg", &file_of(servers));
    let address = family.virtual_server(PORTS[0]).ip();
    let words = format!("eth0 -vs {address} -cfg DIR/servers.cfg -p {} -l INFO", PORTS[0]);
    Sbulb::start_with(network, directory, &words)
}

#[test]
fn clients_of_a_removed_server_get_another_and_the_others_stay() {
    for family in [Family::V4, Family::V6] {
        let Some(network) = XdpNetwork::new() else { return };
        let _echo = Echo::udp(network.servers(), &family.servers(), &PORTS);
        let [one, two, three] = family.servers();
        let sbulb = start(&network, family, &[one, two]);
        let virtual_server = family.virtual_server(PORTS[0]);
        let clients: Vec<UdpClient> =
            (0..30).map(|_| UdpClient::bind(network.client(), family.client(), 0)).collect();
        let before: Vec<IpAddr> = clients.iter().map(|client| client.server(virtual_server)).collect();
        let moved = before.iter().position(|server| *server == one).expect("a client of the first server");
        sbulb.write("servers.cfg", &file_of(&[three, two]));
        wait_until("the client of a removed server to get another", || {
            (clients[moved].server(virtual_server) != one).then_some(())
        });
        for (client, before) in clients.iter().zip(&before) {
            let server = client.server(virtual_server);
            let is_right = if *before == one { server == two || server == three } else { server == *before };
            assert!(is_right, "expected only clients of {one} to move: {before} -> {server}");
        }
        // The new server gets its turn.
        wait_until("a client of the new server", || {
            let client = UdpClient::bind(network.client(), family.client(), 0);
            (client.server(virtual_server) == three).then_some(())
        });
    }
}

#[test]
fn a_bad_file_keeps_the_last_servers_and_is_reported_once() {
    let Some(network) = XdpNetwork::new() else { return };
    let family = Family::V4;
    let _echo = Echo::udp(network.servers(), &family.servers(), &PORTS);
    let [one, two, three] = family.servers();
    let sbulb = start(&network, family, &[one, two]);
    let virtual_server = family.virtual_server(PORTS[0]);
    let traffic = Traffic::start(network.client(), family.client(), virtual_server, 16, 1000);
    let check = |change: &dyn Fn(), expected: &str| {
        change();
        sbulb.expect_log(expected);
    };
    check(&|| drop(sbulb.write("servers.cfg", "[Real Servers]\n10.0.2.300\n")), "line 2: '10.0.2.300'");
    check(&|| drop(sbulb.write("servers.cfg", "")), "the section [Real Servers] is missing");
    check(&|| drop(sbulb.write("servers.cfg", "[Real Servers]\n")), "lists no servers");
    check(&|| drop(sbulb.write("servers.cfg", "[Real Servers]\nfd00::1\n")), "fd00::1 is an IPv6 address");
    let many: Vec<IpAddr> = (1..=33).map(|number| IpAddr::from([10, 0, 5, number])).collect();
    check(
        &|| drop(sbulb.write("servers.cfg", &file_of(&many))),
        "33 servers are more than the maximum of 32",
    );
    check(&|| fs::remove_file(sbulb.file("servers.cfg")).unwrap(), "cannot be read: No such file");
    traffic.wait_for(3000);
    let reports = sbulb.log().matches("cannot be read").count();
    assert_eq!(reports, 1, "expected one report in three seconds: {}", sbulb.log());
    traffic.stop().expect_unhurt();
    sbulb.write("servers.cfg", &file_of(&[one, two, three]));
    wait_until("a client of the new server", || {
        let client = UdpClient::bind(network.client(), family.client(), 0);
        (client.server(virtual_server) == three).then_some(())
    });
}

#[test]
fn without_servers_the_program_does_not_start() {
    let Some(network) = XdpNetwork::new() else { return };
    let directory = Directory::new();
    let file = directory.write("servers.cfg", "10.0.2.11\n").display().to_string();
    let missing = directory.file("missing.cfg").display().to_string();
    let check = |file: &str, expected: &str| {
        let (status, printed) = refused(&network, &format!("eth0 -vs 10.0.9.9 -cfg {file} -p 5683"));
        assert_eq!((status, printed.lines().count()), (Some(1), 1), "{printed}");
        assert!(printed.starts_with("sbulb: ") && printed.contains(expected), "{printed}");
    };
    check(&file, "the section [Real Servers] is missing");
    check(&missing, "missing.cfg: cannot be read: No such file or directory");
}
