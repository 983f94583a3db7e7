//! Shared parts of the tests: a running instance, servers, ports and deadlines.

pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod dns;
pub(crate) mod dns_mname;
pub(crate) mod dnsmasq;
pub(crate) mod documented;
pub(crate) mod mname;
pub(crate) mod named;
pub(crate) mod namespaces;
pub(crate) mod origin;
pub(crate) mod peers;
pub(crate) mod pen;
mod ports;
pub(crate) mod sbulb;
pub(crate) mod xdp;

pub(crate) use ports::{Reservation, reserved_port};

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Time limit for each wait of a test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_evener");

/// Waits until `ready` returns a value. `what` names the missing event in the failure message.
pub(crate) fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < until, "expected within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Returns `true` if a program is installed. Panics if the program is missing and `EVENER_TEST_STRICT` is set
/// (CI).
pub(crate) fn have(program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin"].iter().any(|directory| Path::new(directory).join(program).exists());
    if !found {
        println!("skipped: needs {program} (cargo xtask setup installs it)");
        assert!(
            std::env::var_os("EVENER_TEST_STRICT").is_none(),
            "skipped although EVENER_TEST_STRICT is set: needs {program}"
        );
    }
    found
}

/// Returns the Python with the packages that tests need. Panics if it is missing and `EVENER_TEST_STRICT` is
/// set (CI).
pub(crate) fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin/python");
    if !python.exists() {
        println!("skipped: needs target/python (cargo xtask setup creates it)");
        assert!(
            std::env::var_os("EVENER_TEST_STRICT").is_none(),
            "skipped although EVENER_TEST_STRICT is set: needs target/python"
        );
        return None;
    }
    Some(python)
}

/// Returns a command for Node with the npm packages that tests need; the caller appends the script. Panics if
/// the packages are missing and `EVENER_TEST_STRICT` is set (CI).
pub(crate) fn node() -> Option<Command> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/node/node_modules");
    if !modules.join("mname").exists() {
        println!("skipped: needs target/node (cargo xtask setup creates it)");
        assert!(
            std::env::var_os("EVENER_TEST_STRICT").is_none(),
            "skipped although EVENER_TEST_STRICT is set: needs target/node"
        );
        return None;
    }
    let mut node = Command::new("node");
    node.env("NODE_PATH", modules);
    Some(node)
}

/// Returns `true` if the test runs as root, which namespaces need. Otherwise panics if `EVENER_TEST_STRICT` is
/// set (CI).
pub(crate) fn have_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root, for a network namespace");
        assert!(
            std::env::var_os("EVENER_TEST_STRICT").is_none(),
            "skipped although EVENER_TEST_STRICT is set: needs root"
        );
    }
    root
}

/// A directory that is removed at the end of its test.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("evener-e2e-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.file(name), text).unwrap();
        self.file(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running instance.
pub(crate) struct Evener {
    child: Child,
    directory: Directory,
    admin: PathBuf,
}

impl Drop for Evener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("last lines of evener:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        } else {
            // A worker that panics can go unnoticed, because other workers continue.
            let log = self.log();
            assert!(!log.contains("panicked at"), "a thread panicked: {log}");
        }
    }
}

impl Evener {
    /// Runs a configuration.
    pub(crate) fn run(config: &str) -> Self {
        Self::run_with(config, &[])
    }

    pub(crate) fn run_with(config: &str, options: &[&str]) -> Self {
        let directory = Directory::new();
        let file = directory.write("evener.lua", config);
        let file = file.display().to_string();
        let arguments: Vec<&str> = ["run", &file].into_iter().chain(options.iter().copied()).collect();
        Self::start(Command::new(BINARY), directory, &arguments)
    }

    /// Runs a one-liner.
    pub(crate) fn one_liner(arguments: &[&str]) -> Self {
        Self::start(Command::new(BINARY), Directory::new(), arguments)
    }

    pub(crate) fn start(command: Command, directory: Directory, arguments: &[&str]) -> Self {
        let admin = directory.file("admin.sock");
        Self::start_at(command, directory, arguments, &admin)
    }

