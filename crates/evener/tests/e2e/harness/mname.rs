//! A running `evener mname-balancer`, npm mname as its servers, and dig as its client.

use crate::harness::pen::signal;
use crate::harness::{BINARY, Directory, have, local, node, reserved_port, wait_until};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Waits until `ready` returns a value, with a limit other than `DEADLINE`, for example to include a backoff.
pub(crate) fn within<T>(limit: Duration, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns `true` if the programs that the traffic tests need are installed.
pub(crate) fn have_all() -> bool {
    have("dig") && node().is_some()
}

/// A server process of npm mname.
pub(crate) struct Mname {
    child: Child,
}

impl Drop for Mname {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Mname {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process, which leaves its socket file behind.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running instance with its directory of sockets.
pub(crate) struct Balancer {
    child: Child,
    directory: Directory,
    port: u16,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "last lines of mname-balancer:\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        } else {
            assert!(!log.contains("panicked at"), "a thread panicked: {log}");
        }
    }
}

/// Creates a directory with an empty subdirectory for sockets.
pub(crate) fn with_sockets() -> Directory {
    let directory = Directory::new();
    fs::create_dir(directory.file("sockets")).unwrap();
    directory
}

impl Balancer {
    /// Starts an instance on loopback, with additional arguments.
    pub(crate) fn run(directory: Directory, arguments: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("mname-balancer").args(["-l", "debug"]);
        Self::start(command, directory, arguments)
    }

    /// Starts an instance with the given command.
    pub(crate) fn start(mut command: Command, directory: Directory, arguments: &[&str]) -> Self {
        let port = reserved_port();
        let log = fs::File::create(directory.file("log")).unwrap();
        let child = command
            .args(["-b", "127.0.0.1", "-p", &port.to_string(), "-s"])
            .arg(directory.file("sockets"))
            .arg("--admin")
            .arg(directory.file("admin.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(fs::File::create(directory.file("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut balancer = Self { child, directory, port };
        wait_until("mname-balancer to start", || {
            let ended = balancer.child.try_wait().unwrap();
            assert!(ended.is_none(), "expected mname-balancer to keep running: {}", balancer.log());
            balancer.status()
        });
        balancer
    }

    /// Returns the address of the DNS listeners.
    pub(crate) fn listen_address(&self) -> SocketAddr {
        local(self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the output on stdout and stderr.
    pub(crate) fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.file(name)).unwrap_or_default();
        read("log") + &read("stderr")
    }

    /// Returns the log lines with the event. Each log line is JSON.
    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.directory.file("log")).unwrap_or_default();
        // The last line may be incomplete.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["event"] == event).collect()
    }

    /// Waits for a log line with the event and the server.
    pub(crate) fn expect(&self, limit: Duration, event: &str, server: &str) {
        within(limit, &format!("{event} of {server}"), || {
            self.events(event).iter().any(|line| line["server"] == server).then_some(())
        });
    }

    /// Returns the path of a file in the directory of the instance.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.file(name)
    }

    /// Writes a file to the directory of the instance and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        self.directory.write(name, text)
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.pid());
    }

    /// Runs a command for this instance.
    pub(crate) fn run_command(&self, arguments: &[&str]) -> Output {
        let socket = self.directory.file("admin.sock");
        Command::new(BINARY).args(arguments).arg("--socket").arg(socket).output().unwrap()
    }

    pub(crate) fn status(&self) -> Option<Value> {
        serde_json::from_slice(&self.run_command(&["status", "--json"]).stdout).ok()
    }

    /// Returns the output of `balstat`.
    pub(crate) fn balstat(&self) -> String {
        let output = self.run_command(&["balstat"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the id, the state (`true` if ok) and the number of clients of each server in `balstat`.
    pub(crate) fn backends(&self) -> Vec<(u64, bool, u64)> {
        let output = self.run_command(&["balstat", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let servers = report["servers"].as_array().unwrap().iter();
        let backend = |one: &Value| {
            (one["id"].as_u64().unwrap(), one["ok"].as_bool().unwrap(), one["clients"].as_u64().unwrap())
        };
        servers.map(backend).collect()
    }

    /// Waits until exactly these servers are ok.
    pub(crate) fn expect_ok(&self, limit: Duration, expected: &[u64]) {
        within(limit, &format!("{expected:?} to be ok"), || {
            let ok = self.backends().into_iter().filter(|(_, ok, _)| *ok).map(|(id, ..)| id);
            (ok.collect::<Vec<_>>() == expected).then_some(())
        });
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.file("sockets").join(name)
    }

    /// Starts a server on a socket. The server responds to queries with the name of the socket.
    pub(crate) fn server(&self, name: &str) -> Mname {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/compat_mname/server.js");
        let log = self.directory.file(&format!("{name}.log"));
        let child = node()
            .unwrap()
            .arg(script)
            .arg(self.socket(name))
            .arg(name)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log).unwrap())
            .stderr(fs::File::create(self.directory.file(&format!("{name}.err"))).unwrap())
            .spawn()
            .unwrap();
        wait_until("the mname server to listen", || {
            fs::read_to_string(&log).unwrap().contains("listening").then_some(())
        });
        Mname { child }
    }

    /// Returns the errors that a server of npm mname printed.
    pub(crate) fn errors_of(&self, name: &str) -> String {
        fs::read_to_string(self.directory.file(&format!("{name}.err"))).unwrap()
    }

    /// Sends a TXT query from a client's address with dig, and returns the output.
    pub(crate) fn dig(&self, client: &str, name: &str, more: &[&str]) -> String {
        let output = Command::new("dig")
            .args(["@127.0.0.1", "-p", &self.port.to_string(), "-b", client, name, "TXT"])
            .args(["+tries=1", "+time=10"])
            .args(more)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the name of the server that responds to a client.
    pub(crate) fn who(&self, client: &str, more: &[&str]) -> String {
        let response = self.dig(client, "a.example", &[&["+short"], more].concat());
        response.trim().trim_matches('"').to_owned()
    }

    /// Waits for the process to end and returns the exit status, or -1 if a signal ended the process.
    pub(crate) fn end(&mut self) -> i32 {
        wait_until("mname-balancer to end", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }
}
