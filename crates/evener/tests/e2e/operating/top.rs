//! `evener top` on a real terminal: tmux runs it in a window of its own.

use crate::harness::{BINARY, Directory, Evener, Server, have, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A terminal of tmux. A server of tmux of its own runs it.
struct Terminal {
    directory: Directory,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the terminal:\n{}", self.text());
        }
        self.tmux(&["kill-server"]);
    }
}

impl Terminal {
    /// Runs a shell in a terminal of this size.
    fn start(width: u16, height: u16, environment: &str) -> Option<Self> {
        if !have("tmux") {
            return None;
        }
        let terminal = Self { directory: Directory::new() };
        let (width, height) = (width.to_string(), height.to_string());
        let shell = format!("exec env PS1='ready> ' {environment} LC_ALL=C.UTF-8 sh");
        terminal.tmux(&["-f", "/dev/null", "-u", "new-session", "-d", "-x", &width, "-y", &height, &shell]);
        terminal.expect("ready>");
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let socket = self.directory.file("tmux");
        let output = Command::new("tmux").arg("-S").arg(socket).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns what the terminal shows.
    fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Returns what the terminal shows, with its colours.
    fn coloured_text(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    fn expect(&self, text: &str) {
        wait_until(text, || self.text().contains(text).then_some(()));
    }

    fn expect_gone(&self, text: &str) {
        wait_until(&format!("no {text}"), || (!self.text().contains(text)).then_some(()));
    }

    /// Types keys by their names in tmux.
    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a command line.
    fn run(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press(&["Enter"]);
    }

    /// Runs `evener top` for the admin socket.
    fn run_top(&self, socket: &Path) {
        self.run(&format!("{BINARY} top --interval 100ms --socket {}", socket.display()));
        self.expect("NAME ");
    }

    /// Expects that the program has ended and that the terminal is as before: its earlier text is there, and the
    /// shell echoes what is typed.
    fn expect_restored(&self, status: &str) {
        self.expect_gone("NAME ");
        // The program reads what is typed until it has ended.
        wait_until("the end of the program", || self.children().is_empty().then_some(()));
        self.run("echo status $? $((6 * 7))");
        self.expect(&format!("status {status} 42"));
        assert!(self.text().contains("echo status"), "the terminal echoes: {}", self.text());
        assert_eq!(self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "0 1");
    }

    /// Returns the process IDs of the programs of the shell.
    fn children(&self) -> Vec<String> {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let path = format!("/proc/{0}/task/{0}/children", shell.trim());
        std::fs::read_to_string(path).unwrap().split_whitespace().map(str::to_owned).collect()
    }

    fn signal(&self, name: &str) {
        assert!(
            Command::new("kill").args([&format!("-{name}"), &self.children()[0]]).status().unwrap().success()
        );
    }
}

fn config(server: &Server) -> String {
    format!(
        "pool \"web\" {{ {{ \"127.0.0.1:{0}\", name = \"alpha\" }}, {{ \"127.0.0.1:{0}\", name = \"beta\" }} }}
         service \"www\" {{ listen = \"127.0.0.1:0\", pool = \"web\" }}",
        server.port
    )
}

fn socket(evener: &Evener) -> PathBuf {
    evener.admin_socket()
}

fn start(width: u16, height: u16, environment: &str) -> Option<(Terminal, Evener, Server)> {
    let terminal = Terminal::start(width, height, environment)?;
    let server = Server::start(drop);
    let evener = Evener::run(&config(&server));
    terminal.run_top(&socket(&evener));
    Some((terminal, evener, server))
}

#[test]
fn a_server_is_drained_by_a_key_and_made_ready_again() {
    let Some((terminal, evener, _server)) = start(80, 24, "") else { return };
    for text in ["www", "pool web", "alpha", "beta", "2/2 up", "EVENTS", "? q"] {
        terminal.expect(text);
    }
    terminal.press(&["Down", "Down", "j", "d"]);
    terminal.expect("drain web/beta? y: yes");
    terminal.press(&["n"]);
    terminal.expect_gone("drain web/beta?");
    assert_eq!(evener.server("beta")["state"], "ready");
    terminal.press(&["d", "y"]);
    terminal.expect("web/beta: drain");
    terminal.expect("1/2 up");
    terminal.expect("draining: no new clients");
    assert_eq!(evener.server("beta")["state"], "drain");
    terminal.press(&["k", "m"]);
    terminal.expect("its pool has no other usable server; take out for maintenance web/alpha?");
    terminal.press(&["Escape"]);
    // A key that follows at once would be taken for one with Alt.
    terminal.expect_gone("take out for maintenance");
    terminal.press(&["j", "r", "y"]);
    terminal.expect("2/2 up");
    assert_eq!(evener.server("beta")["state"], "ready");
    terminal.press(&["q"]);
    terminal.expect_restored("0");
}

#[test]
fn rows_are_filtered_and_described() {
    let Some((terminal, _evener, _server)) = start(80, 24, "") else { return };
    terminal.press(&["/"]);
    terminal.press(&["-l", "alph"]);
    terminal.press(&["Enter"]);
    terminal.expect("only rows with `alph`");
    terminal.expect_gone("beta");
    terminal.press(&["j", "Enter"]);
    terminal.expect("weight: 1, tier 1");
    terminal.press(&["Escape"]);
    terminal.expect("NAME ");
    terminal.press(&["?"]);
    terminal.expect("everything about the selected row");
    terminal.press(&["x", "s"]);
    terminal.expect("sorted: rate");
    terminal.press(&["p"]);
    terminal.expect("PAUSED");
    terminal.press(&["C-c"]);
    terminal.expect_restored("0");
}

#[test]
fn the_picture_follows_the_size_of_the_terminal() {
    let Some((terminal, _evener, _server)) = start(80, 24, "") else { return };
    assert!(!terminal.text().contains("OUT/S"));
    terminal.tmux(&["resize-window", "-x", "160", "-y", "50"]);
    terminal.expect("OUT/S");
    terminal.tmux(&["resize-window", "-x", "30", "-y", "5"]);
    terminal.expect_gone("OUT/S");
    terminal.expect("www");
    terminal.press(&["q"]);
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    terminal.expect_restored("0");
}

#[test]
fn an_instance_that_goes_away_and_comes_back_is_shown() {
    let Some((terminal, evener, server)) = start(80, 24, "") else { return };
    let directory = Directory::new();
    let at = directory.file("admin.sock");
    terminal.press(&["q"]);
    terminal.expect_restored("0");
    drop(evener);
    let first = Evener::run_at(&config(&server), &at);
    terminal.run_top(&at);
    drop(first);
    terminal.expect("NO INSTANCE for");
    terminal.expect("alpha");
    terminal.press(&["Down", "Down", "d"]);
    terminal.expect("the instance does not respond");
    let second = Evener::run_at(&config(&server), &at);
    terminal.expect("another instance responds now");
    terminal.expect(&format!("pid {}", second.pid()));
    terminal.expect_gone("NO INSTANCE");
    terminal.press(&["q"]);
    terminal.expect_restored("0");
}

#[test]
fn signals_restore_the_terminal() {
    for (signal, status) in [("TERM", "143"), ("HUP", "129"), ("INT", "130")] {
        let Some((terminal, _evener, _server)) = start(80, 24, "") else { return };
        terminal.signal(signal);
        terminal.expect_restored(status);
    }
}

#[test]
fn a_stopped_program_leaves_the_terminal_and_returns_to_it() {
    for stop in ["signal", "key"] {
        let Some((terminal, _evener, _server)) = start(80, 24, "") else { return };
        match stop {
            "signal" => terminal.signal("TSTP"),
            _ => terminal.press(&["C-z"]),
        }
        terminal.expect_gone("NAME ");
        terminal.run("echo stopped $((6 * 7)); fg");
        terminal.expect("NAME ");
        terminal.press(&["?"]);
        terminal.expect("everything about the selected row");
        terminal.press(&["x", "q"]);
        terminal.expect_restored("0");
        assert!(terminal.text().contains("stopped 42"), "{}", terminal.text());
    }
}

#[test]
fn colours_are_off_with_no_color() {
    // Colours of the terminal, by their numbers.
    let foreground =
        |text: &str| ["\x1b[33m", "\x1b[31m", "38;5;3m", "38;5;1m"].iter().any(|code| text.contains(code));
    for (environment, expected) in [("", true), ("NO_COLOR=1", false)] {
        let Some((terminal, evener, _server)) = start(80, 24, environment) else { return };
        assert!(evener.run_command(&["drain", "alpha"]).status.success());
        terminal.expect("drain 0s");
        assert_eq!(foreground(&terminal.coloured_text()), expected, "{environment}");
    }
}

#[test]
fn top_needs_a_terminal_and_an_instance() {
    let none = Command::new(BINARY).args(["top", "--socket", "/no/such.sock"]).output().unwrap();
    assert!(!none.status.success());
    assert!(String::from_utf8_lossy(&none.stderr).contains("top needs a terminal"));
    let Some(terminal) = Terminal::start(80, 24, "") else { return };
    terminal.run(&format!("{BINARY} top --socket /no/such.sock"));
    terminal.expect("no instance listens");
    terminal.expect_restored("1");
}
