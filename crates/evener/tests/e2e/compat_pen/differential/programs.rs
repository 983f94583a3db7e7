//! Debian's pen or Evener's, started with the same command line in a new directory. Debian's penctl sends commands.

use crate::harness::{BINARY, DEADLINE, Directory, line, local, reserved_port, wait_until};
use socket2::{Domain, Socket, Type};
use std::cell::RefCell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// The project whose program a test runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Implementation {
    Debian,
    Evener,
}

pub(super) const BOTH: [Implementation; 2] = [Implementation::Debian, Implementation::Evener];

/// Result of a command after which the program ended without a response.
pub(super) const ENDED: &str = "(it ended)";

/// Use of the option `-u root`, without which pen opens no control port as root.
#[derive(Clone, Copy, Debug, PartialEq)]
enum User {
    Root,
    NotGiven,
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A running pen with a control socket.
pub(super) struct Pen {
    by: Implementation,
    port: u16,
    directory: Directory,
    listen: String,
    options: Vec<String>,
    servers: Vec<String>,
    child: RefCell<Child>,
}

impl Drop for Pen {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("output of {:?}:\n{}", self.by, self.printed());
        } else if self.by == Implementation::Evener {
            assert!(!self.printed().contains("panicked at"), "{}", self.printed());
        }
    }
}

/// Returns the path of the program. Evener runs as pen through a symbolic link named `pen`.
pub(super) fn program(by: Implementation, directory: &Directory) -> PathBuf {
    if by == Implementation::Debian {
        return "/usr/bin/pen".into();
    }
    let link = directory.file("pen");
    if !link.exists() {
        std::os::unix::fs::symlink(BINARY, &link).unwrap();
    }
    link
}

impl Pen {
    /// Runs `pen -f [-u root] -C control OPTIONS 127.0.0.1:PORT SERVER...` in a new directory.
    pub(super) fn start(by: Implementation, options: &str, servers: &[String]) -> Self {
        Self::prepared(by, Directory::new(), options, None, servers)
    }

    /// Runs pen with this listen address: an address with the port, or a path.
    pub(super) fn listening(
        by: Implementation,
        options: &str,
        port: u16,
        listen: &str,
        servers: &[String],
    ) -> Self {
        Self::prepared(by, Directory::new(), options, Some((port, listen)), servers)
    }

    /// Runs pen in an existing directory.
    pub(super) fn prepared(
        by: Implementation,
        directory: Directory,
        options: &str,
        listen: Option<(u16, &str)>,
        servers: &[String],
    ) -> Self {
        let pen = Self::new(by, directory, options, listen, servers);
        pen.start_process();
        pen
    }

    fn new(
        by: Implementation,
        directory: Directory,
        options: &str,
        listen: Option<(u16, &str)>,
        servers: &[String],
    ) -> Self {
        let port = listen.map_or_else(reserved_port, |(port, _)| port);
        let listen = listen.map_or_else(|| local(port).to_string(), |(_, listen)| listen.to_owned());
        let options = options.split_whitespace().map(str::to_owned).collect();
        let child = RefCell::new(Command::new("true").spawn().unwrap());
        Self { by, port, directory, listen, options, servers: servers.to_vec(), child }
    }

    /// Starts the process, possibly again after its end.
    pub(super) fn start_process(&self) {
        self.spawn(User::Root);
        wait_until("pen to start", || {
            assert!(!self.has_ended(), "{:?} ended immediately: {}", self.by, self.printed());
            self.run_command("pid").status.success().then_some(())
        });
    }

    /// Runs pen without waiting for its control socket, which `options` may replace by another one.
    pub(super) fn without_control_socket(by: Implementation, options: &str, servers: &[String]) -> Self {
        let pen = Self::new(by, Directory::new(), options, None, servers);
        pen.spawn(User::Root);
        pen
    }

    /// Runs pen without `-u root`.
    pub(super) fn without_user(by: Implementation, options: &str, servers: &[String]) -> Self {
        let pen = Self::new(by, Directory::new(), options, None, servers);
        pen.spawn(User::NotGiven);
        pen
    }

    fn spawn(&self, user: User) {
        let _ = self.child.borrow_mut().wait();
        let printed = fs::File::create(self.directory.file("output")).unwrap();
        // Some commands crash Debian's pen, which must not leave core files.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c 0; exec \"$0\" \"$@\""]).arg(program(self.by, &self.directory));
        if self.by == Implementation::Evener {
            let driver = std::env::var("EVENER_TEST_DRIVER").ok();
            command.args(driver.iter().flat_map(|driver| ["--driver", driver]));
        }
        command
            .args(["-f", "-C", "./control"])
            .args((user == User::Root && is_root()).then_some(["-u", "root"]).iter().flatten());
        command.args(&self.options).arg(&self.listen).args(&self.servers);
        command.current_dir(self.directory.file(".")).env("TZ", "UTC").env("RUST_BACKTRACE", "0");
        let child = command.stdin(Stdio::null()).stdout(printed.try_clone().unwrap()).stderr(printed).spawn();
        *self.child.borrow_mut() = child.unwrap();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.child.borrow_mut().try_wait().unwrap().is_some()
    }