    /// Runs a configuration with a given admin socket, which another instance may have used before.
    pub(crate) fn run_at(config: &str, admin: &Path) -> Self {
        let directory = Directory::new();
        let file = directory.write("evener.lua", config).display().to_string();
        Self::start_at(Command::new(BINARY), directory, &["run", &file], admin)
    }

    fn start_at(mut command: Command, directory: Directory, arguments: &[&str], admin: &Path) -> Self {
        command.args(arguments);
        command.args(std::env::var("EVENER_TEST_DRIVER").ok().iter().flat_map(|driver| ["--driver", driver]));
        Self::spawn(command, directory, admin)
    }

    /// Runs a configuration with the default driver, whichever the other tests use, and with these variables.
    pub(crate) fn with_default_driver(config: &str, variables: &[(&str, &Path)]) -> Self {
        let directory = Directory::new();
        let file = directory.write("evener.lua", config);
        let mut command = Command::new(BINARY);
        command.arg("run").arg(file).envs(variables.iter().copied());
        let admin = directory.file("admin.sock");
        Self::spawn(command, directory, &admin)
    }

    fn spawn(mut command: Command, directory: Directory, admin: &Path) -> Self {
        let log = fs::File::create(directory.file("log")).unwrap();
        let child = command
            .env("STATE_DIRECTORY", directory.file("state"))
            .args(["--log-level", "debug", "--admin"])
            .arg(admin)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut evener = Self { child, directory, admin: admin.to_owned() };
        wait_until("the instance to start", || {
            let ended = evener.child.try_wait().unwrap();
            assert!(ended.is_none(), "expected the instance to keep running: {}", evener.log());
            evener.log().contains("admin_listening").then_some(())
        });
        evener
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.file("log")).unwrap_or_default()
    }

    pub(crate) fn log_count(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits for a text in the log, which another thread writes.
    pub(crate) fn expect_log(&self, text: &str) {
        wait_until(text, || self.log().contains(text).then_some(()));
    }

    /// Returns the path of a file in the directory of the instance.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.file(name)
    }

    /// Writes a file to the directory of the instance and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        self.directory.write(name, text)
    }

    /// Replaces the configuration file without a reload.
    pub(crate) fn write_config(&self, config: &str) {
        self.directory.write("evener.lua", config);
    }

    /// Returns the path of the admin socket.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.admin.clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(
            Command::new("kill")
                .args([&format!("-{name}"), &self.pid().to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Replaces the configuration and waits for the reload.
    pub(crate) fn reload(&self, config: &str) {
        self.write_config(config);
        let before = self.log_count(" reloaded changes=");
        self.signal("HUP");
        wait_until("the reload", || (self.log_count(" reloaded changes=") > before).then_some(()));
    }

    /// Runs a command for this instance.
    pub(crate) fn run_command(&self, arguments: &[&str]) -> Output {
        let socket = self.directory.file("admin.sock");
        Command::new(BINARY).args(arguments).arg("--socket").arg(socket).output().unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.run_command(&["status", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Returns the port of a service that listens on one IP address.
    pub(crate) fn port(&self, service: &str) -> u16 {
        let status = self.request_status();
        let services = status["services"].as_array().unwrap();
        let found = services.iter().find(|one| one["name"] == service);
        let listen = &found.unwrap_or_else(|| panic!("no service {service}: {status}"))["listen"];
        assert_eq!(listen.as_array().map(Vec::len), Some(1), "{service} listens on {listen}");
        listen[0].as_str().unwrap().parse::<SocketAddr>().unwrap().port()
    }

    /// Requests the status over the admin socket, which is faster than running the `status` command.
    fn request_status(&self) -> Value {
        let mut stream = UnixStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = "GET /v1/status HTTP/1.1\r\nHost: evener\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        serde_json::from_str(response.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Returns a counter of a service.
    pub(crate) fn service_counter(&self, service: &str, name: &str) -> u64 {
        let status = self.status();
        let services = status["services"].as_array().unwrap();
        let found = services.iter().find(|one| one["name"] == service).unwrap();
        counter(&found["counters"], name)
    }

    /// Returns the servers of a pool by name, each with its status.
    pub(crate) fn servers_of(&self, pool: &str) -> BTreeMap<String, Value> {
        let status = self.request_status();
        let pools = status["pools"].as_array().unwrap();
        let found = pools.iter().find(|one| one["name"] == pool);
        let servers =
            found.unwrap_or_else(|| panic!("no pool {pool}: {status}"))["servers"].as_array().unwrap();
        servers.iter().map(|server| (server["name"].as_str().unwrap().to_owned(), server.clone())).collect()
    }

    /// Waits until a pool has servers at exactly these addresses.
    pub(crate) fn expect_addresses(&self, pool: &str, expected: &[SocketAddr]) {
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        let present = || -> BTreeSet<String> {
            let servers = self.servers_of(pool).into_values();
            servers.map(|server| server["address"].as_str().unwrap().to_owned()).collect()
        };
        wait_until(&format!("{pool} to have {expected:?}"), || (present() == expected).then_some(()));
    }

    /// Returns the status of a server by its name, in any pool.
    pub(crate) fn server(&self, name: &str) -> Value {
        let status = self.status();
        let pools = status["pools"].as_array().unwrap();
        let mut servers = pools.iter().flat_map(|pool| pool["servers"].as_array().unwrap());
        servers.find(|server| server["name"] == name).unwrap_or_else(|| panic!("no server {name}")).clone()
    }

    /// Waits for the process to end and returns the exit status, or -1 if a signal ended the process.
    pub(crate) fn end(&mut self) -> i32 {
        wait_until("the instance to end", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }

    /// Returns the CPU time of the process in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

/// Returns a counter from the status of a service or server. `drops.no_server` is one value of a label.
pub(crate) fn counter(counters: &Value, name: &str) -> u64 {
    let counter = name.split('.').fold(counters, |counter, part| &counter[part]);
    counter.as_u64().unwrap_or_else(|| panic!("no counter {name} in {counters}"))
}

/// A TCP server that passes each connection to a function of the test, on a separate thread.
pub(crate) struct Server {
    pub(crate) port: u16,
    stopped: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Reserves the port after this server stopped, for another server on the same port
    reserved: Option<Reservation>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    /// Starts a server on a new port.
    pub(crate) fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let reserved = Reservation::new();
        let mut server = Self::start_at(reserved.port(), serve);
        server.reserved = Some(reserved);
        server
    }

    /// Starts a server on a reserved port, or on the port of a stopped server.
    pub(crate) fn start_at(port: u16, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_on(local(port), serve)
    }

    /// Starts a server on an address of loopback with a reserved port.
    pub(crate) fn start_on(address: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let port = address.port();
        listener.set_nonblocking(true).unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let (stop, serve) = (Arc::clone(&stopped), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let serve = Arc::clone(&serve);
                        stream.set_nonblocking(false).unwrap();
                        std::thread::spawn(move || serve(stream));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { port, stopped, thread: Some(thread), reserved: None }
    }

    /// Starts a server that sends its name and the client's address, and then echoes the received bytes.
    pub(crate) fn named(name: &'static str) -> Self {
        Self::start(move |stream| echo(name, stream))
    }

    pub(crate) fn named_on(name: &'static str, address: SocketAddr) -> Self {
        Self::start_on(address, move |stream| echo(name, stream))
    }

    pub(crate) fn named_at(name: &'static str, port: u16) -> Self {
        Self::start_at(port, move |stream| echo(name, stream))
    }

    /// Closes the listener. Open connections remain.
    pub(crate) fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn echo(name: &str, mut stream: TcpStream) {
    let peer = stream.peer_addr().unwrap().ip();
    let _ = stream.write_all(format!("{name} {peer}\n").as_bytes());
    let mut buffer = [0; 65_536];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

/// Connects a client, with a deadline for reads.
pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(local(port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads up to a newline, the end of the stream or an error, and returns the bytes before the newline.
pub(crate) fn line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) if byte[0] != b'\n' => line.push(byte[0]),
            // A read with a timeout is not restarted after a signal.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    String::from_utf8(line).unwrap()
}

/// Opens a connection and returns the name that the server sends, or an empty string if no server sends a name.
pub(crate) fn who(port: u16) -> String {
    line(&mut connect(port)).split(' ').next().unwrap().to_owned()
}
