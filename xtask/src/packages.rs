//! The Debian packages that tests and the benchmark need: which program comes from which package.

use crate::shell;
use anyhow::bail;
use std::path::Path;
use std::process::Command;

/// A program and the package that has it.
struct Need {
    program: &'static str,
    package: &'static str,
}

const FOR_TESTS: &[Need] = &[
    Need { program: "nginx", package: "nginx" },
    Need { program: "wrk", package: "wrk" },
    Need { program: "nsd", package: "nsd" },
    Need { program: "dnsperf", package: "dnsperf" },
    Need { program: "ip", package: "iproute2" },
    Need { program: "python3", package: "python3-minimal" },
];

const FOR_BENCH: &[Need] = &[
    Need { program: "pen", package: "pen" },
    Need { program: "haproxy", package: "haproxy" },
    Need { program: "dnsdist", package: "dnsdist" },
    Need { program: "/usr/lib/nginx/modules/ngx_stream_module.so", package: "libnginx-mod-stream" },
    Need { program: "strace", package: "strace" },
];

const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where a program is, if it is installed.
pub(crate) fn find(program: &str) -> Option<String> {
    if program.starts_with('/') {
        return Path::new(program).exists().then(|| program.to_owned());
    }
    DIRECTORIES.iter().map(|directory| format!("{directory}/{program}")).find(|path| Path::new(path).exists())
}

/// Installs what is missing.
pub(crate) fn install(bench: bool) -> anyhow::Result<()> {
    let needs = FOR_TESTS.iter().chain(FOR_BENCH.iter().filter(|_| bench));
    let missing: Vec<&str> =
        needs.filter(|need| find(need.program).is_none()).map(|need| need.package).collect();
    if missing.is_empty() {
        println!("setup: every package is installed");
        return Ok(());
    }
    println!("setup: installing {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!("not as root on Debian: install these packages yourself: {}", missing.join(" "));
    }
    shell::run(Command::new("apt-get").args(["-q", "update"]))?;
    let mut install = Command::new("apt-get");
    install.args(["-q", "-y", "--no-install-recommends", "install"]).args(&missing);
    // No daemon may start by itself: tests start their own, on ports of their own.
    shell::run(install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))
}
