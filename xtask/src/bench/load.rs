//! The load of a case: wrk, h2load or dnsperf for a time, and the CPU time of proxy, client and backend.

use super::cpu::Group;
use super::peers::{Case, Ground, Running};
use anyhow::{Context, bail};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Result of one run of one proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// CPU time of the proxy divided by the CPU time of client and backend.
    pub(super) norm: f64,
    /// Requests or responses per second.
    pub(super) rate: f64,
    /// CPU time of the proxy per request, in microseconds.
    pub(super) micros: f64,
    /// CPU time of proxy, client and backend per request, in microseconds.
    total: f64,
}

impl Sample {
    /// Returns the CPU time that the proxy adds to a request, in microseconds, if client and backend alone take `direct`.
    pub(super) fn added(&self, direct: f64) -> f64 {
        self.total - direct
    }
}

/// The backend of a case, which the client reaches without a proxy.
fn backend(case: Case, ground: &Ground) -> anyhow::Result<&Running> {
    let backend = if case.is_dns() { &ground.dns } else { &ground.web };
    backend.as_ref().context("a backend")
}

/// Sends the load of a case to the backend itself for a time, in clear, and returns the CPU time of client and backend
/// per request, in microseconds.
pub(super) fn direct(case: Case, ground: &Ground, length: Duration) -> anyhow::Result<f64> {
    let backend = backend(case, ground)?;
    let mut client = client(case, ground, (backend.port, "http"), length);
    if case == Case::Http2 {
        client.arg("--h1");
    }
    let before = backend.group.seconds();
    let child = client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (output, client_seconds) = wait(child)?;
    let done = requests(case, &output).with_context(|| format!("output of the client:\n{output}"))?;
    Ok((backend.group.seconds() - before + client_seconds) * 1e6 / done)
}

/// Sends the load of a case through a proxy for a time, and returns the measurements.
pub(super) fn sample(
    case: Case,
    ground: &Ground,
    proxy: &Running,
    length: Duration,
) -> anyhow::Result<Sample> {
    let backend = &backend(case, ground)?.group;
    let mut client = client(case, ground, (proxy.port, case.scheme()), length);
    let (proxy_before, backend_before) = (proxy.group.seconds(), backend.seconds());
    let child = client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (output, client_seconds) = wait(child)?;
    let used = proxy.group.seconds() - proxy_before;
    let others = backend.seconds() - backend_before + client_seconds;
    let done = requests(case, &output).with_context(|| format!("output of the client:\n{output}"))?;
    let (micros, total) = (used * 1e6 / done, (used + others) * 1e6 / done);
    Ok(Sample { norm: used / others, rate: done / length.as_secs_f64(), micros, total })
}

fn client(case: Case, ground: &Ground, (port, scheme): (u16, &str), length: Duration) -> Command {
    let seconds = length.as_secs().to_string();
    if case.is_dns() {
        let mut command = Command::new("dnsperf");
        command.args([
            "-T1",
            "-c32",
            "-q200",
            "-t2",
            "-s",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-l",
            &seconds,
            "-d",
        ]);
        command.arg(ground.directory.join("queries"));
        return command;
    }
    if case == Case::Http2 {
        let mut command = Command::new("h2load");
        command.args(["-t1", "-c8", "-m16", "-D", &seconds, &format!("{scheme}://127.0.0.1:{port}/ping")]);
        return command;
    }
    let mut command = Command::new("wrk");
    let connections = if case == Case::Many { "-c1000" } else { "-c64" };
    command.args(["-t1", connections, "--latency", &format!("-d{seconds}s")]);
    if matches!(case, Case::Close | Case::Handshake) {
        command.args(["-H", "Connection: close"]);
    }
    let path = if matches!(case, Case::Mib | Case::HttpMib | Case::HttpsMib) { "1m" } else { "ping" };
    command.arg(format!("{scheme}://127.0.0.1:{port}/{path}"));
    command
}

/// Waits for the end of the client. Reads its CPU time while the client is a zombie: then the time is complete.
fn wait(mut child: std::process::Child) -> anyhow::Result<(String, f64)> {
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut output)?;
    }
    // The client has closed its output, so it is about to exit. Even if its threads have ended already, the
    // CPU time of the process includes them.
    let seconds = Group::of(child.id()).seconds().max(zombie_seconds(child.id()));
    let status = child.wait()?;
    if !status.success() {
        bail!("the client failed: {status}");
    }
    Ok((output, seconds))
}

/// Returns the sum of utime and stime of a whole process in seconds. The kernel gives them in ticks of 10 ms
/// (proc(5), fields 14 and 15).
fn zombie_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// Returns the number of requests with a response. An error of the client is an error here.
fn requests(case: Case, output: &str) -> anyhow::Result<f64> {
    let number = |line: &str| line.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    if case.is_dns() {
        let done = output.lines().find(|line| line.contains("Queries completed:")).and_then(number);
        let lost = output.lines().find(|line| line.contains("Queries lost:")).and_then(number).unwrap_or(0.0);
        let done = done.context("no number of queries")?;
        if lost > done / 100.0 {
            bail!("{lost} of {done} queries were lost");
        }
        return Ok(done);
    }
    if case == Case::Http2 {
        // "requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout"
        let line =
            output.lines().find(|line| line.starts_with("requests:")).context("no number of requests")?;
        if !line.contains(" 0 failed") {
            bail!("{line}");
        }
        return number(line).context("no number of requests");
    }
    if let Some(errors) =
        output.lines().find(|line| line.contains("Socket errors") || line.contains("Non-2xx"))
    {
        bail!("{errors}");
    }
    output.lines().find(|line| line.contains("requests in")).and_then(number).context("no number of requests")
}
