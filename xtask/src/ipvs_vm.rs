//! `cargo xtask guest`: runs the tests of the IPVS client in a virtual machine, because few developers' kernels
//! have IPVS.

use crate::shell;
use crate::vm::{JobFile, Vm, host_file};
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

/// Builds the tests, boots the VM and runs the tests in it. A skipped test is a failure.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let machine = Vm::prepare()?;
    if options.program {
        return test_program(&machine);
    }
    if let Some(script) = &options.script {
        print!("{}", machine.run(&[], &std::fs::read_to_string(script)?, PATIENCE)?);
        return Ok(());
    }
    let files = [JobFile::new("kernel-tests", build()?)];
    let filters = options.filters.join(" ");
    // Each test has its own network namespace, but the modules are everybody's: one test at a time.
    let script = format!(
        "export EVENER_TEST_STRICT=1 RUST_BACKTRACE=1\nmodprobe ip_vs\n\
         ./kernel-tests --test-threads=1 --nocapture {filters}"
    );
    let output = machine.run(&files, &script, PATIENCE)?;
    print!("{output}");
    if let Some(line) = output.lines().find(|line| line.contains("skipped:")) {
        bail!("a test was skipped in the VM: {line}");
    }
    if !output.lines().any(|line| line.starts_with("test result: ok.") && !line.contains(" 0 passed")) {
        bail!("no test ran in the VM");
    }
    if options.filters.is_empty() { test_program(&machine) } else { Ok(()) }
}

/// Tests the whole program with the kernel of the VM. Its script prints a line for each thing that was checked.
fn test_program(machine: &Vm) -> anyhow::Result<()> {
    shell::run(
        Command::new("cargo").current_dir(shell::root()).args(["build", "--locked", "--bin", "evener"]),
    )?;
    let (built, stripped) =
        (shell::root().join("target/debug/evener"), shell::root().join("target/evener-vm"));
    // Without symbols the program fits the memory of the VM.
    shell::run(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
    let (mut files, evener) = host_file("evener", &stripped)?;
    files.push(JobFile::new("ipvs.sh", shell::root().join(PROGRAM_TESTS)));
    let output = machine.run(&files, &format!("EVENER='{evener}' sh ./ipvs.sh"), PATIENCE)?;
    print!("{output}");
    Ok(())
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
    let programs = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["target"]["name"] == "kernel" && message["profile"]["test"] == true;
        is_test.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    programs.last().context("cargo names no test program")
}
