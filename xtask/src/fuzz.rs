//! `cargo xtask fuzz`: builds the fuzz targets with the stable compiler, and runs each target for a while.
//!
//! cargo-fuzz is not needed: the stable compiler has LLVM's pass for coverage counters, too, and the core has
//! no unsafe code that a sanitizer could check.

use crate::{packages, shell};
use anyhow::{Context, bail};
use clap::Args;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Maximum time for a single input.
const INPUT_SECONDS_MAX: u64 = 10;
/// Time that a target may take in addition to `--seconds`, to read its corpus and to end.
const GRACE: Duration = Duration::from_secs(60);
/// Maximum number of lines that are shown of a failed target's output.
const LINES_MAX: usize = 60;

/// The flags of cargo-fuzz without a sanitizer: counters for each edge, and comparisons as hints.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The targets to run (default: all)
    targets: Vec<String>,
    /// Seconds that each target runs
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Targets that run at the same time (default: one a core)
    #[arg(long)]
    jobs: Option<usize>,
}

/// Builds and runs the targets.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if packages::find("c++").is_none() {
        bail!("libFuzzer is built from C++: install a compiler for it (Debian: apt-get install g++)");
    }
    let known = targets()?;
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target `{unknown}`; there are {}", known.join(", "));
    }
    let chosen = if options.targets.is_empty() { known } else { options.targets.clone() };
    let binaries = build()?;
    let jobs = options.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, Into::into));
    let (queue, failed) = (Mutex::new(VecDeque::from(chosen)), Mutex::new(Vec::new()));
    let next = || queue.lock().ok()?.pop_front();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let verdict = run_target(&target, &binaries.join(&target), options.seconds);
                    println!("{target}: {}", verdict.as_deref().unwrap_or("failed"));
                    if let (Err(error), Ok(mut failed)) = (verdict, failed.lock()) {
                        failed.push(format!("{target}: {error}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    if !failed.is_empty() {
        bail!("{}", failed.join("\n\n"));
    }
    Ok(())
}

fn folder() -> PathBuf {
    shell::root().join("fuzz")
}

/// Returns the names of all targets. Each target is a file.
fn targets() -> anyhow::Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(folder().join("fuzz_targets"))? {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}

/// Builds all targets and returns the directory of their binaries.
fn build() -> anyhow::Result<PathBuf> {
    let output =
        Command::new("rustc").args(["--version", "--verbose"]).current_dir(shell::root()).output()?;
    let version = String::from_utf8(output.stdout)?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names its host")?;
    let target = shell::root().join("target/fuzz");
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    // With `--target`, the flags do not apply to build scripts and macros, which do not link libFuzzer.
    cargo.current_dir(folder()).args(["build", "--release", "--locked", "--quiet", "--target", host]);
    cargo.arg("--target-dir").arg(&target).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    shell::run(&mut cargo)?;
    Ok(target.join(host).join("release"))
}

/// Runs a target over the committed inputs and over the inputs that earlier runs found. Returns libFuzzer's
/// last line.
fn run_target(target: &str, binary: &Path, seconds: u64) -> anyhow::Result<String> {
    let work = shell::root().join("target/fuzz");
    let (found, crashes) = (work.join("corpus").join(target), folder().join("artifacts").join(target));
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&crashes)?;
    let log = work.join(format!("{target}.log"));
    let mut command = Command::new(binary);
    // New inputs are written to the first directory.
    command.arg(&found).arg(folder().join("corpus").join(target));
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-artifact_prefix={}/", crashes.display()));
    let out = File::create(&log)?;
    command.stdout(out.try_clone()?).stderr(out);
    let status = wait(&mut command, Duration::from_secs(seconds) + GRACE)?;
    let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    verdict(&output, status.is_some_and(|status| status.success())).with_context(|| {
        format!(
            "{}\nto repeat it: {} INPUT, where INPUT is the file that is named above, in {}",
            last_lines(&output),
            binary.display(),
            crashes.display()
        )
    })
}

/// Waits for the end of a command and returns its status. Kills the command after `patience` and returns
/// `None`.
fn wait(command: &mut Command, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let mut child = command.spawn().context("the target cannot be run")?;
    let until = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the line of libFuzzer that ends a run without a failure, or an error if the run failed.
fn verdict(output: &str, has_succeeded: bool) -> anyhow::Result<String> {
    let done = output.lines().rev().find(|line| line.starts_with("Done "));
    match (done, has_succeeded) {
        (Some(line), true) => Ok(line.to_lowercase()),
        _ => bail!("the target failed or did not end"),
    }
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_has_inputs_and_each_directory_of_inputs_has_a_target() {
        let mut folders: Vec<String> = fs::read_dir(folder().join("corpus"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| fs::read_dir(entry.path()).unwrap().count() >= 10)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        folders.sort();
        assert_eq!(folders, targets().unwrap());
    }

    #[test]
    fn only_a_run_that_ends_by_itself_succeeds() {
        let check = |output: &str, has_succeeded: bool, expected: Option<&str>| {
            assert_eq!(verdict(output, has_succeeded).ok().as_deref(), expected, "{output}");
        };
        check("#2 INITED\nDone 7 runs in 2 second(s)\n", true, Some("done 7 runs in 2 second(s)"));
        check("#2 INITED\n", true, None);
        check("#2 INITED\nDone 7 runs in 2 second(s)\n==9== ERROR: libFuzzer: out-of-memory\n", false, None);
    }

    #[test]
    fn a_target_that_hangs_is_ended() {
        let wait = |script: &str, patience: u64| {
            wait(Command::new("sh").args(["-c", script]), Duration::from_millis(patience)).unwrap()
        };
        assert!(wait("exec sleep 1000", 100).is_none());
        assert_eq!(wait("exit 77", 60_000).and_then(|status| status.code()), Some(77));
    }
}
