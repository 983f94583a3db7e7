//! CPU time and memory of processes, from /proc. The CPU time includes all threads that are alive.

use std::fs;

/// Processes that count together: a server with its workers.
#[derive(Clone, Debug, Default)]
pub(super) struct Group(pub(super) Vec<u32>);

impl Group {
    /// Returns a process with all its descendants.
    pub(super) fn of(pid: u32) -> Self {
        let mut pids = vec![pid];
        let mut at = 0;
        while at < pids.len() {
            let tasks = fs::read_dir(format!("/proc/{}/task", pids[at])).into_iter().flatten().flatten();
            for task in tasks {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            at += 1;
        }
        Self(pids)
    }

    /// Returns the CPU time of the processes since their start, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.0.iter().map(|pid| process_seconds(*pid)).sum()
    }

    /// Returns the resident memory of the processes in bytes.
    pub(super) fn resident_bytes(&self) -> u64 {
        let of_one = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
            line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        self.0.iter().map(of_one).sum()
    }
}

fn process_seconds(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = tasks.map(|task| {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        schedstat.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0)
    });
    nanos.sum::<u64>() as f64 / 1e9
}
