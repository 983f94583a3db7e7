//! A thread with a network namespace and a BPF file system of its own.

use aya::programs::{Xdp, XdpMode as AyaMode};
use aya::{Ebpf, include_bytes_aligned};
use evener_core::spec::XdpMode;
use evener_xdp::attach::{AttachError, Attachment, WantedInterface};
use evener_xdp::load::{Installed, LoadError, Sizes};
use evener_xdp::pin::Directory;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::path::Path;
use std::process::{Command, Stdio};

/// The pin directory of tests.
pub(crate) const PIN: &str = "/sys/fs/bpf/evener";
/// A small program with the maps of the real one.
pub(crate) const SMALL: &[u8] = include_bytes_aligned!("../bpf/small.bpf.o");
const FOREIGN: &[u8] = include_bytes_aligned!("../bpf/foreign.bpf.o");

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

/// Creates a pair of interfaces, `eth0` and `eth1`.
pub(crate) fn add_pair() {
    run("ip link add name eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up");
}

/// Opens the pin directory and loads the small program.
pub(crate) fn try_open(flows: u32) -> Result<Installed, LoadError> {
    let directory = Directory::open(Path::new(PIN))?;
    Installed::open_object(SMALL, directory, Sizes { flows_v4: flows, flows_v6: flows })
}

/// Opens the pin directory and loads the small program.
pub(crate) fn open(flows: u32) -> Installed {
    try_open(flows).unwrap()
}

/// Attaches the program to one interface and to no other.
pub(crate) fn set(
    installed: &mut Installed,
    interface: &str,
    mode: XdpMode,
) -> Result<Attachment, AttachError> {
    installed.links.set(&[WantedInterface { name: interface.to_owned(), mode }]).remove(0).1
}

/// Attaches a program that is not the plane's, until the returned object is dropped.
pub(crate) fn attach_foreign(interface: &str) -> Ebpf {
    let mut ebpf = Ebpf::load(FOREIGN).unwrap();
    let program: &mut Xdp = ebpf.program_mut("foreign").unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(interface, AyaMode::Driver).unwrap();
    ebpf
}
