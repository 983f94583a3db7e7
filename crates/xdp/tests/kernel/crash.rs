//! A process is killed (SIGKILL) at each of its steps: the next process finds all associations and one set of maps.

use crate::frames::Wire;
use crate::harness::{add_pair, alone, open, set};
use evener_core::spec::XdpMode;
use evener_xdp::attach::Change;
use evener_xdp::contract::{Flow, FlowKeyV4};
use std::process::{Command, Stdio};

/// Tells the child the size of the table.
const SIZE: &str = "EVENER_XDP_TEST_SIZE";
/// Source of the packets of [`Wire`].
const CLIENT: u32 = u32::from_ne_bytes([192, 0, 2, 1]);

/// Not a test by itself: the process that is killed.
#[test]
fn killed_process() {
    let Some(size) = std::env::var_os(SIZE) else { return };
    let size = size.to_str().unwrap().parse().unwrap();
    let mut installed = open(size);
    set(&mut installed, "eth0", XdpMode::Auto).unwrap();
}

/// Runs the child until its `step`th system call of a kind, and kills it there. Returns whether it was killed.
fn kill_at(call: &str, step: u32, size: u32) -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("trace={call}"));
    strace.arg("-e").arg(format!("inject={call}:signal=SIGKILL:when={step}"));
    strace.arg(std::env::current_exe().unwrap()).args(["--exact", "crash::killed_process"]);
    let status = strace.env(SIZE, size.to_string()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    !status.expect("strace runs").success()
}

/// Opens the directory and checks that all associations are there, and that program and process use the same maps.
fn check_next(size: u32, context: &str) {
    let mut next = open(size);
    let attached = set(&mut next, "eth0", XdpMode::Auto).unwrap();
    assert_ne!(attached.change, Change::None, "{context}");
    for port in 1..=20 {
        let key = FlowKeyV4 { address: 7, port, vip: 1 };
        assert!(next.maps.flows_v4.get(&key, 0).is_ok(), "association {port} is lost: {context}");
    }
    let port = 5000u16;
    let key = FlowKeyV4 { address: CLIENT, port: port.to_be(), vip: 1 };
    let _ = next.maps.flows_v4.remove(&key);
    let (sender, receiver) = (Wire::new("eth1"), Wire::new("eth0"));
    sender.send(port, 0);
    assert_eq!(receiver.receive(port), Some(0), "{context}");
    assert!(next.maps.flows_v4.get(&key, 0).is_ok(), "the program uses another map: {context}");
}

#[test]
fn a_process_that_is_killed_at_any_step_loses_nothing() {
    alone(|| {
        add_pair();
        let mut first = open(1024);
        set(&mut first, "eth0", XdpMode::Auto).unwrap();
        for port in 1..=20 {
            first.maps.flows_v4.insert(FlowKeyV4 { address: 7, port, vip: 1 }, Flow::default(), 0).unwrap();
        }
        drop(first);
        let mut killed = 0;
        // The first calls of bpf(2) only find out what the kernel can do.
        let steps =
            (1..=8).map(|step| ("rename", step)).chain((1..=200).step_by(9).map(|step| ("bpf", step)));
        for (at, (call, step)) in steps.enumerate() {
            let size = if at % 2 == 0 { 2048 } else { 1024 };
            killed += u32::from(kill_at(call, step, size));
            check_next(size, &format!("killed at {call} {step}"));
        }
        println!("{killed} processes killed");
        assert!(killed >= 10, "only {killed} processes were killed");
    });
}
