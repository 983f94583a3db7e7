//! A virtual machine (VM) with Debian's cloud kernel (6.1), under emulation: runs programs with a kernel that this machine does not
//! have.
//!
//! Nothing is installed. Packages are unpacked into `target/vm`, which is a cache.

mod archive;

use crate::{packages, shell};
use anyhow::{Context, bail};
use archive::Archive;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The package whose first dependency is the kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Programs of the VM, as packages.
const USERLAND: [&str; 6] = ["busybox-static", "ipvsadm", "keepalived", "iproute2", "nftables", "conntrack"];
/// Programs that are copied into the VM with their libraries: the path in the packages, and the path in the VM.
/// Two have other names there, because busybox has programs of their names.
const PROGRAMS: [(&str, &str); 5] = [
    ("sbin/ipvsadm", "usr/sbin/ipvsadm"),
    ("usr/sbin/keepalived", "usr/sbin/keepalived"),
    ("bin/ip", "usr/sbin/ip"),
    ("usr/sbin/nft", "usr/sbin/nft"),
    ("usr/sbin/conntrack", "usr/sbin/conntrack"),
];
/// Directories of the packages with libraries.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// Directory of the libraries in the VM.
const VM_LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Users and protocols, which programs look up by name.
const ACCOUNTS: [(&str, &str); 4] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nsctp 132 SCTP\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nprotocols: files\n"),
];
const EMULATOR: &str = "qemu-system-x86";
/// Modules of the VM, besides the modules that they need.
const MODULES: [&str; 39] = [
    "veth",
    "dummy",
    "ipip",
    "ip_gre",
    "fou",
    "ip6_tunnel",
    "sit",
    "bridge",
    "sctp",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_wlc",
    "ip_vs_fo",
    "ip_vs_ovf",
    "ip_vs_lblc",
    "ip_vs_lblcr",
    "ip_vs_dh",
    "ip_vs_sh",
    "ip_vs_mh",
    "ip_vs_sed",
    "ip_vs_nq",
    "ip_vs_ftp",
    "ip_vs_pe_sip",
    "nfnetlink",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "xt_ipvs",
    "ip_tables",
    "iptable_nat",
    "x_tables",
    "xt_mark",
];
/// Increase it when the content of the cache changes.
const CACHE_VERSION: &str = "2";

/// The first process of the VM.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/sbin:/bin HOME=/root
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
# The kernel's console is the other port, so its messages do not mix with the output.
exec </dev/null >/dev/ttyS0 2>&1
ip link set lo up
cd /job; sh ./run; echo \"@@STATUS $?\"
poweroff -f
";

/// A VM that is ready to boot.
pub(crate) struct Vm {
    directory: PathBuf,
}

/// A file for the VM: its path in the directory of the job, and its path here.
pub(crate) struct JobFile {
    name: String,
    source: PathBuf,
}

impl JobFile {
    pub(crate) fn new(name: impl Into<String>, source: PathBuf) -> Self {
        Self { name: name.into(), source }
    }
}

