//! Pools below their quorum, and sorry servers.

use crate::harness::{Evener, Server, wait_until, who};

/// Returns the output of a command.
fn output(evener: &Evener, arguments: &[&str]) -> String {
    String::from_utf8_lossy(&evener.run_command(arguments).stdout).into_owned()
}

#[test]
fn new_clients_get_the_sorry_server_below_the_quorum_and_return_with_it() {
    let (a, b, sorry) = (Server::named("a"), Server::named("b"), Server::named("sorry"));
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", quorum = 2,\n\
         {{ \"127.0.0.1:{}\", name = \"a\" }}, {{ \"127.0.0.1:{}\", name = \"b\" }},\n\
         sorry = \"127.0.0.1:{}\" }}",
        a.port, b.port, sorry.port
    ));
    let port = evener.port("s");
    assert!((0..4).all(|_| who(port) != "sorry"));
    output(&evener, &["maintenance", "s/b"]);
    wait_until("the sorry server", || (who(port) == "sorry").then_some(()));
    evener.expect_log("quorum_lost pool=s weight=1 quorum=2");
    let status = output(&evener, &["status"]);
    assert!(status.contains("below the quorum 2"), "{status}");
    let explained = output(&evener, &["explain", "s", "192.0.2.1"]);
    assert!(explained.contains("below its quorum"), "{explained}");
    output(&evener, &["ready", "s/b"]);
    evener.expect_log("quorum_gained pool=s weight=2 quorum=2");
    wait_until("the servers", || (who(port) != "sorry").then_some(()));
}
