//! The messages to the service manager, and sockets that it passes. The tests stand in for systemd; its own program
//! systemd-socket-activate starts an instance, too.

use crate::harness::{
    BINARY, DEADLINE, Directory, Evener, Server, have, local, reserved_port, wait_until, who,
};
use crate::udp::flows::{Echo, ask, client};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

/// The socket of a service notified.
struct Notified {
    directory: Directory,
    socket: UnixDatagram,
}

impl Notified {
    fn new() -> Self {
        let directory = Directory::new();
        let socket = UnixDatagram::bind(directory.file("notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { directory, socket }
    }

    /// Returns a command for an instance that sends its messages to this socket.
    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env("NOTIFY_SOCKET", self.directory.file("notify")).env("WATCHDOG_USEC", "200000");
        command
    }

    /// Returns the next message that does not come from the watchdog.
    fn next(&self) -> String {
        loop {
            let message = self.receive();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    fn receive(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("a message of the instance");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn expect_watchdog(&self) {
        wait_until("a message of the watchdog", || (self.receive() == "WATCHDOG=1").then_some(()));
    }
}

#[test]
fn the_start_reloads_and_the_end_are_reported_to_the_service_manager() {
    let (notified, a, listen) = (Notified::new(), Server::named("a"), reserved_port());
    let directory = Directory::new();
    let config = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}", a.port);
    let file = directory.write("evener.lua", &config).display().to_string();
    let mut evener = Evener::start(notified.command(), directory, &["run", &file, "--drain-timeout", "50s"]);
    assert_eq!(notified.next(), "READY=1\nSTATUS=Serving clients");
    notified.expect_watchdog();

    evener.signal("HUP");
    let begun = notified.next();
    let time = begun.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{begun}"));
    assert!(time.parse::<u64>().is_ok_and(|time| time > 0), "{begun}");
    assert_eq!(notified.next(), "READY=1\nSTATUS=Serving clients");

    evener.write_config("service 's' { listen = 'x' }");
    evener.signal("HUP");
    assert!(notified.next().starts_with("RELOADING=1\n"));
    let refused = notified.next();
    assert!(
        refused.starts_with("READY=1\nSTATUS=Serving clients with the configuration before"),
        "{refused}"
    );
    assert!(refused.contains("evener.lua:1: "), "{refused}");
    assert_eq!(who(listen), "a");
    notified.expect_watchdog();

    evener.signal("TERM");
    assert_eq!(
        notified.next(),
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000\nSTATUS=Draining: clients may finish for 50s"
    );
    assert_eq!(evener.end(), 0);
}

/// A program that passes sockets; it is stopped at the end of the test.
struct Activator(Child);

impl Drop for Activator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_passes_a_socket_at_the_first_connection() {
    if !have("systemd-socket-activate") {
        return;
    }
    let (a, listen, other) = (Server::named("a"), reserved_port(), reserved_port());
    let directory = Directory::new();
    let config = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}", a.port);
    let file = directory.write("evener.lua", &config);
    let log = std::fs::File::create(directory.file("log")).unwrap();
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(local(listen).to_string()).arg("-l").arg(local(other).to_string());
    command.arg(BINARY).arg("run").arg(&file).arg("--admin").arg(directory.file("admin.sock"));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let _activator = Activator(command.spawn().unwrap());
    let read = || std::fs::read_to_string(directory.file("log")).unwrap_or_default();
    wait_until("the sockets", || (read().matches("Listening on").count() == 2).then_some(()));
    assert_eq!(who(listen), "a");
    assert_eq!(who(listen), "a");
    let unused = format!("was closed: no service listens at 127.0.0.1:{other} for connections");
    wait_until(&unused, || read().contains(&unused).then_some(()));
    assert!(std::net::TcpStream::connect(local(other)).is_err(), "the unused socket is closed");
}

#[test]
fn systemd_passes_a_socket_for_datagrams() {
    if !have("systemd-socket-activate") {
        return;
    }
    let (echo, listen) = (Echo::start("a"), reserved_port());
    let directory = Directory::new();
    let config = format!(
        "service 's' {{ listen = '127.0.0.1:{listen}', protocol = 'udp', '127.0.0.1:{}' }}",
        echo.port
    );
    let file = directory.write("evener.lua", &config);
    let log = std::fs::File::create(directory.file("log")).unwrap();
    let mut command = Command::new("systemd-socket-activate");
    command.arg("--datagram").arg("-l").arg(local(listen).to_string());
    command.arg(BINARY).arg("run").arg(&file).arg("--workers").arg("2");
    command.arg("--admin").arg(directory.file("admin.sock"));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let _activator = Activator(command.spawn().unwrap());
    let read = || std::fs::read_to_string(directory.file("log")).unwrap_or_default();
    wait_until("the socket", || read().contains("Listening on").then_some(()));
    let clients: Vec<_> = (0..8).map(|_| client(listen)).collect();
    for client in &clients {
        assert!(ask(client, "x").starts_with("a "), "{}", read());
    }
}
