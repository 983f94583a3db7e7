//! `cargo xtask bench scripts`: CPU time of 10 000 checks a second by a trivial function, and how late a check is
//! while other functions run in endless loops.

use super::cpu::Group;
use super::instance::{Instance, binary};
use crate::shell;
use anyhow::{Context, ensure};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Number of servers. Each is checked every 100 ms.
const SERVERS: u32 = 1000;
/// Time until all servers are checked at their interval.
const WARM_UP: Duration = Duration::from_secs(3);
/// Interval of the check whose delay is measured.
const CHECK_INTERVAL_MS: u32 = 20;
/// Beginning of the messages with the largest delay so far, in seconds.
const LATE: &str = "largest delay: ";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The binary to measure (default: build target/dist/evener)
    #[arg(long)]
    binary: Option<String>,
}

/// Measures instances with and without checks in turn, and prints their use of a core.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let binary = binary(options.binary.as_ref())?;
    let length = Duration::from_secs(options.seconds);
    for (name, check) in [
        ("no checks", "check = false"),
        ("functions", "check = check.script { every = \"100ms\", run = function() return true end }"),
    ] {
        let (checks, share) = measure(&binary, check, length).with_context(|| name.to_owned())?;
        println!("{name:<10} {checks:>8.0} checks/s {:>6.1} % of a core", share * 100.0);
    }
    println!("\nA check every {CHECK_INTERVAL_MS} ms, beside checks whose functions do not end:");
    for (name, others, body) in [
        ("none", 0, "return true"),
        ("a loop", 1, "while true do end"),
        ("a pattern that explodes", 1, r#"string.find(("a"):rep(60), ("a*"):rep(15) .. "b")"#),
        ("long searches", 1, r#"local s = ("a"):rep(1000000) while true do s:find("b") end"#),
        ("a loop in a comparison", 1, "table.sort({ 3, 2, 1 }, function() while true do end end)"),
        ("50 loops", 50, "while true do end"),
    ] {
        let late = largest_delay(&binary, others, body, length).with_context(|| name.to_owned())?;
        println!("{name:<24} at most {late:>6.1} ms late");
    }
    Ok(())
}

/// Writes the configuration, and starts an instance with it.
fn start(binary: &str, name: &str, config: &str, stderr: Stdio) -> anyhow::Result<(Instance, PathBuf)> {
    let directory = shell::root().join("target/bench-scripts");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join(format!("{name}.lua"));
    std::fs::write(&file, config)?;
    let admin = directory.join("admin.sock");
    let child = Command::new(binary)
        .arg("run")
        .arg(&file)
        .arg("--admin")
        .arg(&admin)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()?;
    Ok((Instance::new(child), admin))
}

/// Returns by how many milliseconds the latest check came too late, while checks of `others` servers run `body`.
fn largest_delay(binary: &str, others: u32, body: &str, length: Duration) -> anyhow::Result<f64> {
    let mut servers = String::new();
    for at in 0..others {
        writeln!(
            servers,
            "server \"10.0.{at}.1:80\" {{ check = check.script {{ every = \"10ms\", timeout = \"60s\", run = function() {body} end }} }},"
        )?;
    }
    let config = format!(
        "local last, worst, began
         local function measure()
           local now = time.monotonic()
           began = began or now
           if last and now > began + 1 then worst = math.max(worst or 0, now - last - {CHECK_INTERVAL_MS} / 1000) end
           last = now
           return true
         end
         every(\"1s\", function() log.info(string.format(\"{LATE}%.6f\", worst or 0)) end)
         service \"s\" {{ listen = \"127.0.0.1:0\",
           server \"10.1.0.1:80\" {{ check = check.script {{ every = \"{CHECK_INTERVAL_MS}ms\", jitter = 0, run = measure }} }},
           {servers} }}"
    );
    let log = shell::root().join("target/bench-scripts.log");
    let (instance, _) = start(binary, "delay", &config, std::fs::File::create(&log)?.into())?;
    std::thread::sleep(WARM_UP + length);
    drop(instance);
    let text = std::fs::read_to_string(&log)?;
    let last = text.rsplit_once(LATE).context("no check was measured")?.1;
    let number: String = last.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Ok(number.parse::<f64>()? * 1000.0)
}

/// Returns the number of checks a second and the CPU time per second.
fn measure(binary: &str, check: &str, length: Duration) -> anyhow::Result<(f64, f64)> {
    let mut servers = String::new();
    for at in 0..SERVERS {
        write!(servers, "\"10.{}.{}.1:80\", ", at / 256, at % 256)?;
    }
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:0\", {check}, {servers} }}");
    let (instance, admin) = start(binary, "checks", &config, Stdio::null())?;
    std::thread::sleep(WARM_UP);
    let group = Group::of(instance.pid());
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
