//! `cargo xtask deb`: makes the files that the program generates, and the Debian package with cargo-deb. Its test
//! unpacks a package of the debug binary, and installs it in a copy of the system.

use crate::shell;
use anyhow::{Context, bail};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Version of cargo-deb.
const CARGO_DEB: &str = "3.8.0";
const PACKAGE: &str = "target/package";

/// Files of the package, each with its mode.
const FILES: &[(&str, &str)] = &[
    ("etc/evener/evener.lua", "-rw-r--r--"),
    ("usr/bin/evener", "-rwxr-xr-x"),
    ("usr/lib/systemd/system/evener.service", "-rw-r--r--"),
    ("usr/share/bash-completion/completions/evener", "-rw-r--r--"),
    ("usr/share/doc/evener/copyright", "-rw-r--r--"),
    ("usr/share/doc/evener/examples/evener.socket", "-rw-r--r--"),
    ("usr/share/doc/evener/examples/kernel-planes.conf", "-rw-r--r--"),
    ("usr/share/doc/evener/examples/web.lua", "-rw-r--r--"),
    ("usr/share/evener/evener.meta.lua", "-rw-r--r--"),
    ("usr/share/fish/vendor_completions.d/evener.fish", "-rw-r--r--"),
    ("usr/share/man/man1/evener-run.1.gz", "-rw-r--r--"),
    ("usr/share/man/man1/evener.1.gz", "-rw-r--r--"),
    ("usr/share/man/man5/evener.lua.5.gz", "-rw-r--r--"),
    ("usr/share/zsh/vendor-completions/_evener", "-rw-r--r--"),
];

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Profile of the binary
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Use the binary of an earlier build
    #[arg(long)]
    no_build: bool,
}

/// Makes the package.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !options.no_build {
        shell::run(cargo().args(["build", "--package", "evener", "--profile", &options.profile]))?;
    }
    let package = make(&options.profile, &[])?;
    println!("{}", package.display());
    Ok(())
}

/// Makes a package of the debug binary, which the tests built, and checks what it contains.
pub(crate) fn test() -> anyhow::Result<()> {
    // Neither a small package nor a binary with symbols is needed.
    let package = make("dev", &["--fast", "--strip"])?;
    let listed = output(Command::new("dpkg-deb").arg("--contents").arg(&package))?;
    for (file, mode) in FILES {
        let is_entry = |line: &&str| line.starts_with(mode) && line.ends_with(&format!(" ./{file}"));
        if !listed.lines().any(|line| is_entry(&line)) {
            bail!("the package has no {file} with the mode {mode}:\n{listed}");
        }
    }
    let root = shell::root().join(PACKAGE).join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    shell::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root))?;
    shell::run(Command::new("dpkg-deb").arg("--control").arg(&package).arg(root.join("DEBIAN")))?;
    check_control(&root.join("DEBIAN"))?;
    let binary = root.join("usr/bin/evener");
    let configuration = root.join("etc/evener/evener.lua");
    shell::run(Command::new(&binary).args(["check", "--strict"]).arg(configuration))?;
    let generated = output(Command::new(&binary).arg("annotations"))?;
    if fs::read_to_string(root.join("usr/share/evener/evener.meta.lua"))? != generated {
        bail!("the annotations of the package are not those of its program");
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the installation needs root");
        return Ok(());
    }
    shell::run(Command::new(shell::root().join("packaging/debian/test.sh")).arg(&package))
}

/// Checks the scripts and the list of files that an administrator may change.
fn check_control(directory: &Path) -> anyhow::Result<()> {
    let conffiles = fs::read_to_string(directory.join("conffiles"))?;
    if conffiles.trim() != "/etc/evener/evener.lua" {
        bail!("unexpected files of configuration: {conffiles}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        shell::run(Command::new("sh").arg("-n").arg(directory.join(script)))?;
    }
    let control = fs::read_to_string(directory.join("control"))?;
    for field in ["Package: evener\n", "Depends: libc6", "Architecture: "] {
        if !control.contains(field) {
            bail!("the package has no `{}`:\n{control}", field.trim());
        }
    }
    Ok(())
}

/// Makes the generated files and the package of a built binary. Returns the path of the package.
fn make(profile: &str, options: &[&str]) -> anyhow::Result<PathBuf> {
    let directory = shell::root().join(PACKAGE);
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(directory.join("man"))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    generate(&shell::root().join("target").join(folder).join("evener"), &directory)?;
    install_cargo_deb()?;
    let mut deb = cargo();
    deb.args(["deb", "--package", "evener", "--no-build", "--profile", profile]).args(options);
    shell::run(deb.arg("--output").arg(&directory))?;
    let entries = fs::read_dir(&directory)?.flatten().map(|entry| entry.path());
    let packages: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect();
    match &packages[..] {
        [package] => Ok(package.clone()),
        others => bail!("cargo-deb made {} packages", others.len()),
    }
}

/// Writes the manual pages, the completions, the annotations and the configuration that the program generates.
fn generate(binary: &Path, directory: &Path) -> anyhow::Result<()> {
    shell::run(Command::new(binary).arg("man").arg(directory.join("man")))?;
    for (name, arguments) in [
        ("evener", ["completions", "bash"].as_slice()),
        ("_evener", &["completions", "zsh"]),
        ("evener.fish", &["completions", "fish"]),
        ("evener.meta.lua", &["annotations"]),
        ("evener.lua", &["init", "-"]),
    ] {
        fs::write(directory.join(name), output(Command::new(binary).args(arguments))?)?;
    }
    Ok(())
}

fn install_cargo_deb() -> anyhow::Result<()> {
    let version = cargo().args(["deb", "--version"]).stderr(Stdio::null()).output();
    let installed = version.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    if installed.is_some_and(|text| String::from_utf8_lossy(&text).trim().ends_with(CARGO_DEB)) {
        return Ok(());
    }
    let mut install = cargo();
    install.args(["install", "cargo-deb", "--version", CARGO_DEB, "--locked"]);
    // An optimised build takes longer than it saves.
    install.envs([("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"), ("CARGO_PROFILE_RELEASE_LTO", "off")]);
    shell::run(&mut install)
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.current_dir(shell::root());
    cargo
}

/// Returns what a program prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("{name} cannot be run"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
