//! Time and memory that `evener run` takes to begin with a service of the XDP plane.

use super::live::Pair;
use super::{progress, progress_done};
use crate::bench::cpu::Group;
use anyhow::bail;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PIN: &str = "/sys/fs/bpf/evener-bench";
/// Time after which the program has not begun.
const BEGIN_MAX: Duration = Duration::from_secs(30);

/// Files of a round, which are removed at its end.
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_dir_all(PIN);
    }
}

/// Measures and prints the table.
pub(super) fn measure(quick: bool, binary: &Path) -> anyhow::Result<()> {
    if !binary.exists() {
        println!("Start of the program: skipped, {} does not exist (see --binary)\n", binary.display());
        return Ok(());
    }
    println!("### Start of `evener run` with a service of the XDP plane, best of some rounds\n");
    println!("| | ms to ready | resident, KiB | maps, KiB |\n|---|---|---|---|");
    let rounds = if quick { 1 } else { 5 };
    for flows in [1024, 1 << 20] {
        for (name, keep) in [("first start", false), ("restart, maps taken over", true)] {
            let mut best: Option<(Duration, u64, u64)> = None;
            for round in 1..=rounds {
                progress(&format!("start of the program: {flows} flows, {name}, round {round}"));
                let found = start(binary, flows, keep)?;
                best = Some(best.map_or(found, |best| best.min(found)));
            }
            progress_done();
            let Some((time, resident, maps)) = best else { continue };
            println!(
                "| {flows} flows, {name} | {:.0} | {} | {} |",
                time.as_secs_f64() * 1000.0,
                resident / 1024,
                maps / 1024
            );
        }
    }
    println!();
    Ok(())
}

/// Starts the program once; with `keep` a second time, over the maps of the first. Returns the time until it is ready,
/// its resident memory and the memory of its maps.
fn start(binary: &Path, flows: u32, keep: bool) -> anyhow::Result<(Duration, u64, u64)> {
    let directory = std::env::temp_dir().join(format!("evener-bench-xdp-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let files = Files(directory);
    let pair = Pair::new(1)?;
    let config = format!(
        "xdp {{ flows = {flows}, pin = \"{PIN}\" }}\n\
         pool \"p\" {{ \"10.0.2.11\", \"10.0.2.12\", \"10.0.2.13\" }}\n\
         service \"s\" {{ plane = \"xdp\", interface = \"e0\", protocol = \"udp\", listen = {{ \"10.0.9.9:5683\" }}, \
         pool = \"p\" }}\n"
    );
    let file = files.0.join("evener.lua");
    fs::write(&file, config)?;
    if keep {
        begin(binary, &files, &file, &pair)?;
    }
    begin(binary, &files, &file, &pair)
}

fn begin(binary: &Path, files: &Files, config: &Path, pair: &Pair) -> anyhow::Result<(Duration, u64, u64)> {
    let socket = files.0.join("notify");
    let _ = fs::remove_file(&socket);
    let notified = UnixDatagram::bind(&socket)?;
    notified.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", pair.pid()));
    command.arg(binary).arg("run").arg(config).arg("--admin").arg(files.0.join("admin"));
    command.args(["--workers", "1", "--log-level", "warn"]).env("NOTIFY_SOCKET", &socket);
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut message = [0; 4096];
    let is_ready = loop {
        let length = notified.recv(&mut message).unwrap_or(0);
        if message[..length].windows(7).any(|part| part == b"READY=1") {
            break true;
        }
        if start.elapsed() > BEGIN_MAX || child.try_wait()?.is_some() {
            break false;
        }
    };
    let time = start.elapsed();
    let result = (time, Group(vec![child.id()]).resident_bytes(), map_bytes(child.id()));
    let _ = child.kill();
    let output = child.wait_with_output()?;
    if !is_ready {
        bail!("{} did not begin: {}", binary.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(result)
}

/// Returns the memory of the maps that a process has open.
fn map_bytes(pid: u32) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let maps = files.filter_map(|file| {
        let text = fs::read_to_string(file.path()).ok()?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        Some((value("map_id:")?, value("memlock:")?))
    });
    maps.collect::<BTreeMap<u64, u64>>().values().sum()
}
