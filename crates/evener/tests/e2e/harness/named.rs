//! BIND's `named` for tests: a server for a zone, with keys, or a forwarder.

use crate::harness::{Directory, wait_until};
use std::fs;
use std::process::{Child, Command, Stdio};

/// A TSIG key in the form of `dig -y`: algorithm, name and secret.
pub(crate) const KEY: &str = "hmac-sha256:k:a25vd24gdG8gYm90aA==";

/// A running named.
pub(crate) struct Named {
    child: Child,
    directory: Directory,
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("output of named:\n{}", self.printed());
        }
    }
}

impl Named {
    /// Starts a server for two zones: `example` with `n0` to `n99` and a text `big` that is larger than a datagram, and `secret`,
    /// which requires queries that are signed with [`KEY`].
    pub(crate) fn with_zone(port: u16) -> Self {
        let directory = Directory::new();
        let hosts: String = (0..100).map(|n| format!("n{n} A 192.0.2.{n}\n")).collect();
        let big = vec![format!("\"{}\"", "x".repeat(200)); 20].join(" ");
        directory.write(
            "zone",
            &format!("$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\nbig TXT {big}\n{hosts}"),
        );
        directory.write("secret", "$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\nn A 192.0.2.7\n");
        let zones = "key k { algorithm hmac-sha256; secret \"a25vd24gdG8gYm90aA==\"; };\n\
            zone \"example\" { type primary; file \"zone\"; };\n\
            zone \"secret\" { type primary; file \"secret\"; allow-query { key k; }; allow-transfer { key k; }; };\n";
        Self::start(directory, port, "recursion no;", zones)
    }

    /// Starts a forwarder without a cache that sends queries to the port `to` of loopback.
    pub(crate) fn forwarder(port: u16, to: u16) -> Self {
        let options = format!(
            "recursion yes; forward only; forwarders {{ 127.0.0.1 port {to}; }}; max-cache-ttl 0; max-ncache-ttl 0; \
             qname-minimization off; allow-query {{ any; }};"
        );
        Self::start(Directory::new(), port, &options, "")
    }

    fn start(directory: Directory, port: u16, options: &str, more: &str) -> Self {
        let at = directory.file("").display().to_string();
        let config = format!(
            "options {{ directory \"{at}\"; pid-file \"{at}pid\"; session-keyfile none; dnssec-validation no; notify no;\n\
             listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; {options} }};\ncontrols {{ }};\n{more}"
        );
        let file = directory.write("named.conf", &config);
        let child = Command::new("named")
            .args(["-g", "-n", "1", "-c"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.file("log")).unwrap())
            .spawn()
            .unwrap();
        let mut named = Self { child, directory };
        wait_until("named to run", || {
            let printed = named.printed();
            assert!(named.child.try_wait().unwrap().is_none(), "expected named to keep running: {printed}");
            printed.contains("running").then_some(())
        });
        named
    }

    /// Returns the log of the server.
    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(self.directory.file("log")).unwrap_or_default()
    }
}

/// Runs dig with these arguments and returns its output.
pub(crate) fn dig(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("dig")
        .args(["@127.0.0.1", "-p", &port.to_string(), "+time=5", "+tries=2"])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}