    /// Waits for the end of the process, and returns its exit status; `None` after a signal.
    pub(super) fn end(&self) -> Option<i32> {
        wait_until("pen to end", || self.child.borrow_mut().try_wait().unwrap()).code()
    }

    pub(super) fn is_debian(&self) -> bool {
        self.by == Implementation::Debian
    }

    /// Returns the listen address.
    pub(super) fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// Returns the path of a file in the directory of the program.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.file(name)
    }

    /// Writes a file in the directory of the program.
    pub(super) fn write(&self, name: &str, text: &str) {
        self.directory.write(name, text);
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Returns the standard output and error of the process.
    pub(super) fn printed(&self) -> String {
        self.file("output")
    }

    pub(super) fn file(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.file(name)).unwrap_or_default()).into_owned()
    }

    /// Runs Debian's penctl with each word of the command as an argument.
    fn run_command(&self, command: &str) -> Output {
        let mut penctl = Command::new("/usr/bin/penctl");
        penctl.arg("./control").args(command.split(' ')).current_dir(self.directory.file("."));
        penctl.output().unwrap()
    }

    /// Returns the response to a command, with the errors of penctl.
    pub(super) fn response(&self, command: &str) -> String {
        let output = self.run_command(command);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if output.status.success() { text } else { format!("{text}(penctl failed)") }
    }

    /// Returns the response without the port and the pid, which always differ.
    pub(super) fn comparable_response(&self, command: &str) -> String {
        let text = self.response(command).replace(&format!(":{}", self.port), ":PORT");
        if command.starts_with("pid") { text.replace(&self.pid().to_string(), "PID") } else { text }
    }

    /// Runs commands that have no response.
    pub(super) fn run(&self, commands: &[&str]) {
        for command in commands {
            assert_eq!(self.response(command), "", "{:?}: {command}", self.by);
        }
    }

    pub(super) fn connect(&self) -> TcpStream {
        crate::harness::connect(self.port)
    }

    /// Connects from 127.0.0.`last`.
    pub(super) fn connect_from(&self, last: u8) -> TcpStream {
        connect_from(last, self.port)
    }

    /// Returns the name of the server that a new connection from 127.0.0.`last` reaches; empty if it reaches no
    /// server.
    pub(super) fn who_from(&self, last: u8) -> String {
        name(&mut self.connect_from(last))
    }

    pub(super) fn who(&self) -> String {
        self.who_from(1)
    }

    /// Returns the names of the servers that new connections reach. The connections are made one after the
    /// other.
    pub(super) fn servers_of(&self, clients: impl IntoIterator<Item = u8>) -> Vec<String> {
        clients.into_iter().map(|client| self.who_from(client)).collect()
    }

    /// Returns the name of the server that a new connection reaches; empty while pen does not listen.
    pub(super) fn try_who(&self) -> String {
        TcpStream::connect(local(self.port)).map(|mut stream| name(&mut stream)).unwrap_or_default()
    }

    /// Returns a field of a server's line in `servers`.
    pub(super) fn field(&self, server: usize, name: &str) -> String {
        let response = self.response("servers");
        let line = response.lines().nth(server).unwrap_or_else(|| panic!("no server {server}: {response}"));
        let mut words = line.split(' ').skip_while(|word| *word != name);
        words.nth(1).unwrap_or_else(|| panic!("no {name}: {line}")).to_owned()
    }

    /// Waits until no client is connected. Both programs notice the end of a client with a delay.
    pub(super) fn wait_idle(&self) {
        wait_until("all connections to end", || {
            let servers = self.response("servers");
            servers.lines().all(|line| line.contains(" conn 0 ")).then_some(())
        });
    }
}

pub(super) fn connect_from(last: u8, port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into()).unwrap();
    socket.connect(&local(port).into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Returns the name that the server sends first; empty for a connection that is closed or reset.
pub(super) fn name(stream: &mut TcpStream) -> String {
    line(stream).split(' ').next().unwrap().to_owned()
}

/// Runs a scenario with both programs, and checks that each result is the expected result.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "callers build the expected value in the call")]
pub(super) fn alike<T: PartialEq + std::fmt::Debug>(
    options: &str,
    servers: &[String],
    expected: T,
    scenario: impl Fn(&Pen) -> T,
) {
    for by in BOTH {
        let pen = Pen::start(by, options, servers);
        assert_eq!(scenario(&pen), expected, "{by:?}");
        assert!(!pen.has_ended(), "{by:?} ended: {}", pen.printed());
    }
}
