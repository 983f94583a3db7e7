//! A network of a client, a balancer and a server, each in a separate network namespace. A namespace ends with its process.

use crate::harness::{have, have_root, wait_until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A network namespace and the process that keeps it alive. The process ends by itself after 600 seconds.
pub(crate) struct Namespace {
    holder: Child,
    has_mounts: bool,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Namespace {
    /// Creates a namespace without a connection to others. Returns `None` if the test does not run as root or a program is
    /// missing.
    pub(crate) fn alone() -> Option<Self> {
        (have("ip") && have("unshare") && have("nsenter") && have_root()).then(Self::new)
    }

    fn new() -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let current = std::fs::read_link("/proc/self/ns/net").unwrap();
        let namespace = Self { holder, has_mounts: false };
        wait_until("a namespace", || {
            std::fs::read_link(namespace.path()).is_ok_and(|link| link != current).then_some(())
        });
        namespace.run("ip link set lo up");
        namespace
    }

    /// Creates a namespace that also has its own /sys with an empty BPF file system, and its own /run. Pinned programs
    /// and maps end with the namespace.
    pub(crate) fn with_mounts() -> Self {
        let script = "mount -t tmpfs none /run; mount -t sysfs none /sys; mount -t bpf none /sys/fs/bpf; \
                      exec sleep 600";
        let holder = Command::new("unshare").args(["--net", "--mount", "sh", "-ec", script]).spawn().unwrap();
        let mut namespace = Self { holder, has_mounts: true };
        wait_until("a namespace with mounts", || {
            let ended = namespace.holder.try_wait().unwrap();
            assert!(ended.is_none(), "expected the mounts to succeed");
            let name = std::fs::read_to_string(format!("/proc/{}/comm", namespace.pid())).ok()?;
            (name.trim() == "sleep").then_some(())
        });
        namespace.run("ip link set lo up");
        namespace
    }

    /// Returns the process that keeps the namespace alive. `ip link set DEVICE netns PID` moves a device here.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    /// Returns a command that runs a program in the namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        if self.has_mounts {
            command.arg(format!("--mount=/proc/{}/ns/mnt", self.pid()));
            // A new mount namespace would otherwise change the directory to its root.
            command.arg(format!("--wd={}", std::env::current_dir().unwrap().display()));
        }
        command.args(["--", program]);
        command
    }

    /// Calls a function on a thread of the network namespace. Sockets that it opens stay in the namespace.
    pub(crate) fn enter<T: Send>(&self, open: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                open()
            });
            inside.join().unwrap()
        })
    }

    /// Runs a shell script in the namespace and returns its output.
    pub(crate) fn run(&self, script: &str) -> String {
        let output = self.command("sh").args(["-ec", script]).stdin(Stdio::null()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {printed}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The namespaces of a client, a balancer and a server.
pub(crate) struct Row {
    pub(crate) client: Namespace,
    pub(crate) balancer: Namespace,
    pub(crate) server: Namespace,
}

impl Row {
    /// Connects the namespaces. The client has the addresses 10.77.1.2 and .3 (fd77:1::2 and ::3), the server
    /// 10.77.2.2 (fd77:2::2), and the balancer 10.77.1.1 and 10.77.2.1 (fd77:1::1 and fd77:2::1). The default
    /// route of the server leads to the balancer. Returns `None` if the test does not run as root or a program
    /// is missing.
    pub(crate) fn new() -> Option<Self> {
        let row = Self { client: Namespace::alone()?, balancer: Namespace::new(), server: Namespace::new() };
        let link = |name: &str, other: &Namespace| {
            let pid = other.pid();
            row.balancer.run(&format!("ip link add name {name} type veth peer name eth0 netns {pid}"));
        };
        link("clients", &row.client);
        link("servers", &row.server);
        row.balancer.run(
            "ip address add 10.77.1.1/24 dev clients; ip address add fd77:1::1/64 dev clients nodad
             ip address add 10.77.2.1/24 dev servers; ip address add fd77:2::1/64 dev servers nodad
             ip link set clients up; ip link set servers up",
        );
        row.client.run(
            "ip address add 10.77.1.2/24 dev eth0; ip address add 10.77.1.3/24 dev eth0
             ip address add fd77:1::2/64 dev eth0 nodad; ip address add fd77:1::3/64 dev eth0 nodad
             ip link set eth0 up",
        );
        row.server.run(
            "ip address add 10.77.2.2/24 dev eth0; ip address add fd77:2::2/64 dev eth0 nodad
             ip link set eth0 up; ip route add default via 10.77.2.1; ip -6 route add default via fd77:2::1",
        );
        Some(row)
    }
}
