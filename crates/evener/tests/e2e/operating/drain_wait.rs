//! `drain --wait`, and the selection of connections by client and server.

use crate::admin::access::{api, error_of, output_of};
use crate::harness::{BINARY, Evener, Server, line, wait_until};
use crate::tcp::proxy_protocol::connect_from;
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Stdio};

fn config(port: u16, more: &str) -> String {
    format!(
        "pool \"p\" {{ {{ \"127.0.0.1:{port}\", name = \"a\" }}, {{ \"127.0.0.1:{port}\", name = \"b\", tier = 2 }}, {more} }}
         service \"s\" {{ listen = \"127.0.0.1:0\", pool = \"p\" }}"
    )
}

/// Starts a command that waits for the end of connections, and returns it after its first line on standard error
/// with this line: it has found connections.
fn start_waiting(evener: &Evener, arguments: &[&str]) -> (Child, String) {
    let mut child = start(evener, arguments);
    let mut first = Vec::new();
    let errors = child.stderr.as_mut().unwrap();
    while first.last() != Some(&b'\n') {
        let mut byte = [0];
        errors.read_exact(&mut byte).unwrap();
        first.push(byte[0]);
    }
    (child, String::from_utf8(first).unwrap())
}

/// Starts a command whose standard error is read later.
fn start(evener: &Evener, arguments: &[&str]) -> Child {
    let mut command = Command::new(BINARY);
    command.args(arguments).arg("--socket").arg(evener.admin_socket());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end of a command, and returns its exit status, its output and its errors.
fn end(mut child: Child) -> (i32, String, String) {
    let status = wait_until("the command to end", || child.try_wait().unwrap());
    let (mut output, mut errors) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    (status.code().unwrap(), output, errors)
}

fn expect_state(evener: &Evener, state: &str) {
    wait_until("the state of the server", || (evener.server("a")["state"] == state).then_some(()));
}

#[test]
fn the_wait_ends_with_the_last_connection() {
    let a = Server::named("a");
    let evener = Evener::run(&config(a.port, "sticky = true"));
    let mut client = connect_from("127.0.0.2", evener.port("s"));
    line(&mut client);
    let (waiting, first) = start_waiting(&evener, &["drain", "a", "--wait"]);
    assert!(first.starts_with("p/a: 1 connection") && first.contains(", 1 sticky client"), "{first}");
    expect_state(&evener, "drain");
    let (status, _, errors) = end(start(&evener, &["drain", "p/a", "--wait", "--timeout", "10ms"]));
    assert_eq!(status, 1, "{errors}");
    // The idle time is between the two if the client has been idle for a second.
    assert!(errors.contains("p/a still has 1 connection, "), "{errors}");
    assert!(errors.contains(", 1 sticky client after "), "{errors}");
    assert!(
        errors.contains("`evener connections --server p/a` lists them, `evener close --server p/a`"),
        "{errors}"
    );
    assert!(
        errors.contains("`evener maintenance p/a` sends its sticky clients to other servers"),
        "{errors}"
    );
    drop(client);
    let (status, output, errors) = end(waiting);
    assert_eq!(
        (status, output.as_str()),
        (0, "p/a: draining, and no connections are left; 1 sticky client still goes to it when it returns\n"),
        "{errors}"
    );
    let (status, view) = api(&evener, "GET", "/v1/status?server=p/a", None);
    assert_eq!((status, view["pools"][0]["name"].as_str()), (200, Some("p")));
    let servers = view["pools"][0]["servers"].as_array().unwrap();
    assert!(servers.len() == 1 && servers[0]["name"] == "a", "only the server is in the response: {view}");
    assert_eq!(api(&evener, "GET", "/v1/status?server=p/x", None).0, 404);
    let done = output_of(&evener, &["maintenance", "a", "--wait", "--json"]);
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!((done["server"].as_str(), done["active"].as_u64()), (Some("p/a"), Some(0)));
}

#[test]
fn the_wait_ends_when_the_server_is_removed_or_the_instance_ends() {
    let a = Server::named("a");
    let mut evener = Evener::run(&config(a.port, ""));
    let mut client = connect_from("127.0.0.2", evener.port("s"));
    line(&mut client);
    let (waiting, _) = start_waiting(&evener, &["drain", "a", "--wait"]);
    output_of(&evener, &["ready", "a"]);
    let (status, _, errors) = end(waiting);
    assert_eq!(status, 1);
    assert!(
        errors.contains("p/a is no longer in state drain: another command or the end of --for made it ready"),
        "{errors}"
    );

    let (waiting, _) = start_waiting(&evener, &["drain", "a", "--wait"]);
    evener.reload(&config(a.port, "").replace("name = \"a\"", "name = \"c\""));
    let (status, _, errors) = end(waiting);
    assert_eq!(status, 1);
    assert!(errors.contains("p/a was removed from the configuration while it had"), "{errors}");

    let mut client = connect_from("127.0.0.2", evener.port("s"));
    line(&mut client);
    let (waiting, _) = start_waiting(&evener, &["maintenance", "c", "--wait"]);
    evener.signal("KILL");
    evener.end();
    let (status, _, errors) = end(waiting);
    assert_eq!(status, 1);
    assert!(errors.contains("the instance ended while p/c had"), "{errors}");
}

#[test]
fn connections_are_listed_and_closed_by_client_and_server() {
    let a = Server::named("a");
    let evener = Evener::run(&config(a.port, ""));
    let listen = evener.port("s");
    let mut clients: Vec<_> = [2, 2, 3].map(|last| connect_from(&format!("127.0.0.{last}"), listen)).into();
    clients.iter_mut().for_each(|client| drop(line(client)));
    let count = |arguments: &[&str]| {
        let text = output_of(&evener, &[&["connections", "--json"], arguments].concat());
        let listed: Value = serde_json::from_str(&text).unwrap();
        (listed["total"].as_u64().unwrap(), listed["connections"].as_array().unwrap().len())
    };
    assert_eq!(count(&[]), (3, 3));
    assert_eq!(count(&["--client", "127.0.0.2"]), (2, 2));
    assert_eq!(count(&["--client", "127.0.0.2/31", "s"]), (3, 3));
    assert_eq!(count(&["--client", "::/0"]), (0, 0));
    assert_eq!(count(&["--server", "p/a"]), (3, 3));
    assert_eq!(count(&["--server", "b"]), (0, 0));
    let part = evener.run_command(&["connections", "--client", "127.0.0.2", "--limit", "1"]);
    assert_eq!(String::from_utf8(part.stderr).unwrap(), "1 of 2 are shown; 1 more with a higher --limit N\n");
    assert!(error_of(&evener, &["connections", "--server", "x"]).contains("there is no server `x`"));
    assert_eq!(output_of(&evener, &["close", "--client", "127.0.0.2"]), "127.0.0.2: 2 closed\n");
    assert_eq!(count(&[]), (1, 1));
    assert_eq!(line(&mut clients[0]), "", "the connection is closed");
    assert_eq!(output_of(&evener, &["close", "--client", "::/0"]), "::/0: 0 closed\n");
}