impl Vm {
    /// Fetches and unpacks all that the VM needs, unless the cache has it.
    pub(crate) fn prepare() -> anyhow::Result<Self> {
        let vm = Self { directory: shell::root().join("target/vm/1") };
        let stamp = vm.directory.join("stamp");
        if fs::read_to_string(&stamp).is_ok_and(|version| version == CACHE_VERSION) {
            return Ok(vm);
        }
        if packages::find("apt-get").is_none() {
            bail!("the VM is made of Debian's packages: apt-get is needed");
        }
        if vm.directory.exists() {
            fs::remove_dir_all(&vm.directory)?;
        }
        fs::create_dir_all(&vm.directory)?;
        shell::run(Command::new("apt-get").args(["-q", "update"]))?;
        vm.fetch("kernel", &[&kernel_package()?], Closure::Alone)?;
        vm.fetch("userland", &USERLAND, Closure::WithDependencies)?;
        vm.fetch("emulator", &[EMULATOR], Closure::WithDependencies)?;
        vm.build_base()?;
        fs::write(stamp, CACHE_VERSION)?;
        Ok(vm)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Fetches packages and unpacks them into a directory.
    fn fetch(&self, name: &str, wanted: &[&str], closure: Closure) -> anyhow::Result<()> {
        let (fetched, unpacked) = (self.path(&format!("{name}.packages")), self.path(name));
        fs::create_dir_all(fetched.join("partial"))?;
        fs::create_dir_all(&unpacked)?;
        let mut apt = Command::new("apt-get");
        apt.current_dir(&fetched).args(["-q", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]);
        match closure {
            Closure::Alone => {
                apt.arg("download");
            }
            // With an empty list of installed packages, no dependency is left out.
            Closure::WithDependencies => {
                fs::write(self.path("empty-status"), "")?;
                let option = |name: &str, path: &Path| format!("{name}={}", path.display());
                apt.arg("-o").arg(option("Dir::State::status", &self.path("empty-status")));
                apt.arg("-o").arg(option("Dir::Cache::archives", &fetched));
                apt.args(["-o", "APT::Install-Recommends=0", "-y", "--download-only", "install"]);
            }
        }
        shell::run(apt.args(wanted))?;
        for entry in fs::read_dir(&fetched)? {
            let package = entry?.path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                let status = Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked).status()?;
                anyhow::ensure!(status.success(), "{} cannot be unpacked", package.display());
            }
        }
        Ok(())
    }

    /// Writes the part of the initial file system that every job has.
    fn build_base(&self) -> anyhow::Result<()> {
        let mut archive = Archive::default();
        let directories =
            "bin sbin dev proc sys tmp run root job etc lib lib/modules lib64 usr usr/sbin usr/lib";
        directories.split(' ').for_each(|directory| archive.directory(directory));
        archive.directory(VM_LIBRARIES);
        let busybox = find(&self.path("userland"), "busybox").context("busybox")?;
        archive.file("bin/busybox", &fs::read(&busybox)?, 0o755);
        archive.file("init", INIT.as_bytes(), 0o755);
        // The kernel starts this program to load a module that a system call needs.
        archive.file("sbin/modprobe", b"#!/bin/busybox sh\nexec /bin/busybox modprobe \"$@\"\n", 0o755);
        for (name, text) in ACCOUNTS {
            archive.file(name, text.as_bytes(), 0o644);
        }
        self.add_programs(&mut archive)?;
        let modules = self.path("kernel/lib/modules");
        let version = fs::read_dir(&modules)?.next().context("the kernel has modules")??.file_name();
        let version = version.to_string_lossy();
        let mut depmod = Command::new(&busybox);
        shell::run(depmod.args(["depmod", "-b"]).arg(self.path("kernel")).arg(&*version))?;
        let source = modules.join(&*version);
        let list = fs::read_to_string(source.join("modules.dep"))?;
        archive.directory(&format!("lib/modules/{version}"));
        let mut directories = BTreeSet::new();
        for module in wanted_modules(&list) {
            let name = format!("lib/modules/{version}/{module}");
            let parents: Vec<&Path> = Path::new(&name).ancestors().skip(1).collect();
            for parent in parents.into_iter().rev().filter(|parent| parent.starts_with("lib/modules")) {
                if directories.insert(parent.to_owned()) {
                    archive.directory(&parent.to_string_lossy());
                }
            }
            archive.file(&name, &fs::read(source.join(module))?, 0o644);
        }
        for name in ["modules.dep", "modules.alias"] {
            archive.file(&format!("lib/modules/{version}/{name}"), &fs::read(source.join(name))?, 0o644);
        }
        Ok(fs::write(self.path("base.cpio"), archive.finish())?)
    }

    /// Adds the programs and the libraries that they need.
    fn add_programs(&self, archive: &mut Archive) -> anyhow::Result<()> {
        let userland = self.path("userland");
        let loader = find(&userland, "ld-linux-x86-64.so.2").context("the programs' loader")?;
        archive.file("lib64/ld-linux-x86-64.so.2", &fs::read(&loader)?, 0o755);
        let search = LIBRARIES.map(|path| userland.join(path).display().to_string()).join(":");
        let mut libraries = BTreeSet::new();
        for (source, name) in PROGRAMS {
            let program = userland.join(source);
            archive.file(name, &fs::read(&program).with_context(|| program.display().to_string())?, 0o755);
            let mut list = Command::new(&loader);
            let output = list.arg("--library-path").arg(&search).arg("--list").arg(&program).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            libraries.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
        }
        for library in libraries.iter().filter(|library| library.starts_with(&userland)) {
            let name = library.file_name().context("a library has a name")?.to_string_lossy();
            archive.file(&format!("{VM_LIBRARIES}/{name}"), &fs::read(library)?, 0o755);
        }
        Ok(())
    }

    /// Boots the VM with files in `/job` and runs a shell script there. Returns its output; a status other than 0
    /// is an error.
    pub(crate) fn run(&self, files: &[JobFile], script: &str, patience: Duration) -> anyhow::Result<String> {
        let mut archive = Archive::default();
        let mut directories = BTreeSet::new();
        archive.file("job/run", script.as_bytes(), 0o755);
        for file in files {
            if let Some((directory, _)) = file.name.rsplit_once('/')
                && directories.insert(directory)
            {
                archive.directory(&format!("job/{directory}"));
            }
            let bytes = fs::read(&file.source).with_context(|| file.source.display().to_string())?;
            archive.file(&format!("job/{}", file.name), &bytes, 0o755);
        }
        // The kernel takes archives that follow each other.
        let mut initial = fs::read(self.path("base.cpio"))?;
        initial.extend(archive.finish());
        let (image, log) = (self.path("job.cpio"), self.path("kernel.log"));
        fs::write(&image, initial)?;
        let begin = Instant::now();
        let output = self.emulator(&image, &log, patience)?.output().context("the emulator cannot be run")?;
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        println!("VM: {} s", begin.elapsed().as_secs());
        let status = text.lines().find_map(|line| line.strip_prefix("@@STATUS "));
        match status {
            Some("0") => Ok(text),
            Some(status) => bail!("the VM's script ended with status {status}:\n{text}"),
            None => {
                let log = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(20).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                let errors = String::from_utf8_lossy(&output.stderr);
                bail!("the VM ended without a status:\n{text}{errors}{}", lines.join("\n"))
            }
        }
    }

    fn emulator(&self, image: &Path, log: &Path, patience: Duration) -> anyhow::Result<Command> {
        let root = self.path("emulator");
        let loader = find(&root, "ld-linux-x86-64.so.2").context("the emulator's loader")?;
        let libraries =
            ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];
        let libraries = libraries.map(|path| root.join(path).display().to_string()).join(":");
        let kernel = fs::read_dir(self.path("kernel/boot"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
        let mut command = Command::new("timeout");
        command.args(["-k", "5"]).arg(patience.as_secs().to_string()).arg(loader);
        command.arg("--library-path").arg(libraries).arg(root.join("usr/bin/qemu-system-x86_64"));
        for directory in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(root.join(directory));
        }
        // Emulated on purpose: a stock kernel can hang with a nested /dev/kvm that opens well.
        command.args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "768"]);
        command.args(["-display", "none", "-nodefaults", "-no-reboot"]);
        // Shows the output while the VM runs.
        let output = self.path("output.log");
        command.arg("-chardev").arg(format!("stdio,id=output,logfile={}", output.display()));
        command.args(["-serial", "chardev:output"]);
        command.arg("-serial").arg(format!("file:{}", log.display()));
        command.arg("-kernel").arg(kernel.context("the kernel's image")?).arg("-initrd").arg(image);
        command.args(["-append", "console=ttyS1 panic=-1 quiet"]);
        command.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
        command.stdin(std::process::Stdio::null());
        Ok(command)
    }
}

