//! The Debian packages that tests and the benchmark need, each with a file or program that it contains.

use crate::shell;
use anyhow::bail;
use std::path::Path;
use std::process::Command;

/// A program, or the path of a file, and the package that contains it.
struct Need {
    program: &'static str,
    package: &'static str,
}

const FOR_TESTS: &[Need] = &[
    Need { program: "nginx", package: "nginx" },
    Need { program: "/usr/lib/nginx/modules/ngx_stream_module.so", package: "libnginx-mod-stream" },
    Need { program: "wrk", package: "wrk" },
    Need { program: "nsd", package: "nsd" },
    Need { program: "dnsperf", package: "dnsperf" },
    Need { program: "ip", package: "iproute2" },
    Need { program: "/usr/bin/python3", package: "python3" },
    Need { program: "/usr/share/doc/python3-venv", package: "python3-venv" },
    Need { program: "haproxy", package: "haproxy" },
    Need { program: "dnsdist", package: "dnsdist" },
    Need { program: "curl", package: "curl" },
    Need { program: "openssl", package: "openssl" },
    Need { program: "testssl", package: "testssl.sh" },
    Need { program: "slowhttptest", package: "slowhttptest" },
    Need { program: "h2load", package: "nghttp2-client" },
    Need { program: "goaccess", package: "goaccess" },
    Need { program: "pen", package: "pen" },
    Need { program: "dig", package: "bind9-dnsutils" },
    Need { program: "named", package: "bind9" },
    Need { program: "dnsmasq", package: "dnsmasq-base" },
    Need { program: "/lib/lsb/init-functions", package: "sysvinit-utils" },
    Need { program: "node", package: "nodejs" },
    Need { program: "npm", package: "npm" },
    Need { program: "clang-19", package: "clang-19" },
    Need { program: "llvm-strip-19", package: "llvm-19" },
    Need { program: "/usr/include/bpf/bpf_helpers.h", package: "libbpf-dev" },
    Need { program: "bpftool", package: "bpftool" },
    Need { program: "ethtool", package: "ethtool" },
    Need { program: "tcpdump", package: "tcpdump" },
    Need { program: "tshark", package: "tshark" },
    Need { program: "nft", package: "nftables" },
    Need { program: "/usr/lib/python3/dist-packages/scapy", package: "python3-scapy" },
    Need { program: "socat", package: "socat" },
    Need { program: "promtool", package: "prometheus" },
    Need { program: "chromium", package: "chromium" },
    Need { program: "chromedriver", package: "chromium-driver" },
    Need { program: "systemd-analyze", package: "systemd" },
    Need { program: "zsh", package: "zsh" },
    Need { program: "fish", package: "fish" },
    Need { program: "groff", package: "groff-base" },
    Need { program: "tmux", package: "tmux" },
];

/// Packages of PyPI for tests, in a separate environment under `target`.
const PYTHON: &[&str] =
    &["mmdb_writer==0.2.7", "websockets==17.4", "openapi-spec-validator==0.9.0", "schemathesis==4.32.5"];

/// Packages of npm for tests, in a separate directory under `target`.
const NODE: &[&str] = &["mname@1.5.1", "bunyan@2.0.5"];

const FOR_BENCH: &[Need] = &[Need { program: "strace", package: "strace" }];

const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Returns the path of a program, if it is installed.
pub(crate) fn find(program: &str) -> Option<String> {
    if program.starts_with('/') {
        return Path::new(program).exists().then(|| program.to_owned());
    }
    DIRECTORIES.iter().map(|directory| format!("{directory}/{program}")).find(|path| Path::new(path).exists())
}

/// Installs the missing packages; `bench` includes the packages of the benchmark.
pub(crate) fn install(bench: bool) -> anyhow::Result<()> {
    let needs = FOR_TESTS.iter().chain(FOR_BENCH.iter().filter(|_| bench));
    let missing: Vec<&str> =
        needs.filter(|need| find(need.program).is_none()).map(|need| need.package).collect();
    if missing.is_empty() {
        println!("setup: every package is installed");
        return install_libraries();
    }
    println!("setup: installing {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!("not as root on Debian: install these packages yourself: {}", missing.join(" "));
    }
    shell::run(Command::new("apt-get").args(["-q", "update"]))?;
    let mut install = Command::new("apt-get");
    install.args(["-q", "-y", "--no-install-recommends", "install"]).args(&missing);
    // The packages must not start daemons: the tests start the daemons that they need, on their own ports.
    shell::run(install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))?;
    install_libraries()
}

fn install_libraries() -> anyhow::Result<()> {
    install_python()?;
    install_node()
}

/// Creates the Python environment, unless it exists with the wanted packages.
fn install_python() -> anyhow::Result<()> {
    let directory = shell::root().join("target/python");
    let (mark, wanted) = (directory.join("evener-packages"), PYTHON.join("\n"));
    if std::fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    println!("setup: installing {} from PyPI into {}", PYTHON.join(" "), directory.display());
    shell::run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&directory))?;
    let mut pip = Command::new(directory.join("bin/pip"));
    shell::run(pip.args(["--quiet", "--disable-pip-version-check", "install"]).args(PYTHON))?;
    Ok(std::fs::write(mark, wanted)?)
}

/// Creates the directory of Node's modules, unless it exists with the wanted modules. No script of a module is
/// run.
fn install_node() -> anyhow::Result<()> {
    let directory = shell::root().join("target/node");
    let (mark, wanted) = (directory.join("evener-packages"), NODE.join("\n"));
    if std::fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    println!("setup: installing {} from npm into {}", NODE.join(" "), directory.display());
    std::fs::create_dir_all(&directory)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix"]);
    shell::run(npm.arg(&directory).args(NODE))?;
    Ok(std::fs::write(mark, wanted)?)
}
