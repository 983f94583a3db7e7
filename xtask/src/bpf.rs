//! `cargo xtask bpf`: compiles the BPF programs, whose objects are committed beside their sources.
//!
//! The bytes depend on the version of clang but not on the directory of the tree, so CI compiles again and
//! compares.

mod stack;

use crate::vm::{self, JobFile, Vm};
use crate::{packages, shell};
use anyhow::{Context, bail};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The compiler. Another version gives other bytes.
const CLANG: &str = "clang-19";
const STRIP: &str = "llvm-strip-19";
/// Directories with programs, below the root of the workspace.
const DIRECTORIES: [&str; 2] = ["crates/xdp/bpf", "crates/xdp/tests/bpf"];
/// Time for the guest to boot and to verify the program. Emulation is slow.
const VM_PATIENCE: Duration = Duration::from_secs(600);
const SUFFIX: &str = ".bpf.c";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Compare with the committed objects instead of replacing them
    #[arg(long)]
    check: bool,
    /// Load the committed program in a guest with Debian's kernel 6.1, under emulation (fetches 70 MB once)
    #[arg(long = "guest")]
    in_vm: bool,
}

/// Compiles all programs.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if options.in_vm {
        return load_in_vm();
    }
    for program in [CLANG, STRIP] {
        if packages::find(program).is_none() {
            bail!("{program} is not installed: run `cargo xtask setup`");
        }
    }
    let mut differing = Vec::new();
    for source in sources()? {
        let committed = source.with_extension("o");
        let fresh = compile(&source)?;
        let is_equal = fs::read(&committed).is_ok_and(|bytes| bytes == fresh);
        let name = committed.strip_prefix(shell::root()).unwrap_or(&committed).display().to_string();
        println!("{name}: {} bytes, {}", fresh.len(), if is_equal { "unchanged" } else { "changed" });
        if !is_equal && options.check {
            differing.push(name);
        } else if !is_equal {
            fs::write(&committed, fresh)?;
        }
    }
    if !differing.is_empty() {
        bail!("not compiled from the sources beside them: {}; run `cargo xtask bpf`", differing.join(", "));
    }
    Ok(())
}

/// Loads the program in a guest and attaches it there.
fn load_in_vm() -> anyhow::Result<()> {
    let machine = Vm::prepare()?;
    let (mut files, bpftool) = vm::host_program("bpftool")?;
    let object = shell::root().join("crates/xdp/bpf/evener.bpf.o");
    files.push(JobFile::new("evener.bpf.o", object));
    let pin = "/sys/fs/bpf/evener";
    let script = format!(
        "uname -r\n{bpftool} prog load evener.bpf.o {pin} && {bpftool} prog show pinned {pin} && \
         {bpftool} net attach xdpgeneric pinned {pin} dev lo && {bpftool} net show dev lo"
    );
    print!("{}", machine.run(&files, &script, VM_PATIENCE)?);
    Ok(())
}

fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for directory in DIRECTORIES.map(|directory| shell::root().join(directory)) {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries {
            let path = entry?.path();
            sources.extend(path.to_string_lossy().ends_with(SUFFIX).then_some(path));
        }
    }
    sources.sort();
    Ok(sources)
}

/// Compiles a source file and returns the object.
fn compile(source: &Path) -> anyhow::Result<Vec<u8>> {
    let directory = source.parent().context("a file has a directory")?;
    let name = source.file_name().context("a file has a name")?;
    let work = shell::root().join("target/bpf");
    fs::create_dir_all(&work)?;
    let object = work.join(name).with_extension("o");
    let mut clang = Command::new(CLANG);
    clang
        .current_dir(directory)
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]);
    // The paths in the object are relative, so that its bytes are the same in every tree.
    clang.arg(format!("-ffile-prefix-map={}=.", directory.display())).arg("-fdebug-compilation-dir=.");
    clang.arg("-I").arg(shell::root().join("crates/xdp/bpf"));
    clang.arg("-I/usr/include/x86_64-linux-gnu").arg("-c").arg(name).arg("-o").arg(&object);
    shell::run(&mut clang)?;
    stack::check(&object, &name.to_string_lossy())?;
    shell::run(Command::new(STRIP).arg("-g").arg(&object))?;
    Ok(fs::read(object)?)
}
