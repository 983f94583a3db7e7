//! The command guest of xtask: runs the tests of the IPVS client in a virtual machine, because few developers' kernels
//! have IPVS.

use crate::shell;
use crate::vm::{self, JobFile, Vm};
use anyhow::{Context, bail};
use clap::Args;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The tests are static, because the VM's libraries are older than this machine's may be.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// Time for the VM to boot and to run the tests. Emulation is slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// Tests of the whole program.
const PROGRAM_TESTS: &str = "crates/evener/tests/guest/ipvs.sh";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only tests whose names contain one of these
    filters: Vec<String>,
    /// Run this shell script instead of the tests
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Only the tests of the whole program
    #[arg(long)]
    program: bool,
}

/// Runs a script, or the tests.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if options.program {
        return test_program(&Vm::prepare()?);
    }
    let Some(script) = &options.script else { return run_tests(&options.filters) };
    let script = std::fs::read_to_string(script).with_context(|| script.display().to_string())?;
    print!("{}", Vm::prepare()?.run(&[], &script, PATIENCE)?);
    Ok(())
}

/// Builds the tests, boots the VM and runs the tests in it. A skipped test is a failure.
pub(crate) fn run_tests(filters: &[String]) -> anyhow::Result<()> {
    let machine = Vm::prepare()?;
    let (mut files, evener) = vm::host_program(&build_evener()?)?;
    files.push(JobFile::new("kernel-tests", build()?));
    let filters = filters.join(" ");
    // Each test has its own network namespace, but the kernel loads modules for all: one test at a time.
    let script = format!(
        "export EVENER_TEST_STRICT=1 RUST_BACKTRACE=1\nmodprobe ip_vs\n\
         {evener} ipvs list && ipvsadm -A -t 10.0.0.1:80 -s wrr -p 60 && ip link set lo up && \
         ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 3 && {evener} ipvs list && {evener} ipvs stats && \
         {evener} ipvs save && ipvsadm -C && ./kernel-tests --test-threads=1 --nocapture {filters}"
    );
    let output = machine.run(&files, &script, PATIENCE)?;
    print!("{output}");
    let saved = "-A -t 10.0.0.1:80 -s wrr -p 60\n-a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 3\n";
    if !output.contains(saved) {
        bail!("`evener ipvs save` does not print what ipvsadm added:\n{saved}");
    }
    if let Some(line) = output.lines().find(|line| line.contains("skipped:")) {
        bail!("a test was skipped in the VM: {line}");
    }
    if !output.lines().any(|line| line.starts_with("test result: ok.") && !line.contains(" 0 passed")) {
        bail!("no test ran in the VM");
    }
    if filters.trim().is_empty() { test_program(&machine) } else { Ok(()) }
}

/// Tests the whole program with the kernel of the VM. Its script prints a line for each thing that was checked.
fn test_program(machine: &Vm) -> anyhow::Result<()> {
    let (mut files, evener) = vm::host_program(&build_evener()?)?;
    files.push(JobFile::new("ipvs.sh", shell::root().join(PROGRAM_TESTS)));
    let output = machine.run(&files, &format!("EVENER='{evener}' sh ./ipvs.sh"), PATIENCE)?;
    print!("{output}");
    Ok(())
}

/// Builds the program without debugging symbols, which would fill the VM's memory, and returns its path.
fn build_evener() -> anyhow::Result<String> {
    let root = shell::root();
    shell::run(Command::new("cargo").current_dir(&root).args(["build", "--locked", "--package", "evener"]))?;
    let stripped = root.join("target/vm/evener");
    shell::run(Command::new("strip").arg("-o").arg(&stripped).arg(root.join("target/debug/evener")))?;
    Ok(stripped.display().to_string())
}

/// Builds the tests of the kernel and returns the path of the program.
fn build() -> anyhow::Result<PathBuf> {
    shell::run(Command::new("rustup").args(["target", "add", TARGET]))?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(shell::root()).args(["test", "--no-run", "--locked", "--package", "evener-ipvs"]);
    cargo.args(["--test", "kernel", "--target", TARGET, "--message-format", "json"]);
    cargo.stderr(std::process::Stdio::inherit());
    let output = cargo.output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("the tests of the kernel cannot be built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut programs = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["target"]["name"] == "kernel" && message["profile"]["test"] == true;
        is_test.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    programs.next_back().context("cargo names no test program")
}
