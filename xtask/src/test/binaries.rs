//! The test binaries that cargo builds. They run in the environment that `cargo test` gives them, but one by
//! one.

use super::outcome::{self, Outcome};
use crate::shell;
use anyhow::{Context, bail};
use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum time to read the rest of the output of a binary that has ended. A process that a test left running
/// can hold the pipe open for longer.
const REST_OF_OUTPUT: Duration = Duration::from_secs(5);
/// Interval of the checks whether a silent binary has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Number of end-to-end tests that run at the same time, for each core: tests wait four fifths of their time.
const TESTS_PER_CORE: usize = 2;

/// A test binary.
#[derive(Debug)]
pub(super) struct Binary {
    /// Name of cargo's target, such as `e2e`
    target: String,
    executable: PathBuf,
    /// Directory of the package, which is the working directory of the tests
    directory: PathBuf,
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.current_dir(shell::root());
    cargo
}

/// Builds every test of the workspace.
pub(super) fn build() -> anyhow::Result<Vec<Binary>> {
    let mut build = cargo();
    build.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    println!("> cargo test --workspace --no-run");
    let output = build.stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("the tests cannot be built: {}", output.status);
    }
    parse_messages(&String::from_utf8(output.stdout)?)
}

/// Runs the examples in documentation comments.
pub(super) fn run_documentation(filters: &[String]) -> anyhow::Result<()> {
    shell::run(cargo().args(["test", "--workspace", "--doc", "--quiet", "--"]).args(filters))
}

/// Returns the test binaries among cargo's messages, which are one JSON object per line.
fn parse_messages(messages: &str) -> anyhow::Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line)?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            continue;
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if let (Some(executable), Some(manifest), Some(target)) =
            (text(&message["executable"]), text(&message["manifest_path"]), text(&message["target"]["name"]))
        {
            let directory = Path::new(&manifest).parent().context("a manifest is in a directory")?;
            binaries.push(Binary { target, executable: executable.into(), directory: directory.to_owned() });
        }
    }
    Ok(binaries)
}

impl Binary {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command
    }

    /// Returns true if this is the binary of the end-to-end tests.
    pub(super) fn is_end_to_end(&self) -> bool {
        self.target == "e2e"
    }

    /// Returns the names of all tests of the binary.
    pub(super) fn list(&self) -> anyhow::Result<Vec<String>> {
        let output = self.command().args(["--list", "--format", "terse"]).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    /// Runs the tests that the filters choose. A failed test is an error.
    pub(super) fn run(&self, filters: &[String]) -> anyhow::Result<()> {
        shell::run(self.command().args(filters))
    }

    /// Runs end-to-end tests, prints their output, and returns the number of passed tests and the names of the
    /// failed tests. A binary that does not run to its end is an error.
    pub(super) fn run_for_outcome(
        &self,
        driver: Option<&str>,
        arguments: &[String],
    ) -> anyhow::Result<Outcome> {
        let mut command = self.command();
        command.args(arguments).stdout(Stdio::piped());
        // As root, all requirements of the tests can be installed, so a test that lacks one fails instead of
        // being skipped.
        if rustix::process::geteuid().is_root() {
            command.env("EVENER_TEST_STRICT", "1");
        }
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            let cores = thread::available_parallelism().map_or(1, Into::into);
            command.env("RUST_TEST_THREADS", (TESTS_PER_CORE * cores).to_string());
        }
        if let Some(driver) = driver {
            command.env("EVENER_TEST_DRIVER", driver);
        }
        let mut child =
            command.spawn().with_context(|| format!("{} cannot be run", self.executable.display()))?;
        let output = pass_on(child.stdout.take().context("the output is a pipe")?);
        let text = wait(&mut child, &output)?;
        let status = child.wait()?;
        outcome::parse(&text, status.code())
    }
}

/// Starts a thread that copies the output of a child to standard output and to the returned receiver.
fn pass_on(mut from: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut out = std::io::stdout();
            let _ = out.write_all(&buffer[..length]).and_then(|()| out.flush());
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Waits for the end of a child, and returns its output.
fn wait(child: &mut Child, output: &Receiver<Vec<u8>>) -> anyhow::Result<String> {
    let (mut text, mut until) = (Vec::new(), None);
    loop {
        if until.is_none() && child.try_wait()?.is_some() {
            until = Some(Instant::now() + REST_OF_OUTPUT);
        }
        let patience = until.map_or(POLL_INTERVAL, |until| until.saturating_duration_since(Instant::now()));
        match output.recv_timeout(patience) {
            Ok(part) if !patience.is_zero() => text.extend(part),
            Err(RecvTimeoutError::Timeout) if until.is_none() => {}
            _ => return Ok(String::from_utf8_lossy(&text).into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_found_among_messages() {
        let artifact = |target: &str, is_test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/{target}/Cargo.toml","executable":"/t/{target}-1","target":{{"name":"{target}"}},"profile":{{"test":{is_test}}}}}"#
            )
        };
        let messages = [
            artifact("evener", false),
            artifact("e2e", true),
            r#"{"reason":"build-finished","success":true}"#.into(),
            "something else".into(),
        ];
        let found = parse_messages(&messages.join("\n")).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|binary| (&*binary.target, binary.executable.to_str(), binary.directory.to_str()))
            .collect();
        assert_eq!(found, [("e2e", Some("/t/e2e-1"), Some("/w/e2e"))]);
    }

    #[test]
    fn the_output_is_complete_although_a_grandchild_holds_the_pipe_open() {
        let mut shell = Command::new("sh");
        // The shell ends immediately. The process that it started holds the pipe open until `hold` is dropped.
        shell.args(["-c", "exec 3<&0; echo before; (read line <&3; echo after) & exit 7"]);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let hold = child.stdin.take().unwrap();
        let output = pass_on(child.stdout.take().unwrap());
        assert_eq!(wait(&mut child, &output).unwrap(), "before\n");
        assert_eq!(child.wait().unwrap().code(), Some(7));
        drop(hold);
    }
}
