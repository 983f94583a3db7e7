//! Other programs as clients and servers: nginx, HAProxy and dnsdist.

use crate::harness::{Directory, local, wait_until};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// A program that is killed at the end of its test.
pub(crate) struct Peer {
    child: Child,
    directory: Directory,
}

impl Peer {
    /// Starts nginx with a block `http { ... }` or `stream { ... }` that listens on this port.
    pub(crate) fn nginx(port: u16, block: &str) -> Self {
        let directory = Directory::new();
        let at = directory.file("").display().to_string();
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off; master_process off; pid {at}pid;\n\
             error_log {at}log;\nevents {{ worker_connections 512; }}\n{block}\n"
        );
        let file = directory.write("nginx.conf", &config);
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file);
        Self::start(command, directory, port)
    }

    /// Starts HAProxy with sections that listen on this port.
    pub(crate) fn haproxy(port: u16, sections: &str) -> Self {
        let directory = Directory::new();
        let config = format!(
            "global\n  maxconn 500\ndefaults\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n{sections}\n"
        );
        let file = directory.write("haproxy.cfg", &config);
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        Self::start(command, directory, port)
    }

    /// Starts dnsdist on this port with additional configuration.
    pub(crate) fn dnsdist(port: u16, config: &str) -> Self {
        let directory = Directory::new();
        let config = format!("setSecurityPollSuffix(\"\")\nsetLocal(\"127.0.0.1:{port}\")\n{config}\n");
        let file = directory.write("dnsdist.conf", &config);
        let mut command = Command::new("dnsdist");
        command.args(["--supervised", "--disable-syslog", "-C"]).arg(file);
        Self::start(command, directory, port)
    }

    fn start(mut command: Command, directory: Directory, port: u16) -> Self {
        let log = std::fs::File::create(directory.file("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut peer = Self { child: command.spawn().unwrap(), directory };
        wait_until("the peer to listen", || {
            let printed = || std::fs::read_to_string(peer.directory.file("log")).unwrap_or_default();
            assert!(
                peer.child.try_wait().unwrap().is_none(),
                "expected the peer to keep running: {}",
                printed()
            );
            TcpStream::connect(local(port)).ok()
        });
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
