//! dnsmasq for tests: a name server whose addresses can be changed while it runs.

use crate::harness::dns::{A, ask_on, client, query, rcode};
use crate::harness::{Directory, have, reserved_port, wait_until};
use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

/// A name server for the names below `test`, with a lifetime of one second for all records.
pub(crate) struct Dnsmasq {
    directory: Directory,
    port: u16,
    options: Vec<String>,
    child: Option<Child>,
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.directory.file("log")).unwrap_or_default();
            eprintln!("output of dnsmasq:\n{log}");
        }
    }
}

impl Dnsmasq {
    /// Prepares a name server that does not run yet. Returns `None` if dnsmasq is not installed.
    pub(crate) fn prepare(options: &[String]) -> Option<Self> {
        have("dnsmasq").then(|| {
            let directory = Directory::new();
            directory.write("hosts", "");
            Self { directory, port: reserved_port(), options: options.to_vec(), child: None }
        })
    }

    /// Starts a name server with the addresses of some names.
    pub(crate) fn start(hosts: &[(&str, &[IpAddr])]) -> Option<Self> {
        let mut server = Self::prepare(&[])?;
        server.write(hosts);
        server.run();
        Some(server)
    }

    /// Returns the address of the server, as for `resolver`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Writes the addresses of the names, which apply when the server starts.
    pub(crate) fn write(&self, hosts: &[(&str, &[IpAddr])]) {
        let lines = hosts.iter().flat_map(|(name, ips)| ips.iter().map(move |ip| format!("{ip} {name}\n")));
        self.directory.write("hosts", &lines.collect::<String>());
    }

    /// Replaces the addresses of all names.
    pub(crate) fn change(&self, hosts: &[(&str, &[IpAddr])]) {
        self.write(hosts);
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }

    /// Starts the server.
    pub(crate) fn run(&mut self) {
        let log = fs::File::create(self.directory.file("log")).unwrap();
        let hosts = self.directory.file("hosts").display().to_string();
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file=",
            ])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/test/", "--local-ttl=1"])
            .args(["--log-facility=-", "--cache-size=0"])
            .args([format!("--port={}", self.port), format!("--addn-hosts={hosts}")])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if rustix::process::geteuid().is_root() {
            // Another user could not read the files of the test.
            command.arg("--user=root");
        }
        self.child = Some(command.spawn().unwrap());
        wait_until("dnsmasq to run", || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = fs::read_to_string(self.directory.file("log")).unwrap();
            assert!(ended.is_none(), "expected dnsmasq to keep running: {log}");
            let socket = client(self.port);
            // Until the server has its port, sending may fail.
            let is_sent = socket.send(&query(1, "test", A)).is_ok();
            (is_sent && socket.recv(&mut [0; 512]).is_ok()).then_some(())
        });
        assert_eq!(rcode(&ask_on(&client(self.port), &query(2, "missing.test", A))), 3);
    }

    /// Ends the server.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
