//! What the tests share: a running instance, servers to balance, ports, deadlines.

pub(crate) mod certificates;
pub(crate) mod dns;
pub(crate) mod dns_mname;
pub(crate) mod mname;
pub(crate) mod named;
pub(crate) mod namespaces;
pub(crate) mod origin;
pub(crate) mod peers;
pub(crate) mod pen;
mod ports;

pub(crate) use ports::{Reservation, reserved_port};

use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Whatever a test waits for comes within this, or the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_evener");

/// Waits until `ready`, which says what is still missing.
pub(crate) fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < until, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Whether a program is there. Where tests must not be skipped (CI), its absence is a failure.
pub(crate) fn have(program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin"].iter().any(|directory| Path::new(directory).join(program).exists());
    if !found {
        println!("skipped: needs {program} (cargo xtask setup installs it)");
        assert!(
            std::env::var_os("EVENER_TEST_STRICT").is_none(),
            "skipped where nothing may be: needs {program}"
        );
    }
    found
}

/// The Python that has what tests need of PyPI. Where tests must not be skipped (CI), its absence is a failure.
pub(crate) fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin/python");
    if !python.exists() {
        println!("skipped: needs target/python (cargo xtask setup makes it)");
        assert!(
            std::env::var_os("EVENER_TEST_STRICT").is_none(),
            "skipped where nothing may be: needs target/python"
        );
        return None;
    }
    Some(python)
}

/// Node with what tests need of npm; the script comes next. Where tests must not be skipped (CI), its absence is a failure.
pub(crate) fn node() -> Option<Command> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/node/node_modules");
    if !modules.join("mname").exists() {
        println!("skipped: needs target/node (cargo xtask setup makes it)");
        assert!(
            std::env::var_os("EVENER_TEST_STRICT").is_none(),
            "skipped where nothing may be: needs target/node"
        );
        return None;
    }
    let mut node = Command::new("node");
    node.env("NODE_PATH", modules);
    Some(node)
}

/// Whether the test runs as root, which namespaces need.
pub(crate) fn have_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root, for a network namespace");
        assert!(std::env::var_os("EVENER_TEST_STRICT").is_none(), "skipped where nothing may be: needs root");
    }
    root
}

/// A directory that goes with its test.
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
    pub(crate) directory: Directory,
    admin: PathBuf,
}

impl Drop for Evener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("what evener said last:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        } else {
            // A worker that is gone is not always missed: others serve on.
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

    /// Runs a configuration with an admin socket that another instance may have had before.
    pub(crate) fn run_at(config: &str, admin: &Path) -> Self {
        let directory = Directory::new();
        let file = directory.write("evener.lua", config).display().to_string();
        Self::start_at(Command::new(BINARY), directory, &["run", &file], admin)
    }

    fn start_at(mut command: Command, directory: Directory, arguments: &[&str], admin: &Path) -> Self {
        let log = fs::File::create(directory.file("log")).unwrap();
        let child = command
            .args(arguments)
            .args(std::env::var("EVENER_TEST_DRIVER").ok().iter().flat_map(|driver| ["--driver", driver]))
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
            assert!(ended.is_none(), "it ended at once: {}", evener.log());
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

    /// Waits for a text in the log, which is written by a thread of its own.
    pub(crate) fn expect_log(&self, text: &str) {
        wait_until(text, || self.log().contains(text).then_some(()));
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

    /// Replaces the configuration and waits until it was taken on.
    pub(crate) fn reload(&self, config: &str) {
        self.directory.write("evener.lua", config);
        let before = self.log_count(" reloaded changes=");
        self.signal("HUP");
        wait_until("the reload", || (self.log_count(" reloaded changes=") > before).then_some(()));
    }

    /// A command that talks to this instance.
    pub(crate) fn run_command(&self, arguments: &[&str]) -> Output {
        let socket = self.directory.file("admin.sock");
        Command::new(BINARY).args(arguments).arg("--socket").arg(socket).output().unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.run_command(&["status", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The port of a service that listens on one IP address, as the instance reports it.
    pub(crate) fn port(&self, service: &str) -> u16 {
        let status = self.request_status();
        let services = status["services"].as_array().unwrap();
        let found = services.iter().find(|one| one["name"] == service);
        let listen = &found.unwrap_or_else(|| panic!("no service {service}: {status}"))["listen"];
        assert_eq!(listen.as_array().map(Vec::len), Some(1), "{service} listens on {listen}");
        listen[0].as_str().unwrap().parse::<SocketAddr>().unwrap().port()
    }

    /// Status from the admin socket itself, which takes less time than another process.
    fn request_status(&self) -> Value {
        let mut stream = UnixStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = "GET /v1/status HTTP/1.1\r\nHost: evener\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        serde_json::from_str(response.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// A counter of a service.
    pub(crate) fn service_counter(&self, service: &str, name: &str) -> u64 {
        let status = self.status();
        let services = status["services"].as_array().unwrap();
        let found = services.iter().find(|one| one["name"] == service).unwrap();
        found["counters"][name].as_u64().unwrap()
    }

    /// A server by its name, whatever its pool.
    pub(crate) fn server(&self, name: &str) -> Value {
        let status = self.status();
        let pools = status["pools"].as_array().unwrap();
        let mut servers = pools.iter().flat_map(|pool| pool["servers"].as_array().unwrap());
        servers.find(|server| server["name"] == name).unwrap_or_else(|| panic!("no server {name}")).clone()
    }

    /// Waits for its end; the exit status.
    pub(crate) fn end(&mut self) -> i32 {
        wait_until("the instance to end", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }

    /// Seconds of CPU time so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

/// A TCP server on a thread: what it does with a connection is up to the test.
pub(crate) struct Server {
    pub(crate) port: u16,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Keeps the port for a server that takes the place of this one when it stopped.
    reserved: Option<Reservation>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    /// Starts on a port of its own.
    pub(crate) fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let reserved = Reservation::new();
        let mut server = Self::start_at(reserved.port(), serve);
        server.reserved = Some(reserved);
        server
    }

    /// Starts on a reserved port, or on that of a server that stopped.
    pub(crate) fn start_at(port: u16, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(local(port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (stop, serve) = (Arc::clone(&over), Arc::new(serve));
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
        Self { port, over, thread: Some(thread), reserved: None }
    }

    /// Says its name and the address that it saw, then sends back what it gets until the end.
    pub(crate) fn named(name: &'static str) -> Self {
        Self::start(move |stream| echo(name, stream))
    }

    pub(crate) fn named_at(name: &'static str, port: u16) -> Self {
        Self::start_at(port, move |stream| echo(name, stream))
    }

    /// Closes the listening socket; connections that it has go on.
    pub(crate) fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
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

/// A client connection with a deadline.
pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(local(port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads a line.
pub(crate) fn line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) if byte[0] != b'\n' => line.push(byte[0]),
            // A read with a deadline is not taken up again by itself.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    String::from_utf8(line).unwrap()
}

/// The name of the server that a new connection gets; empty when it is closed without one.
pub(crate) fn who(port: u16) -> String {
    line(&mut connect(port)).split(' ').next().unwrap().to_owned()
}
