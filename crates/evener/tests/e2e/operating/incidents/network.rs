//! A network namespace with the addresses of a balancer, servers and clients, so that the documentation can show them.

use crate::harness::namespaces::Namespace;
use crate::harness::{BINARY, Directory, Evener, wait_until};
use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// HTTP servers, each given as `ADDRESS[:delay=SECONDS][:status=CODE]`. The check of a server always passes.
const SERVERS: &str = r#"
import http.server, socketserver, sys, threading, time

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1000
    def server_bind(self):
        # The method of http.server would query a name server for the host's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

def serve(address, delay="0", status="200"):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        def do_GET(self):
            is_check = self.path == "/health"
            if not is_check:
                time.sleep(float(delay))
            body = b"hello\n"
            self.send_response(200 if is_check else int(status))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *_):
            pass
    threading.Thread(target=Server((address, 80), Handler).serve_forever, daemon=True).start()

for given in sys.argv[1:]:
    address, *settings = given.split(":")
    serve(address, **dict(setting.split("=") for setting in settings))
print("ready", flush=True)
threading.Event().wait(170)
"#;

/// HTTP clients, each given as `ADDRESS[:requests=NUMBER][:connections=NUMBER]`. Each connection sends its requests one
/// after another.
const CLIENTS: &str = r#"
import http.client, sys, threading

def client(address, requests):
    connection = http.client.HTTPConnection("198.51.100.10", 80, 60, (address, 0))
    for _ in range(requests):
        connection.request("GET", "/")
        connection.getresponse().read()

threads = []
for given in sys.argv[1:]:
    address, *settings = given.split(":")
    settings = {name: int(value) for name, value in (setting.split("=") for setting in settings)}
    for _ in range(settings.get("connections", 1)):
        thread = threading.Thread(target=client, args=(address, settings.get("requests", 1)), daemon=True)
        threads.append(thread)
        thread.start()
for thread in threads:
    thread.join()
"#;

/// A process that ends with its owner.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) struct Network {
    namespace: Namespace,
    servers: RefCell<Vec<Running>>,
}

impl Network {
    /// Returns `None` if the test does not run as root or a program is missing.
    pub(super) fn new() -> Option<Self> {
        let namespace = Namespace::alone()?;
        namespace.run(
            "for a in 198.51.100.10 10.0.0.1 10.0.0.2 10.0.0.3 203.0.113.7 203.0.113.8 203.0.113.66; do
                 ip address add $a/32 dev lo
             done",
        );
        Some(Self { namespace, servers: RefCell::default() })
    }

    fn python(&self, script: &str, arguments: &str) -> Command {
        let mut command = self.namespace.command("/usr/bin/python3");
        command.args(["-c", script]).args(arguments.split(' ')).stdin(Stdio::null());
        command
    }

    /// Starts servers.
    pub(super) fn servers(&self, wanted: &str) {
        let mut servers = self.python(SERVERS, wanted).stdout(Stdio::piped()).spawn().unwrap();
        let output = servers.stdout.take().unwrap();
        self.servers.borrow_mut().push(Running(servers));
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "expected the servers to start");
    }

    /// Runs clients until they have all their responses.
    pub(super) fn clients(&self, wanted: &str) {
        let status = self.python(CLIENTS, wanted).status().unwrap();
        assert!(status.success(), "expected responses for {wanted}");
    }

    pub(super) fn clients_in_background(&self, wanted: &str) -> Running {
        Running(self.python(CLIENTS, wanted).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Runs a configuration, by a program such as `prlimit` if one is given.
    pub(super) fn evener(&self, config: &str, by: &[&str]) -> Evener {
        self.evener_with(config, by, |_| {})
    }

    /// Runs a configuration after other files are in its directory.
    pub(super) fn evener_with(&self, config: &str, by: &[&str], prepare: impl Fn(&Directory)) -> Evener {
        let directory = Directory::new();
        prepare(&directory);
        let file = directory.write("evener.lua", config.trim_start()).display().to_string();
        let words: Vec<&str> = by.iter().copied().chain([BINARY]).collect();
        let mut command = self.namespace.command(words[0]);
        command.args(&words[1..]);
        let evener = Evener::start(command, directory, &["run", &file]);
        wait_until("the first checks", || {
            let pools = evener.status()["pools"].clone();
            let servers =
                pools.as_array().unwrap().iter().flat_map(|pool| pool["servers"].as_array().unwrap().clone());
            let is_pending = |server: serde_json::Value| server["verdict"] == "unchecked";
            (!servers.into_iter().any(is_pending) || !config.contains("check.")).then_some(())
        });
        evener
    }

    /// Runs commands for an instance, and returns them with their output as a terminal would show them. The directory of
    /// the instance is called `/etc/evener`.
    pub(super) fn show(&self, evener: &Evener, commands: &[&str]) -> String {
        let one = |line: &&str| {
            let words: Vec<&str> = line.split(' ').collect();
            let output = self
                .namespace
                .command(BINARY)
                .args(&words[1..])
                .env("EVENER_SOCKET", evener.admin_socket())
                .current_dir(evener.file("."))
                .output()
                .unwrap();
            let text = String::from_utf8([output.stderr, output.stdout].concat()).unwrap();
            let directory = evener.file("").display().to_string();
            format!("$ {line}\n{}", text.replace(directory.trim_end_matches('/'), "/etc/evener"))
        };
        commands.iter().map(one).collect::<Vec<_>>().join("\n")
    }
}
