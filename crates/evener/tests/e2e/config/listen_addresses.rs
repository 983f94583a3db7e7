//! Listen addresses that do not exist yet or any more (`freebind`, removed socket files), and abstract names.

use crate::harness::namespaces::Row;
use crate::harness::{BINARY, Directory, Evener, Server, have, reserved_port, wait_until, who};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

/// The name of the server behind a unix socket, or `None` without a listener.
fn who_at(path: &Path) -> Option<String> {
    let mut text = String::new();
    UnixStream::connect(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// A server that sends its name and closes.
fn brief(name: &'static str) -> Server {
    Server::start(move |mut stream| drop(stream.write_all(name.as_bytes())))
}

#[test]
fn a_port_that_the_system_chooses_is_logged_and_in_the_status() {
    let server = Server::named("a");
    let at = format!("127.0.0.1:{}", server.port);
    for protocol in ["tcp", "http", "udp", "dns"] {
        let evener = Evener::one_liner(&[protocol, "127.0.0.1:0", &at, "--workers", "3"]);
        let address = format!("127.0.0.1:{}", evener.port(protocol));
        evener.expect_log(&format!(" listening service={protocol} protocol={protocol} address={address}\n"));
        assert_eq!(evener.log_count(" listening "), 1);
        assert_eq!(evener.status()["services"][0]["listen"], serde_json::json!([address]));
        let text = evener.run_command(&["status"]).stdout;
        assert!(
            String::from_utf8(text).unwrap().contains(&format!(" on {address}, pool {protocol}\n")),
            "{address}"
        );
    }
    let evener = Evener::one_liner(&["tcp", "127.0.0.1:0", &at, "--workers", "3"]);
    let port = evener.port("tcp");
    assert!((0..12).all(|_| who(port) == "a"));
}

#[test]
fn freebind_listens_on_an_address_that_does_not_exist_yet() {
    for address in ["192.0.2.5", "[2001:db8::5]"] {
        for protocol in ["tcp", "http", "udp", "dns"] {
            let port = reserved_port();
            let config = |more: &str| {
                format!(
                    "service \"s\" {{ protocol = \"{protocol}\", listen = \"{address}:{port}\", \"127.0.0.1:9\", {more} }}"
                )
            };
            let directory = Directory::new();
            let file = directory.write("evener.lua", &config(""));
            let admin = directory.file("admin.sock");
            let mut command = std::process::Command::new(BINARY);
            let refused = command.arg("run").arg(file).arg("--admin").arg(admin).output().unwrap();
            let printed = String::from_utf8_lossy(&refused.stderr);
            assert!(
                !refused.status.success() && printed.contains("`freebind = true`"),
                "{protocol}: {printed}"
            );
            let evener = Evener::run(&config("freebind = true"));
            evener.expect_log(&format!("address={address}:{port}"));
        }
    }
}

#[test]
fn clients_are_served_when_the_address_is_added() {
    let Some(row) = Row::new().filter(|_| have("curl")) else { return };
    let directory = Directory::new();
    let file = directory.write(
        "evener.lua",
        "service \"s\" { protocol = \"http\", freebind = true, respond = { body = \"here\" },\n\
         listen = { \"192.0.2.5:8000\", \"[2001:db8::5]:8000\" } }",
    );
    let file = file.display().to_string();
    let _evener = Evener::start(row.balancer.command(BINARY), directory, &["run", &file]);
    row.balancer.run("ip address add 192.0.2.5/32 dev lo; ip address add 2001:db8::5/128 dev lo nodad");
    for address in ["192.0.2.5", "[2001:db8::5]"] {
        wait_until(address, || {
            let url = format!("http://{address}:8000/");
            let output = row.balancer.command("curl").args(["-s", "-g", "-m", "5", &url]).output().unwrap();
            (output.stdout == b"here").then_some(())
        });
    }
}

#[test]
fn a_removed_socket_file_is_created_again() {
    let (a, directory) = (brief("a"), Directory::new());
    let path = directory.file("front.sock");
    let config = format!(
        "service \"s\" {{ listen = \"{}\", \"127.0.0.1:{}\", unix_mode = \"0621\" }}",
        path.display(),
        a.port
    );
    let mut evener = Evener::run(&config);
    assert_eq!(who_at(&path).as_deref(), Some("a"));
    // The regular inspection of socket files creates the file again.
    std::fs::remove_file(&path).unwrap();
    wait_until("the socket", || who_at(&path));
    assert_eq!(who_at(&path).as_deref(), Some("a"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o621);
    // A reload creates the file again.
    std::fs::remove_file(&path).unwrap();
    assert!(evener.run_command(&["reload"]).status.success());
    wait_until("the socket", || who_at(&path));
    // A file that another program created at the path stays, also when Evener ends.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(evener.run_command(&["reload"]).status.success());
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_file_that_was_created_again_is_removed_at_the_end() {
    let (a, directory) = (brief("a"), Directory::new());
    let path = directory.file("front.sock");
    let mut evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"{}\", \"127.0.0.1:{}\" }}",
        path.display(),
        a.port
    ));
    std::fs::remove_file(&path).unwrap();
    assert!(evener.run_command(&["reload"]).status.success());
    wait_until("the socket", || who_at(&path));
    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    assert!(!path.exists());
}

#[test]
fn a_removed_directory_is_logged_once_and_used_when_it_exists_again() {
    let (a, directory) = (brief("a"), Directory::new());
    let inner = directory.file("inner");
    std::fs::create_dir(&inner).unwrap();
    let path = inner.join("front.sock");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"{}\", \"127.0.0.1:{}\" }}",
        path.display(),
        a.port
    ));
    std::fs::remove_dir_all(&inner).unwrap();
    (0..3).for_each(|_| assert!(evener.run_command(&["reload"]).status.success()));
    evener.expect_log("its socket file was removed and cannot be created again");
    std::fs::create_dir(&inner).unwrap();
    assert!(evener.run_command(&["reload"]).status.success());
    wait_until("the socket", || who_at(&path));
    assert_eq!(evener.log_count("its socket file was removed"), 1);
}

#[test]
fn abstract_sockets_work_for_listeners_and_servers() {
    let name = format!("evener-e2e-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(format!("{name}-back")).unwrap();
    let back = UnixListener::bind_addr(&address).unwrap();
    std::thread::spawn(move || {
        for mut stream in back.incoming().flatten() {
            let _ = stream.write_all(b"back\n");
        }
    });
    let listen = reserved_port();
    let config = format!(
        "service \"s\" {{ listen = {{ \"@{name}\", \"127.0.0.1:{listen}\" }}, {{ \"unix:@{name}-back\", name = \"a\" }},\n\
         check = check.tcp {{ begins = \"back\", every = \"100ms\" }} }}"
    );
    let evener = Evener::run(&config);
    wait_until("the check to succeed", || (evener.server("a")["verdict"] == "up").then_some(()));
    assert_eq!(evener.server("a")["address"], format!("unix:@{name}-back"));
    assert_eq!(who(listen), "back");
    let front = SocketAddr::from_abstract_name(&name).unwrap();
    let mut text = String::new();
    UnixStream::connect_addr(&front).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "back\n");
    // Another instance cannot listen on the same name.
    let directory = Directory::new();
    let file = directory.write("evener.lua", &config.replace(&format!("127.0.0.1:{listen}"), "127.0.0.1:9"));
    let mut command = std::process::Command::new(BINARY);
    let refused =
        command.arg("run").arg(file).arg("--admin").arg(directory.file("admin.sock")).output().unwrap();
    let printed = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && printed.contains("is in use"), "{printed}");
    drop(evener);
}
