//! A thread with a network namespace and a BPF file system of its own.

use evener_core::spec::XdpMode;
use evener_xdp::attach::WantedInterface;
use evener_xdp::load::{Installed, Sizes};
use evener_xdp::pin::Directory;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::path::Path;
use std::process::{Command, Stdio};

/// The pin directory of tests.
pub(crate) const PIN: &str = "/sys/fs/bpf/evener";

/// Runs a test on a thread whose namespaces end with it. Prints that it was skipped without root.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        let is_strict = std::env::var_os("EVENER_TEST_STRICT").is_some();
        assert!(!is_strict, "a test needs root");
        println!("skipped: needs CAP_NET_ADMIN");
        return;
    }
    let thread = std::thread::spawn(move || {
        let flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
        // SAFETY: the thread has no state that depends on its namespaces.
        unsafe { unshare_unsafe(flags) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).unwrap();
        run("ip link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a shell script in the namespaces of the thread and returns its output.
pub(crate) fn run(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {printed}");
    String::from_utf8(output.stdout).unwrap()
}

/// Opens the pin directory and loads the program.
pub(crate) fn open(flows: u32) -> Installed {
    let directory = Directory::open(Path::new(PIN)).unwrap();
    Installed::open(directory, Sizes { flows_v4: flows, flows_v6: flows }).unwrap()
}

/// An interface on which the program is wanted.
pub(crate) fn wanted(name: &str, mode: XdpMode) -> WantedInterface {
    WantedInterface { name: name.to_owned(), mode }
}
