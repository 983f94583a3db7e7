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
const PATIENCE: Duration = Duration::from_secs(900);

/// Scripts with the whole program.
const SCRIPTS: &str = "crates/evener/tests/guest";
/// Tests of the whole program.
const PROGRAM_TESTS: [&str; 5] = ["ipvs", "table", "traffic", "reuse", "script"];
/// Measurements of the whole program.
const MEASUREMENTS: [&str; 2] = ["load", "react"];

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
    /// Measure an optimised program: CPU time, and reaction times beside keepalived
    #[arg(long)]
    timing: bool,
    /// With --program or --timing, only this script
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// A build of the program.
#[derive(Clone, Copy)]
enum Build {
    /// For tests
    Debug,
    /// For measurements
    Optimised,
}

/// Runs a script, or the tests.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let only =
        |names: &'static [&'static str]| options.only.as_deref().map_or(names.to_vec(), |only| vec![only]);
    if options.program {
        return run_scripts(&Vm::prepare()?, &only(&PROGRAM_TESTS), Build::Debug);
    }
    if options.timing {
        return run_scripts(&Vm::prepare()?, &only(&MEASUREMENTS), Build::Optimised);
    }
    let Some(script) = &options.script else { return run_tests(&options.filters) };
    let script = std::fs::read_to_string(script).with_context(|| script.display().to_string())?;
    print!("{}", Vm::prepare()?.run(&[], &script, PATIENCE)?);
    Ok(())
}

/// Builds the tests, boots the VM and runs the tests in it. A skipped test is a failure.
pub(crate) fn run_tests(filters: &[String]) -> anyhow::Result<()> {
    let machine = Vm::prepare()?;
    let (mut files, evener) = vm::host_program(&build_evener(Build::Debug)?)?;
    let tests = build_ipvs("kernel", &["test", "--no-run", "--test", "kernel"])?;
    files.push(JobFile::new("kernel-tests", tests));
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
    if !filters.trim().is_empty() {
        return Ok(());
    }
    run_scripts(&machine, &PROGRAM_TESTS, Build::Debug)
}

/// Runs scripts with the whole program and the kernel of the VM. A script prints a line for each thing that was checked, and
/// has its own network namespace.
fn run_scripts(machine: &Vm, names: &[&str], build: Build) -> anyhow::Result<()> {
    let (mut files, evener) = vm::host_program(&build_evener(build)?)?;
    files.push(JobFile::new("peer", build_ipvs("peer", &["build", "--example", "peer"])?));
    for name in ["lib"].iter().chain(names) {
        let name = format!("{name}.sh");
        files.push(JobFile::new(&name, shell::root().join(SCRIPTS).join(&name)));
    }
    let script = format!(
        "export EVENER='{evener}' RUST_BACKTRACE=1; status=0\n\
         for name in {}; do echo \"== $name\"; unshare -n sh ./$name.sh || status=1; done; exit $status\n",
        names.join(" ")
    );
    print!("{}", machine.run(&files, &script, PATIENCE)?);
    Ok(())
}

/// Builds the program without debugging symbols, which would fill the VM's memory, and returns its path.
fn build_evener(build: Build) -> anyhow::Result<String> {
    let root = shell::root();
    let (profile, directory) = match build {
        Build::Debug => ("dev", "debug"),
        Build::Optimised => ("dist", "dist"),
    };
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&root).args(["build", "--locked", "--package", "evener", "--profile"]).arg(profile);
    shell::run(&mut cargo)?;
    let stripped = root.join("target/vm/evener");
    let program = root.join("target").join(directory).join("evener");
    shell::run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    Ok(stripped.display().to_string())
}

/// Builds a test or an example of the client as a static program, and returns its path.
fn build_ipvs(name: &str, words: &[&str]) -> anyhow::Result<PathBuf> {
    shell::run(Command::new("rustup").args(["target", "add", TARGET]))?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(shell::root()).args(words).args(["--locked", "--package", "evener-ipvs"]);
    cargo.args(["--target", TARGET, "--message-format", "json"]);
    cargo.stderr(std::process::Stdio::inherit());
    let output = cargo.output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("`{name}` of the client cannot be built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut programs = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_wanted = message["target"]["name"] == name;
        is_wanted.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    programs.next_back().with_context(|| format!("cargo names no program `{name}`"))
}
