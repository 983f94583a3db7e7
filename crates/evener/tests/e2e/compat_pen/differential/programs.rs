//! Debian's pen or ours, started by the same command line in a directory of its own, and asked by Debian's penctl.

use crate::harness::{BINARY, DEADLINE, Directory, line, local, reserved_port, wait_until};
use socket2::{Domain, Socket, Type};
use std::cell::RefCell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// Debian's program, or ours of the same name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum By {
    Debian,
    Us,
}

pub(super) const BOTH: [By; 2] = [By::Debian, By::Us];

/// What is said of a program that ended instead of answering.
pub(super) const ENDED: &str = "(it ended)";

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A running pen with a control socket.
pub(super) struct Pen {
    pub(super) by: By,
    pub(super) port: u16,
    pub(super) directory: Directory,
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
            eprintln!("what {:?} said:\n{}", self.by, self.printed());
        } else if self.by == By::Us {
            assert!(!self.printed().contains("panicked at"), "{}", self.printed());
        }
    }
}

/// `pen` by that name: what it is called by makes it pen.
pub(super) fn program(by: By, directory: &Directory) -> PathBuf {
    if by == By::Debian {
        return "/usr/bin/pen".into();
    }
    let link = directory.file("pen");
    if !link.exists() {
        std::os::unix::fs::symlink(BINARY, &link).unwrap();
    }
    link
}

impl Pen {
    /// `pen -f [-u root] -C control OPTIONS 127.0.0.1:PORT SERVER...` in a directory of its own.
    pub(super) fn start(by: By, options: &str, servers: &[String]) -> Self {
        Self::prepared(by, Directory::new(), options, None, servers)
    }

    /// Listens where it is told: an address with this port, or a path.
    pub(super) fn listening(by: By, options: &str, port: u16, listen: &str, servers: &[String]) -> Self {
        Self::prepared(by, Directory::new(), options, Some((port, listen)), servers)
    }

    /// In a directory that has something in it already.
    pub(super) fn prepared(
        by: By,
        directory: Directory,
        options: &str,
        listen: Option<(u16, &str)>,
        servers: &[String],
    ) -> Self {
        let pen = Self::new(by, directory, options, listen, servers);
        pen.start_anew();
        pen
    }

    fn new(
        by: By,
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

    /// Starts it, after its end too.
    pub(super) fn start_anew(&self) {
        self.spawn(true);
        wait_until("pen to start", || {
            assert!(!self.has_ended(), "{:?} ended at once: {}", self.by, self.printed());
            self.run_command("pid").status.success().then_some(())
        });
    }

    /// One that has its control port elsewhere, or none.
    pub(super) fn unasked(by: By, options: &str, servers: &[String]) -> Self {
        let pen = Self::new(by, Directory::new(), options, None, servers);
        pen.spawn(true);
        pen
    }

    /// One that was not told to be root.
    pub(super) fn as_root(by: By, options: &str, servers: &[String]) -> Self {
        let pen = Self::new(by, Directory::new(), options, None, servers);
        pen.spawn(false);
        pen
    }

    fn spawn(&self, may_be_root: bool) {
        let _ = self.child.borrow_mut().wait();
        let printed = fs::File::create(self.directory.file("said")).unwrap();
        // Debian's dies of some commands: no cores of it.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c 0; exec \"$0\" \"$@\""]).arg(program(self.by, &self.directory));
        if self.by == By::Us {
            let driver = std::env::var("EVENER_TEST_DRIVER").ok();
            command.args(driver.iter().flat_map(|driver| ["--driver", driver]));
        }
        command
            .args(["-f", "-C", "./control"])
            .args((may_be_root && is_root()).then_some(["-u", "root"]).iter().flatten());
        command.args(&self.options).arg(&self.listen).args(&self.servers);
        command.current_dir(self.directory.file(".")).env("TZ", "UTC").env("RUST_BACKTRACE", "0");
        let child = command.stdin(Stdio::null()).stdout(printed.try_clone().unwrap()).stderr(printed).spawn();
        *self.child.borrow_mut() = child.unwrap();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.child.borrow_mut().try_wait().unwrap().is_some()
    }

    /// Waits for its end; the exit status, if it was not a signal.
    pub(super) fn end(&self) -> Option<i32> {
        wait_until("pen to end", || self.child.borrow_mut().try_wait().unwrap()).code()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    pub(super) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Everything on its standard output and error.
    pub(super) fn printed(&self) -> String {
        self.file("said")
    }

    pub(super) fn file(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.file(name)).unwrap_or_default()).into_owned()
    }

    /// Debian's penctl, as a script calls it.
    fn run_command(&self, command: &str) -> Output {
        let mut penctl = Command::new("/usr/bin/penctl");
        penctl.arg("./control").args(command.split(' ')).current_dir(self.directory.file("."));
        penctl.output().unwrap()
    }

    /// The answer to a command, with what penctl complains of.
    pub(super) fn ask(&self, command: &str) -> String {
        let output = self.run_command(command);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if output.status.success() { text } else { format!("{text}(penctl failed)") }
    }

    /// The same without what must differ: ports and pids of the two.
    pub(super) fn ask_alike(&self, command: &str) -> String {
        let text = self.ask(command).replace(&format!(":{}", self.port), ":PORT");
        if command.starts_with("pid") { text.replace(&self.pid().to_string(), "PID") } else { text }
    }

    /// Asks several things that have no answer.
    pub(super) fn tell(&self, commands: &[&str]) {
        for command in commands {
            assert_eq!(self.ask(command), "", "{:?}: {command}", self.by);
        }
    }

    /// A connection from an address of the loopback interface.
    pub(super) fn connect_from(&self, last: u8) -> TcpStream {
        connect_from(last, self.port)
    }

    /// Who serves a new connection from there; nobody is empty.
    pub(super) fn who_from(&self, last: u8) -> String {
        name(&mut self.connect_from(last))
    }

    pub(super) fn who(&self) -> String {
        self.who_from(1)
    }

    /// Who serves these clients, one after the other.
    pub(super) fn whos(&self, clients: impl IntoIterator<Item = u8>) -> Vec<String> {
        clients.into_iter().map(|client| self.who_from(client)).collect()
    }

    /// The same where it may not listen yet.
    pub(super) fn try_who(&self) -> String {
        TcpStream::connect(local(self.port)).map(|mut stream| name(&mut stream)).unwrap_or_default()
    }

    /// A field of a server's line in `servers`, by its name.
    pub(super) fn field(&self, server: usize, name: &str) -> String {
        let response = self.ask("servers");
        let line = response.lines().nth(server).unwrap_or_else(|| panic!("no server {server}: {response}"));
        let mut words = line.split(' ').skip_while(|word| *word != name);
        words.nth(1).unwrap_or_else(|| panic!("no {name}: {line}")).to_owned()
    }

    /// Waits until nobody is connected: both programs notice a client's end a moment later.
    pub(super) fn wait_idle(&self) {
        wait_until("all connections to end", || {
            let servers = self.ask("servers");
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

/// The name that the server says first; a connection that is closed or reset has none.
pub(super) fn name(stream: &mut TcpStream) -> String {
    line(stream).split(' ').next().unwrap().to_owned()
}

/// Runs the same with both programs, which must come to the same end: this one.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "what is expected is mostly made on the spot")]
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
