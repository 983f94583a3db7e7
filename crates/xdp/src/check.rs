//! Says what an interface and this machine can do for the plane, and what stands in the way. Changes nothing.

use crate::ethtool::{Driver, xdp_features};
use crate::foreign;
use crate::interface::Interface;
use crate::load::{Loaded, Sizes};
use crate::object::PROGRAM;
use crate::pin::{self, FILE_SYSTEM};
use crate::sys;
use std::os::fd::AsFd;
use std::path::Path;

/// Largest MTU with which drivers run a program without fragmented buffers: a page of 4096 bytes less room for
/// headers and metadata. Drivers differ by some bytes.
const NATIVE_MTU: u32 = 3498;
const CAPABILITIES: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38)];
/// Contains the others.
const CAP_SYS_ADMIN: u32 = 21;

/// Importance of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Not known, or worth knowing.
    Note,
    /// Packets may be lost or slow.
    Warning,
    /// The plane cannot work.
    Problem,
}

impl Verdict {
    /// Returns a word for the beginning of a line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// A fact about the machine or an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Short name, such as `driver`.
    pub topic: &'static str,
    /// Importance.
    pub verdict: Verdict,
    /// The fact, and what to do about it.
    pub text: String,
}

/// All findings about an interface.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Examines this machine and an interface.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        let mut report = Self::default();
        report.machine();
        match Interface::by_name(interface) {
            Ok(Some(interface)) => report.interface(&interface),
            Ok(None) => {
                report.add("interface", Verdict::Problem, format!("there is no interface {interface}"));
            }
            Err(error) => report.add("interface", Verdict::Problem, format!("{interface}: {error}")),
        }
        report
    }

    /// Returns the findings, first about the machine, then about the interface.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns whether the plane can work here.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict < Verdict::Problem)
    }

    fn add(&mut self, topic: &'static str, verdict: Verdict, text: impl Into<String>) {
        self.findings.push(Finding { topic, verdict, text: text.into() });
    }

    fn machine(&mut self) {
        let kernel = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
        self.add("kernel", Verdict::Good, kernel);
        self.capabilities();
        match Path::new("/sys/kernel/btf/vmlinux").exists() {
            true => self.add("BTF", Verdict::Good, "/sys/kernel/btf/vmlinux"),
            false => {
                self.add("BTF", Verdict::Problem, "the kernel has none: CONFIG_DEBUG_INFO_BTF is needed");
            }
        }
        match read("/proc/sys/net/core/bpf_jit_enable").as_deref() {
            Some("0") => {
                self.add(
                    "JIT",
                    Verdict::Warning,
                    "off, so programs are slow: sysctl net.core.bpf_jit_enable=1",
                );
            }
            Some(_) => self.add("JIT", Verdict::Good, "on"),
            None => self.add("JIT", Verdict::Note, "not known"),
        }
        self.file_system();
        let unprivileged = match read("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
            Some("0") => "users without capabilities may load BPF programs (the plane does not need that)",
            Some(_) => "users without capabilities may not load BPF programs (the plane does not need that)",
            None => "not known",
        };
        self.add("unprivileged", Verdict::Good, unprivileged);
        self.locked_memory();
        match Loaded::load(Sizes { flows_v4: 1024, flows_v6: 1024 }) {
            Ok(_) => self.add("program", Verdict::Good, "the kernel accepts it"),
            Err(error) => self.add("program", Verdict::Problem, error.to_string()),
        }
    }

    fn capabilities(&mut self) {
        let status = read("/proc/thread-self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let bits = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
        let has = |bit: u32| bits >> bit & 1 == 1;
        let is_missing = |bit: u32| !has(bit) && (bit == 12 || !has(CAP_SYS_ADMIN));
        let missing: Vec<&str> =
            CAPABILITIES.iter().filter(|(_, bit)| is_missing(*bit)).map(|(name, _)| *name).collect();
        match missing.is_empty() {
            true => self.add("capabilities", Verdict::Good, CAPABILITIES.map(|(name, _)| name).join(", ")),
            false => {
                let missing = missing.join(", ");
                self.add(
                    "capabilities",
                    Verdict::Problem,
                    format!("missing: {missing}; run as root, or grant them"),
                );
            }
        }
    }

    fn file_system(&mut self) {
        match pin::is_mounted() {
            true => self.add("bpffs", Verdict::Good, format!("mounted at {FILE_SYSTEM}")),
            false => {
                let text = format!(
                    "not mounted at {FILE_SYSTEM}; the plane mounts it if it may: mount -t bpf bpf {FILE_SYSTEM}"
                );
                self.add("bpffs", Verdict::Note, text);
            }
        }
    }

    fn locked_memory(&mut self) {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        let text = match limit {
            None => "no limit".to_owned(),
            Some(bytes) => format!("{} KiB; kernels from 5.11 on do not count maps", bytes / 1024),
        };
        self.add("memlock", Verdict::Good, text);
    }

    fn interface(&mut self, interface: &Interface) {
        let text = format!("{} (index {}), MTU {}", interface.name, interface.index, interface.mtu);
        match interface.is_up {
            true => self.add("interface", Verdict::Good, text),
            false => self.add(
                "interface",
                Verdict::Warning,
                format!("{text}, down: ip link set {} up", interface.name),
            ),
        }
        self.driver(interface);
        self.mtu(interface);
        self.programs(interface);
        if let Some(warning) = silent_peer(interface) {
            self.add("peer", Verdict::Warning, warning);
        } else if interface.kind.as_deref() == Some("veth") {
            self.add("peer", Verdict::Good, "the other end has an XDP program");
        }
    }

    fn driver(&mut self, interface: &Interface) {
        let driver = match Driver::of(&interface.name) {
            Ok(driver) => driver,
            Err(error) => return self.add("driver", Verdict::Note, format!("not known: {error}")),
        };
        match driver.name().ok().or_else(|| interface.kind.clone()) {
            Some(name) => self.add("driver", Verdict::Good, name),
            None => self.add("driver", Verdict::Note, "none, or not known"),
        }
        match xdp_features(interface.index) {
            Some(features) if features.is_native() => {
                self.add("native XDP", Verdict::Good, features.names().collect::<Vec<_>>().join(", "));
            }
            Some(_) => {
                self.add(
                    "native XDP",
                    Verdict::Warning,
                    "the driver has none: the slower generic mode is used",
                );
            }
            None => self.add(
                "native XDP",
                Verdict::Note,
                "not known: the kernel does not report it (Linux 6.3 does)",
            ),
        }
        self.queues(&driver);
        match driver.features() {
            Ok(features) => self.offloads(interface, &features),
            Err(error) => self.add("offloads", Verdict::Note, format!("not known: {error}")),
        }
    }

    fn queues(&mut self, driver: &Driver) {
        match driver.queues() {
            Ok(queues) => {
                let text = format!(
                    "{} receive, {} send; {} receive at most",
                    queues.receive, queues.send, queues.receive_max
                );
                let is_single = queues.receive < 2 && queues.receive_max > 1;
                self.add("queues", if is_single { Verdict::Note } else { Verdict::Good }, text);
            }
            Err(error) => self.add("queues", Verdict::Note, format!("not known: {error}")),
        }
    }

    fn offloads(&mut self, interface: &Interface, features: &[String]) {
        let is_on = |name: &str| features.iter().any(|feature| feature == name);
        let name = &interface.name;
        let mut bad = Vec::new();
        if is_on("rx-lro") {
            bad.push(format!(
                "LRO merges packets, and drivers refuse native mode with it: ethtool -K {name} lro off"
            ));
        }
        if is_on("rx-gro-hw") {
            bad.push(format!("the hardware merges packets (GRO_HW): ethtool -K {name} rx-gro-hw off"));
        }
        if is_on("rx-vlan-hw-parse") && interface.kind.as_deref() != Some("veth") {
            bad.push(format!(
                "the hardware removes VLAN tags before the program sees them: ethtool -K {name} rxvlan off, if VLANs are used"
            ));
        }
        for text in &bad {
            self.add("offloads", Verdict::Warning, text);
        }
        if interface.kind.as_deref() == Some("veth") {
            self.partial_checksums(interface);
        } else if bad.is_empty() {
            self.add("offloads", Verdict::Good, "none merges packets or removes VLAN tags");
        }
    }

    /// The other end of a veth pair can leave checksums and segmentation to the receiver.
    fn partial_checksums(&mut self, interface: &Interface) {
        let advice = "ethtool -K PEER tx off gso off tso off";
        let peer = interface.peer_here();
        let features = peer.as_ref().and_then(|peer| Driver::of(&peer.name).ok()?.features().ok());
        let (Some(peer), Some(features)) = (peer, features) else {
            let text = format!(
                "the other end is in another network namespace; if its offloads are on, local packets have partial checksums: {advice}"
            );
            return self.add("offloads", Verdict::Note, text);
        };
        let partial = ["tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-tcp-segmentation"];
        if features.iter().any(|feature| partial.contains(&feature.as_str())) {
            let advice = advice.replace("PEER", &peer.name);
            let text =
                format!("{} sends packets with partial checksums, which stay wrong: {advice}", peer.name);
            self.add("offloads", Verdict::Warning, text);
        } else {
            self.add("offloads", Verdict::Good, format!("off at the other end, {}", peer.name));
        }
    }

    fn mtu(&mut self, interface: &Interface) {
        if interface.mtu <= NATIVE_MTU {
            return self.add(
                "MTU",
                Verdict::Good,
                format!("{}, native mode takes about {NATIVE_MTU}", interface.mtu),
            );
        }
        let text = format!(
            "{}: most drivers refuse native mode above about {NATIVE_MTU}: ip link set {} mtu {NATIVE_MTU}",
            interface.mtu, interface.name
        );
        self.add("MTU", Verdict::Warning, text);
    }

    fn programs(&mut self, interface: &Interface) {
        if interface.programs.is_empty() {
            self.add("programs", Verdict::Good, "none attached");
        }
        for (mode, id) in &interface.programs {
            let info = sys::program_by_id(*id).and_then(|program| sys::program_info(program.as_fd()));
            let is_evener = info.is_ok_and(|info| info.name == PROGRAM);
            let described = foreign::describe(*id, interface.index);
            let text = format!("{} mode: {described}", mode.name());
            match is_evener {
                true => self.add("programs", Verdict::Note, text),
                false => self.add("programs", Verdict::Problem, format!("{text}; detach it first")),
            }
        }
    }
}

/// Describes why packets that the program sends through a veth interface would be lost, if they would.
pub(crate) fn silent_peer(interface: &Interface) -> Option<String> {
    if interface.kind.as_deref() != Some("veth") {
        return None;
    }
    let Some(peer) = interface.peer_here() else {
        return Some(format!(
            "the other end of {} is in another network namespace: unless an XDP program is attached there, the \
             kernel drops every packet that the plane sends through {} in native mode",
            interface.name, interface.name
        ));
    };
    peer.programs.is_empty().then(|| {
        format!(
            "{} has no XDP program: the kernel drops every packet that the plane sends through {} in native mode; \
             attach any program there, such as one that passes all packets",
            peer.name, interface.name
        )
    })
}

fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim_end().to_owned())
}
