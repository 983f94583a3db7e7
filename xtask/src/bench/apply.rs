//! `cargo xtask bench apply`: times of an instance with 10 000 servers in 100 services: reading the file, a plan, and
//! the apply of a change to one server, each as a command that a person would run.

use super::instance::{Instance, binary};
use crate::shell;
use anyhow::{Context, ensure};
use clap::Args;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SERVICES: u32 = 100;
const SERVERS_OF_EACH: u32 = 100;
/// Time until the instance must have started.
const START_MAX: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Number of applies and plans
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// The binary to measure (default: build target/dist/evener)
    #[arg(long)]
    binary: Option<String>,
}

/// Returns a configuration in which one server has this weight.
fn configuration(weight: u32) -> anyhow::Result<String> {
    let mut text = String::new();
    for service in 0..SERVICES {
        writeln!(
            text,
            "service \"s{service}\" {{ listen = \"127.0.0.1:0\", policy = \"hash\", sticky = true,"
        )?;
        for server in 0..SERVERS_OF_EACH {
            let weight = if (service, server) == (7, 3) { weight } else { 1 };
            writeln!(text, "  {{ \"127.{}.{server}.1:80\", weight = {weight} }},", 20 + service)?;
        }
        text += "}\n";
    }
    Ok(text)
}

/// Runs a command until it ends, and returns its time.
fn timed(command: &mut Command, statuses: &[i32]) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let output = command.output()?;
    let took = begun.elapsed();
    let is_expected = output.status.code().is_some_and(|status| statuses.contains(&status));
    ensure!(is_expected, "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

/// Prints the median and the range of times.
fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    let (least, middle, most) = (ms(times.first()), ms(times.get(times.len() / 2)), ms(times.last()));
    println!("{what:<34} {middle:>7.1} ms ({least:.1}-{most:.1})");
}

/// Measures the commands in turn, and prints their times and the memory of the instance.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let binary = binary(options.binary.as_ref())?;
    let directory = shell::root().join("target/bench-apply");
    std::fs::create_dir_all(&directory)?;
    let (file, admin) = (directory.join("evener.lua"), directory.join("admin.sock"));
    std::fs::write(&file, configuration(1)?)?;
    let begun = Instant::now();
    let child = Command::new(&binary)
        .arg("run")
        .arg(&file)
        .arg("--admin")
        .arg(&admin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut instance = Instance::new(child);
    let command = |words: &[&str], file: Option<&Path>| {
        let mut command = Command::new(&binary);
        command.args(words).args(file).arg("--socket").arg(&admin);
        command
    };
    while !command(&["metrics"], None).output()?.status.success() {
        ensure!(begun.elapsed() < START_MAX, "the instance did not start");
        ensure!(!instance.has_ended()?, "the instance ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("{:<34} {:>7.1} ms", "start", begun.elapsed().as_secs_f64() * 1000.0);
    let files = [directory.join("one.lua"), directory.join("two.lua")];
    for (file, weight) in files.iter().zip([2, 3]) {
        std::fs::write(file, configuration(weight)?)?;
    }
    let (mut check, mut plan, mut apply, mut limited) = (vec![], vec![], vec![], vec![]);
    let mut metrics = vec![];
    for _ in 0..options.rounds {
        let mut wanted = Command::new(&binary);
        check.push(timed(wanted.arg("check").arg(&files[0]), &[0])?);
        plan.push(timed(&mut command(&["plan"], Some(&files[0])), &[0, 2])?);
        apply.push(timed(&mut command(&["apply"], Some(&files[0])), &[0])?);
        limited.push(timed(&mut command(&["apply", "--max-moved", "1%"], Some(&files[1])), &[0])?);
        metrics.push(timed(&mut command(&["metrics"], None), &[0])?);
    }
    print("check (reads the file, no instance)", check);
    print("plan", plan);
    print("apply", apply);
    print("apply --max-moved 1%", limited);
    print("metrics", metrics);
    let status = std::fs::read_to_string(format!("/proc/{}/status", instance.pid()))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    println!("{:<34} {}", "resident memory", memory.trim());
    Ok(())
}
