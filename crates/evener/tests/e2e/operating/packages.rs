//! Parts of packages that the program generates, and the units of systemd.

use crate::harness::{BINARY, Directory, have};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn evener(directory: &Directory, arguments: &[&str]) -> Output {
    Command::new(BINARY).current_dir(directory.file("")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn init_writes_a_valid_file_once() {
    let directory = Directory::new();
    let first =
        evener(&directory, &["init", "--protocol", "tcp", "--listen", "127.0.0.1:0", "--server", "[::1]:81"]);
    assert!(first.status.success(), "{first:?}");
    let hints = text(&first.stdout);
    for hint in ["evener check evener.lua ", "evener run evener.lua ", "evener annotations"] {
        assert!(hints.contains(hint), "{hints}");
    }
    let check = evener(&directory, &["check", "--strict", "evener.lua"]);
    assert_eq!(text(&check.stdout), "evener.lua: valid: 1 service, 1 pool, 1 server\n", "{check:?}");

    let written = fs::read_to_string(directory.file("evener.lua")).unwrap();
    let again = evener(&directory, &["init"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("evener.lua exists and stays as it is"), "{again:?}");
    assert_eq!(fs::read_to_string(directory.file("evener.lua")).unwrap(), written);

    assert!(evener(&directory, &["init", "--force"]).status.success());
    let replaced = fs::read_to_string(directory.file("evener.lua")).unwrap();
    assert_eq!(text(&evener(&directory, &["init", "-"]).stdout), replaced);
    assert!(evener(&directory, &["check", "--strict", "evener.lua"]).status.success());
    let nowhere = evener(&directory, &["init", "missing/evener.lua"]);
    assert!(text(&nowhere.stderr).contains("its directory does not exist"), "{nowhere:?}");
}

#[test]
fn each_command_has_a_manual_page() {
    if !have("groff") {
        return;
    }
    let directory = Directory::new();
    fs::create_dir(directory.file("man")).unwrap();
    let written = evener(&directory, &["man", "man"]);
    assert!(written.status.success(), "{written:?}");
    let pages: Vec<PathBuf> =
        fs::read_dir(directory.file("man")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for page in ["evener.1", "evener-run.1", "evener-drain.1", "evener-xdp-check.1", "evener.lua.5"] {
        assert!(pages.iter().any(|path| path.ends_with(page)), "{page}: {pages:?}");
    }
    let mut groff = Command::new("groff");
    let shown = groff.args(["-man", "-Tascii", "-ww", "-P-cbou"]).args(&pages).output().unwrap();
    assert!(shown.status.success() && shown.stderr.is_empty(), "{}", text(&shown.stderr));
    let shown = text(&shown.stdout);
    for part in ["--drain-timeout", "evener-maintenance(1)", "policy = ", "evener.lua(5)"] {
        assert!(shown.contains(part), "{part} is missing");
    }
}

/// Lets a shell complete the last word of a command line.
fn completed(shell: &str, directory: &Directory, script: &str) -> String {
    let output = Command::new(shell).current_dir(directory.file("")).arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{shell}: {output:?}");
    text(&output.stdout)
}

#[test]
fn shells_complete_commands_options_and_paths() {
    let directory = Directory::new();
    for (shell, name) in [("bash", "evener.bash"), ("zsh", "_evener"), ("fish", "evener.fish")] {
        fs::write(directory.file(name), evener(&directory, &["completions", shell]).stdout).unwrap();
    }
    fs::create_dir(directory.file("bin")).unwrap();
    std::os::unix::fs::symlink(BINARY, directory.file("bin/evener")).unwrap();
    directory.write("first.lua", "");
    directory.write("admin.sock", "");
    let in_bash = |words: &str| {
        let last = words.split(' ').count();
        let script = format!(
            "source ./evener.bash; COMP_WORDS=(evener {words}); COMP_CWORD={last}; \
             _evener evener \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{}]}}\"; echo \"${{COMPREPLY[@]}}\"",
            last - 1
        );
        completed("bash", &directory, &script)
    };
    assert_eq!(in_bash("maint"), "maintenance\n");
    assert_eq!(in_bash("run --drain"), "--drain-timeout\n");
    // Readline completes paths where the function has nothing.
    assert_eq!(in_bash("run firs"), "\n");
    let registered = completed("bash", &directory, "source ./evener.bash; complete -p evener");
    assert!(registered.contains(" -o default "), "{registered}");
    assert_eq!(in_bash("status --socket adm"), "admin.sock\n");
    assert_eq!(in_bash("run --driver io"), "io_uring\n");
    if have("zsh") {
        completed(
            "zsh",
            &directory,
            "autoload -U compinit && compinit -D -u && source ./_evener && (( $+functions[_evener] ))",
        );
    }
    if have("fish") {
        let in_fish = |line: &str| {
            let script = format!("set -x PATH $PWD/bin $PATH; source evener.fish; complete -C '{line}'");
            completed("fish", &directory, &script)
        };
        assert!(in_fish("evener maint").starts_with("maintenance\t"));
        assert!(in_fish("evener run firs").starts_with("first.lua"));
        assert!(in_fish("evener status --socket adm").starts_with("admin.sock"));
    }
}

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(file)
}

/// Writes a unit for the binary of the tests.
fn unit(directory: &Directory, name: &str) -> PathBuf {
    let unit = fs::read_to_string(packaging("systemd").join(name)).unwrap();
    let replaced = unit.replace("=/usr/bin/evener ", &format!("={BINARY} "));
    assert!(name.ends_with(".socket") || replaced != unit, "the unit runs another program");
    directory.write(name, &replaced)
}

#[test]
fn systemd_accepts_the_units_and_their_exposure_is_low() {
    if !have("systemd-analyze") {
        return;
    }
    let directory = Directory::new();
    let (service, socket) = (unit(&directory, "evener.service"), unit(&directory, "evener.socket"));
    let mut verify = Command::new("systemd-analyze");
    let verified = verify.args(["verify", "--man=no"]).arg(&service).arg(&socket).output().unwrap();
    // systemd before version 253 reports the type that it does not know, and uses the one before it.
    let is_old = |line: &&str| line.contains("service type, ignoring: notify-reload");
    let findings: Vec<String> =
        text(&verified.stderr).lines().filter(|line| !is_old(line)).map(str::to_owned).collect();
    assert!(verified.status.success() && findings.is_empty(), "{verified:?}");

    let exposure = |unit: &Path| {
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager", "--threshold=20"]);
        security.arg(unit).output().unwrap()
    };
    let found = exposure(&service);
    assert!(found.status.success(), "the exposure is above 2.0:\n{}", text(&found.stdout));
    let open = directory.write("open.service", &format!("[Service]\nExecStart={BINARY}\n"));
    assert!(!exposure(&open).status.success(), "a unit without protection is above the threshold");
}