/// Packages that are fetched.
#[derive(Clone, Copy)]
enum Closure {
    Alone,
    WithDependencies,
}

/// Returns the package of the current kernel.
fn kernel_package() -> anyhow::Result<String> {
    let output = Command::new("apt-cache").args(["show", KERNEL]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let depends = text.lines().find_map(|line| line.strip_prefix("Depends: "));
    let first = depends.and_then(|list| list.split([' ', ',']).next());
    first.map(str::to_owned).with_context(|| format!("{KERNEL} names no kernel"))
}

/// Returns the paths of the wanted modules and of the modules that they need.
fn wanted_modules(list: &str) -> BTreeSet<&str> {
    let is_wanted = |path: &str| {
        let name = path.rsplit('/').next().and_then(|file| file.split('.').next()).unwrap_or_default();
        MODULES.contains(&name)
    };
    let lines = list.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(path, _)| is_wanted(path))
        .flat_map(|(path, needs)| std::iter::once(path).chain(needs.split_whitespace()))
        .collect()
}

/// Returns the path of a file of a name below a directory.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).ok()?.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            } else if path.file_name().is_some_and(|found| found == name) && path.is_file() {
                return Some(path);
            }
        }
    }
    None
}

/// Returns a program of this machine and its libraries for a job, in the directory `lib`, and the words that run it.
///
/// A program is a name, or a path that begins with `/`.
pub(crate) fn host_program(program: &str) -> anyhow::Result<(Vec<JobFile>, String)> {
    let path = packages::find(program).with_context(|| format!("{program} is not installed"))?;
    host_file(program, Path::new(&path))
}

/// Returns the program at a path of this machine, as [`host_program`].
pub(crate) fn host_file(program: &str, path: &Path) -> anyhow::Result<(Vec<JobFile>, String)> {
    let output = Command::new("ldd").arg(path).output().context("ldd cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let program = program.rsplit('/').next().unwrap_or(program);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    let mut files = vec![JobFile::new(format!("lib/{program}"), fs::canonicalize(path)?)];
    for library in paths.map(PathBuf::from) {
        let name = library.file_name().context("a library has a name")?.to_string_lossy().into_owned();
        files.push(JobFile::new(format!("lib/{name}"), library));
    }
    Ok((files, format!("/job/lib/ld-linux-x86-64.so.2 --library-path /job/lib /job/lib/{program}")))
}
