//! A running `evener pen`, and its control client penctl.

use crate::harness::{BINARY, Directory, wait_until};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// An instance in the foreground.
pub(crate) struct Pen {
    child: Child,
    directory: Directory,
}

impl Drop for Pen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("last lines of pen:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        } else {
            assert!(!log.contains("panicked at"), "a thread panicked: {log}");
        }
    }
}

impl Pen {
    /// Starts an instance in the foreground with a control socket, a log and additional arguments.
    pub(crate) fn run(arguments: &[&str]) -> Self {
        Self::run_in(Directory::new(), arguments)
    }

    pub(crate) fn run_in(directory: Directory, arguments: &[&str]) -> Self {
        let control = directory.file("ctl").display().to_string();
        // As root pen accepts control commands only if `-u` is given.
        let root = rustix::process::geteuid().is_root();
        let user: &[&str] = if root && !arguments.contains(&"-u") { &["-u", "root"] } else { &[] };
        let all: Vec<&str> = ["-C", &control].iter().chain(user).chain(arguments).copied().collect();
        Self::start(Command::new(BINARY), directory, &all)
    }

    /// Starts an instance in the foreground with the given arguments, without a control socket.
    pub(crate) fn start(mut command: Command, directory: Directory, arguments: &[&str]) -> Self {
        let log = fs::File::create(directory.file("log")).unwrap();
        let child = command
            .args(["pen", "-f", "-d", "--admin"])
            .arg(directory.file("admin.sock"))
            .args(std::env::var("EVENER_TEST_DRIVER").ok().iter().flat_map(|driver| ["--driver", driver]))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut pen = Self { child, directory };
        wait_until("pen to start", || {
            let ended = pen.child.try_wait().unwrap();
            assert!(ended.is_none(), "expected pen to keep running: {}", pen.log());
            pen.log().contains("admin_listening").then_some(())
        });
        pen
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

    /// Waits for a text in the log.
    pub(crate) fn expect_log(&self, text: &str) {
        wait_until(text, || self.log().contains(text).then_some(()));
    }

    /// Returns the path of a file in the directory of the instance.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.file(name)
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.pid());
    }

    /// Makes the instance read its file of commands again, and waits for the reload.
    pub(crate) fn hang_up(&self) {
        let count = || self.log_count(" reloaded changes=");
        let before = count();
        self.signal("HUP");
        wait_until("the reload", || (count() > before).then_some(()));
    }

    /// Runs penctl and returns its output.
    pub(crate) fn ctl(&self, command: &str) -> String {
        let output = penctl(&self.directory.file("ctl").display().to_string(), command);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a penctl command and checks that it prints nothing.
    pub(crate) fn order(&self, command: &str) {
        assert_eq!(self.ctl(command), "", "{command}");
    }

    /// Returns the number after `word` in the line of a server in the output of `servers`.
    pub(crate) fn of_server(&self, number: usize, word: &str) -> u64 {
        let servers = self.ctl("servers");
        let line = servers.lines().nth(number).unwrap_or_else(|| panic!("no server {number}: {servers}"));
        let mut words = line.split(' ').skip_while(|other| *other != word);
        words.nth(1).unwrap().parse().unwrap()
    }

    /// Waits for the process to end and returns the exit status, or `None` if a signal ended the process.
    pub(crate) fn end(&mut self) -> Option<i32> {
        wait_until("pen to end", || self.child.try_wait().unwrap()).code()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

/// `penctl ADDRESS COMMAND`.
pub(crate) fn penctl(address: &str, command: &str) -> Output {
    Command::new(BINARY).args(["penctl", address]).args(command.split(' ')).output().unwrap()
}

pub(crate) fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

/// Returns `true` if the process runs. The process need not be a child of the test, and a zombie does not run.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Runs an instance that is expected to fail, and returns its exit status and stderr.
pub(crate) fn refused(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new("timeout");
    let output = command.args(["20", BINARY, "pen"]).args(arguments).stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// An instance in the background with a pid file. It is killed at the end of the test.
pub(crate) struct Daemon {
    pid: u32,
    pid_file: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if runs(self.pid) && fs::read_to_string(&self.pid_file).is_ok_and(|text| text == self.pid.to_string())
        {
            signal("KILL", self.pid);
        }
    }
}

impl Daemon {
    /// Starts a daemon with `-p` and the given arguments, and checks that the command succeeds.
    pub(crate) fn start(directory: &Directory, arguments: &[&str]) -> Self {
        let output = Command::new(BINARY)
            .args(["pen", "-p"])
            .arg(directory.file("pid"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::adopt(directory)
    }

    /// Returns the daemon that the test started with a pid file in the directory.
    pub(crate) fn adopt(directory: &Directory) -> Self {
        let pid_file = directory.file("pid");
        let pid = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        Self { pid, pid_file }
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.pid);
    }

    /// Reads a link of the process in `/proc`, such as `cwd`.
    pub(crate) fn proc_link(&self, name: &str) -> PathBuf {
        fs::read_link(format!("/proc/{}/{name}", self.pid)).unwrap()
    }

    pub(crate) fn expect_end(&self) {
        wait_until("the daemon to end", || (!runs(self.pid)).then_some(()));
    }
}
