//! A running `evener sbulb` on the director of the XDP network.

use crate::harness::xdp::XdpNetwork;
use crate::harness::{Directory, wait_until};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Time limit of a start: the kernel verifies the program, which takes seconds of CPU time.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// A running instance, which reports to a socket of the test in place of systemd.
pub(crate) struct Sbulb<'a> {
    network: &'a XdpNetwork,
    words: Vec<String>,
    child: Child,
    directory: Directory,
    notifications: UnixDatagram,
}

impl Drop for Sbulb<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of sbulb:\n{}", self.log());
        } else {
            assert!(!self.log().contains("panicked at"), "a thread panicked: {}", self.log());
        }
    }
}

impl<'a> Sbulb<'a> {
    /// Starts the program with these words, and waits until it is ready.
    pub(crate) fn start(network: &'a XdpNetwork, words: &str) -> Self {
        Self::start_with(network, Directory::new(), words)
    }

    /// Starts the program; `DIR` in the words is the directory.
    pub(crate) fn start_with(network: &'a XdpNetwork, directory: Directory, words: &str) -> Self {
        Self::start_command(network, directory, &format!("sbulb {words}"))
    }

    /// Starts another command of the program, which also reports to systemd.
    pub(crate) fn start_command(network: &'a XdpNetwork, directory: Directory, words: &str) -> Self {
        let words = words.replace("DIR", &directory.file("").display().to_string());
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let notifications = UnixDatagram::bind(directory.file("notify")).unwrap();
        notifications.set_read_timeout(Some(START_DEADLINE)).unwrap();
        let child = spawn(network, &directory, &words);
        let sbulb = Self { network, words, child, directory, notifications };
        sbulb.expect_notification("READY=1");
        sbulb
    }

    /// Ends the process with a signal, starts it again and waits until it is ready.
    pub(crate) fn restart(&mut self, signal: &str) {
        self.end(signal);
        self.start_again();
    }

    /// Starts the program again after its end, and waits until it is ready.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.network, &self.directory, &self.words);
        self.expect_notification("READY=1");
    }

    /// Ends the process with a signal and waits for its end.
    pub(crate) fn end(&mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        wait_until("sbulb to end", || self.child.try_wait().unwrap()).code()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    /// Waits for a message that contains the text, and returns it. Messages before it are skipped.
    pub(crate) fn expect_notification(&self, text: &str) -> String {
        let mut buffer = [0; 256];
        loop {
            let length = self.notifications.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("expected the message {text}: {error}; log:\n{}", self.log());
            });
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.contains(text) {
                return message;
            }
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.file("log")).unwrap_or_default()
    }

    /// Waits for a text in the log.
    pub(crate) fn expect_log(&self, text: &str) {
        wait_until(text, || self.log().contains(text).then_some(()));
    }

    /// Replaces the file with the servers, as an editor or a tool does.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let next = self.directory.write(&format!("{name}.next"), text);
        fs::rename(next, self.directory.file(name)).unwrap();
        self.directory.file(name)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.file(name)
    }
}

fn spawn(network: &XdpNetwork, directory: &Directory, words: &[String]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(directory.file("log")).unwrap();
    let mut command = network.evener_command();
    command.args(words).env("NOTIFY_SOCKET", directory.file("notify"));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}
