//! `cargo xtask bench scripts`: CPU time of 10 000 checks a second by a trivial function.

use super::cpu::Group;
use crate::shell;
use anyhow::{Context, ensure};
use clap::Args;
use std::fmt::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Number of servers. Each is checked every 100 ms.
const SERVERS: u32 = 1000;
/// Time until all servers are checked at their interval.
const WARM_UP: Duration = Duration::from_secs(3);

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The binary to measure (default: build target/dist/evener)
    #[arg(long)]
    binary: Option<String>,
}

/// Ends the instance when it is dropped.
struct Instance(Child);

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures instances with and without checks in turn, and prints their use of a core.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
            shell::run(Command::new(cargo).current_dir(shell::root()).args([
                "build",
                "--profile",
                "dist",
                "-p",
                "evener",
            ]))?;
            shell::root().join("target/dist/evener").display().to_string()
        }
    };
    let length = Duration::from_secs(options.seconds);
    for (name, check) in [
        ("no checks", "check = false"),
        ("functions", "check = check.script { every = \"100ms\", run = function() return true end }"),
    ] {
        let (checks, share) = measure(&binary, check, length).with_context(|| name.to_owned())?;
        println!("{name:<10} {checks:>8.0} checks/s {:>6.1} % of a core", share * 100.0);
    }
    Ok(())
}

/// Returns the number of checks a second and the CPU time per second.
fn measure(binary: &str, check: &str, length: Duration) -> anyhow::Result<(f64, f64)> {
    let directory = shell::root().join("target/bench-scripts");
    std::fs::create_dir_all(&directory)?;
    let mut servers = String::new();
    for at in 0..SERVERS {
        write!(servers, "\"10.{}.{}.1:80\", ", at / 256, at % 256)?;
    }
    let config = directory.join("evener.lua");
    std::fs::write(&config, format!("service \"s\" {{ listen = \"127.0.0.1:0\", {check}, {servers} }}"))?;
    let admin = directory.join("admin.sock");
    let child = Command::new(binary)
        .arg("run")
        .arg(&config)
        .arg("--admin")
        .arg(&admin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let instance = Instance(child);
    std::thread::sleep(WARM_UP);
    let group = Group::of(instance.0.id());
    let sample = || anyhow::Ok((checks(binary, &admin)?, group.seconds(), Instant::now()));
    let (checks_before, cpu_before, began) = sample()?;
    std::thread::sleep(length);
    let cpu = group.seconds() - cpu_before;
    let elapsed = began.elapsed().as_secs_f64();
    let made = checks(binary, &admin)? - checks_before;
    Ok((made / elapsed, cpu / elapsed))
}

/// Returns the number of checks that passed.
fn checks(binary: &str, admin: &std::path::Path) -> anyhow::Result<f64> {
    let output = Command::new(binary).args(["status", "--json", "--socket"]).arg(admin).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let servers = status["pools"][0]["servers"].as_array().context("the status has no servers")?;
    Ok(servers.iter().filter_map(|server| server["counters"]["checks"]["passed"].as_f64()).sum())
}
