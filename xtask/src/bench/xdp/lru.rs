//! Associations that are left in an LRU map of the kernel: by fill, after updates of present keys, and with two
//! processors that write at the same time.

use super::bench_program::{BenchProgram, Counts, Keys};
use super::{bind_to_cpu, progress, progress_done};
use std::thread;

const SIZES: [u32; 8] = [64, 128, 256, 512, 1024, 4096, 65_536, 1_048_576];
const FILLS: [u32; 4] = [10, 50, 90, 100];

/// Measures and prints the tables.
pub(super) fn measure(quick: bool) -> anyhow::Result<()> {
    let sizes = if quick { &SIZES[..6] } else { &SIZES[..] };
    println!("### Associations left in an LRU map, of those written, by fill\n");
    println!(
        "| entries | 1 CPU: 10 % | 50 % | 90 % | 100 % | 2 CPUs: 10 % | 50 % | 90 % | 100 % | left of a full table after updates of one present key |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for size in sizes {
        progress(&format!("LRU map of {size} entries"));
        let mut row = format!("| {size} |");
        for cpus in [1, 2] {
            for fill in FILLS {
                let written = (size * fill / 100).max(1);
                row += &format!(" {} |", percent(left(*size, written, cpus)?, written));
            }
        }
        row += &format!(" {} |", updates_of_present_keys(*size)?);
        progress_done();
        println!("{row}");
    }
    println!();
    contention(quick)
}

fn percent(part: u64, whole: u32) -> String {
    format!("{:.1} %", part as f64 * 100.0 / f64::from(whole))
}

/// Keys that a processor writes before the other one continues. No multiple of the kernel's own portions.
const TURN: u32 = 37;

/// Writes this many keys from a number of processors in turn. Returns the number of keys that are left.
fn left(size: u32, written: u32, cpus: usize) -> anyhow::Result<u64> {
    let mut bench = BenchProgram::load(size)?;
    // One processor has more clients than the other.
    let share = written * 3 / 10 * (cpus as u32 - 1);
    let first = written - share;
    bench.set_keys(|cpu| Keys::from(if cpu == 0 { 0 } else { first }))?;
    let mut rest = [first, share];
    let turn = if cpus == 1 { written } else { TURN.max(written / 100) };
    while rest != [0; 2] {
        for (cpu, rest) in rest.iter_mut().enumerate().filter(|(_, rest)| **rest > 0) {
            bind_to_cpu(cpu)?;
            let count = turn.min(*rest);
            bench.keys("fill", count)?;
            *rest -= count;
        }
    }
    present(&mut bench, written)
}

/// Returns how many of the first keys are present.
fn present(bench: &mut BenchProgram, keys: u32) -> anyhow::Result<u64> {
    bind_to_cpu(0)?;
    bench.set_keys(|_| Keys::from(0))?;
    bench.keys("find", keys)?;
    Ok(bench.counts()?.present())
}

/// Fills a table, updates one of the keys that are present again and again, and returns how many are left.
fn updates_of_present_keys(size: u32) -> anyhow::Result<String> {
    let mut bench = BenchProgram::load(size)?;
    bind_to_cpu(0)?;
    bench.set_keys(|_| Keys::from(0))?;
    bench.keys("fill", size)?;
    let before = present(&mut bench, size)?;
    let mut text = format!("{before}");
    for updates in [1, size] {
        bench.set_keys(|_| Keys::only(size - 1))?;
        bench.keys("fill", updates)?;
        text += &format!(", {} after {updates}", present(&mut bench, size)?);
    }
    Ok(text)
}

/// Two processors write at the same time, and count the failed updates.
fn contention(quick: bool) -> anyhow::Result<()> {
    let updates: u32 = if quick { 200_000 } else { 4_000_000 };
    println!("### Failed updates of an LRU map, {updates} updates from each of two CPUs at the same time\n");
    println!("| entries | keys | EBUSY | ENOMEM | others |\n|---|---|---|---|---|");
    for size in [64, 1024, 65_536] {
        for (name, keys) in [("one", None), ("different", Some(1 << 31))] {
            progress(&format!("two CPUs, {size} entries"));
            let counts = written_by_two(size, updates, keys)?;
            let [busy, no_memory, others] = counts.failures();
            progress_done();
            println!("| {size} | {name} | {busy} | {no_memory} | {others} |");
        }
    }
    println!();
    Ok(())
}

fn written_by_two(size: u32, updates: u32, distance: Option<u32>) -> anyhow::Result<Counts> {
    let mut bench = BenchProgram::load(size)?;
    bench.set_keys(|cpu| match distance {
        Some(distance) => Keys::from(distance.wrapping_mul(cpu as u32)),
        None => Keys::only(1),
    })?;
    let write = |cpu: usize| {
        bind_to_cpu(cpu)?;
        bench.keys("fill", updates)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| write(1));
        write(0)?;
        other.join().expect("a thread that measures does not panic")
    })?;
    bench.counts()
}
