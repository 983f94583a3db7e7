//! The examples and the commands of the documents run as their texts say. Each test has its own network, with all
//! addresses of the texts on loopback, and its own /run.

use crate::harness::{BINARY, Directory, have, have_root};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Time limit of a script, in seconds.
const SCRIPT_TIME: &str = "120";

fn root() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap()
}

/// A command of a text.
struct Step {
    command: String,
    /// The lines that the text shows below the command; they may be a part of the output.
    expected: Vec<String>,
    after: After,
}

/// Handling of a command after its start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// The test waits for its end.
    Ends,
    /// The command is an instance, which keeps running.
    Stays,
    /// The command is an instance, which is stopped as soon as it has started.
    Stops,
}

/// Returns a shell function for the steps: `started PID` waits until an instance has started.
const FUNCTIONS: &str = r#"
export PATH="$PWD/bin:/usr/sbin:$PATH"
pids=
trap 'kill -KILL $pids; wait' EXIT
started() {
    pids="$pids $1"
    for try in $(seq 2000); do
        grep -q " started " log && return 0
        kill -0 "$1" || { cat log; return 1; }
        sleep 0.01
    done
    cat log; return 1
}
"#;

/// Runs steps in a new network, and checks their exit status and output. `before` is a script that prepares the
/// network.
fn run(directory: &Directory, before: &str, steps: &[Step]) {
    fs::create_dir(directory.file("bin")).unwrap();
    symlink(BINARY, directory.file("bin/evener")).unwrap();
    let mut script =
        format!("{FUNCTIONS}\nmount -t tmpfs none /run || exit 1\nip link set lo up || exit 1\n{before}\n");
    for (number, step) in steps.iter().enumerate() {
        let command = step.command.trim_end_matches('&');
        script += &match step.after {
            After::Ends => format!("{{ {command}\n}} >out{number} 2>&1; echo $? >status{number}\n"),
            After::Stays => format!(": >log; {command} >log 2>&1 & started $!; echo $? >status{number}\n"),
            After::Stops => format!(
                ": >log; {command} >log 2>&1 & started $!; echo $? >status{number}; kill $!; wait $!\n"
            ),
        };
    }
    script += "echo finished\n";
    let output = Command::new("unshare")
        // The end of the first process of the namespace ends all others: an upgrade starts one that is not in the list.
        .args(["--net", "--pid", "--fork", "--mount-proc", "timeout", SCRIPT_TIME, "sh", "-c", &script])
        .current_dir(directory.file(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        printed.contains("finished\n"),
        "expected the script to finish within {SCRIPT_TIME} s: {printed}"
    );
    let read = |name: String| fs::read_to_string(directory.file(&name)).unwrap_or_default();
    for (number, step) in steps.iter().enumerate() {
        let (status, seen) = (read(format!("status{number}")), read(format!("out{number}")));
        assert_eq!(status.trim(), "0", "`{}` failed:\n{seen}\n{printed}", step.command);
        for line in &step.expected {
            let has_line = seen.lines().any(|seen| seen == line);
            assert!(has_line, "`{}` must print `{line}`:\n{seen}\n{printed}", step.command);
        }
    }
}

/// Returns true if the test can run.
fn can_run() -> bool {
    ["unshare", "ip", "curl", "openssl", "dig", "dnsmasq"].iter().all(|program| have(program)) && have_root()
}

/// Returns the commands in the comment of an example: lines that begin with `$`, each followed by its output.
fn steps_of_example(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines().map_while(|line| line.strip_prefix("--")) {
        let Some(line) = line.strip_prefix("   ") else { continue };
        match line.strip_prefix("$ ") {
            Some(command) => {
                let after = if command.ends_with('&') { After::Stays } else { After::Ends };
                steps.push(Step { command: command.into(), expected: Vec::new(), after });
            }
            None => steps.last_mut().unwrap().expected.push(line.into()),
        }
    }
    steps
}

/// Runs an example in a copy of the folder, so that it can create files there.
fn run_example(name: &str, before: &str) {
    if !can_run() {
        return;
    }
    let directory = Directory::new();
    fs::create_dir(directory.file("examples")).unwrap();
    let text = fs::read_to_string(root().join("examples").join(name)).unwrap();
    directory.write(&format!("examples/{name}"), &text);
    let steps = steps_of_example(&text);
    assert!(steps.iter().any(|step| !step.expected.is_empty()), "{name} shows the output of a command");
    assert!(steps.iter().any(|step| step.after == After::Stays), "{name} runs an instance");
    let check = |when: &str| {
        let mut check = Command::new(BINARY);
        check.args(["check", &format!("examples/{name}")]).current_dir(directory.file(""));
        let output = check.output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && printed.is_empty(), "{when}: {printed}");
    };
    run(&directory, before, &steps);
    check("after its commands, the example has no problems and no warnings");
}

#[test]
fn the_example_web_runs_as_its_comment_says() {
    run_example("web.lua", "");
}

#[test]
fn the_example_edge_runs_as_its_comment_says() {
    run_example("edge.lua", "");
}

#[test]
fn the_example_many_runs_as_its_comment_says() {
    run_example("many.lua", "");
}

#[test]
fn the_example_dns_runs_as_its_comment_says() {
    // Stands in for the public resolvers.
    let resolver = "
        ip address add 9.9.9.9/32 dev lo && ip address add 1.1.1.1/32 dev lo || exit 1
        dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --pid-file= --user=root \\
          --listen-address=9.9.9.9,1.1.1.1 --bind-interfaces \\
          --address=/example.org/192.0.2.7 --address=/a.root-servers.net/198.41.0.4 &
        pids=$!
        for try in $(seq 2000); do dig +time=1 +tries=1 @1.1.1.1 example.org | grep -q NOERROR && break; done";
    run_example("dns.lua", resolver);
}

#[test]
fn the_examples_of_kernel_planes_are_valid_as_their_comments_say() {
    // They are only checked: they need an interface or IPVS, and servers.
    for name in ["examples/xdp.lua", "examples/ipvs.lua"] {
        check_example(name);
    }
}

fn check_example(name: &str) {
    let text = fs::read_to_string(root().join(name)).unwrap();
    let mut steps = steps_of_example(&text).into_iter();
    let Step { command, expected, .. } = steps.next().unwrap();
    let mut words = command.split(' ');
    assert_eq!((words.next(), steps.next().is_none()), (Some("evener"), true));
    let output = Command::new(BINARY).args(words).current_dir(root()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (printed.lines().collect::<Vec<_>>(), errors),
        (expected.iter().map(String::as_str).collect(), String::new())
    );
}

#[test]
fn every_example_is_run_by_a_test() {
    let mut names: Vec<String> = fs::read_dir(root().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".lua"))
        .collect();
    names.sort();
    assert_eq!(names, ["dns.lua", "edge.lua", "ipvs.lua", "many.lua", "web.lua", "xdp.lua"]);
}

/// Returns the commands of a document: lines in its code blocks that begin with `evener`. Lines that begin with
/// `$` show a session, with its output.
fn steps_of_document(text: &str) -> Vec<Step> {
    let mut is_fenced = false;
    let mut steps = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            is_fenced = line == "```sh" || line == "```console";
            continue;
        }
        let line = if is_fenced { Some(line) } else { line.strip_prefix("    ") };
        let Some(line) = line.filter(|line| line.starts_with("evener ")) else { continue };
        let line = line.split("  #").next().unwrap().trim_end();
        steps.extend(line.split(" && ").map(step_of_document));
    }
    steps
}

fn step_of_document(command: &str) -> Step {
    let name = command.split(' ').nth(1).unwrap_or_default();
    let after = match name {
        _ if command.contains("--print") => After::Ends,
        "run" => After::Stays,
        "tcp" | "udp" | "dns" | "http" => After::Stops,
        _ => After::Ends,
    };
    // `evener events --follow` has no end, and /etc belongs to the machine.
    let command = command.replace(" --follow", "").replace("/etc/pen.cfg", "pen.cfg");
    Step { command, expected: Vec::new(), after }
}

/// Runs the commands of a document. `addresses` are put on loopback; `file` is a file that the commands use.
fn run_document(name: &str, addresses: &[&str], file: impl FnOnce(&Directory, &str)) {
    if !can_run() {
        return;
    }
    let text = fs::read_to_string(root().join(name)).unwrap();
    let directory = Directory::new();
    file(&directory, &text);
    let steps = steps_of_document(&text);
    assert!(!steps.is_empty(), "{name} has commands");
    let add = |address: &&str| format!("ip address add {address}/32 dev lo || exit 1\n");
    let certificate = "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=a.example \\
          -keyout site.key -out site.crt 2>/dev/null && cat site.crt site.key >site.pem || exit 1\n";
    run(&directory, &(addresses.iter().map(add).collect::<String>() + certificate), &steps);
}

#[test]
fn the_commands_of_the_readme_run() {
    run_document("README.md", &["10.0.0.51", "10.0.0.52", "10.0.0.99"], |directory, text| {
        let block = text.split("```lua\n").nth(1).unwrap().split("```").next().unwrap();
        directory.write("web.lua", block);
        directory.write(
            "keepalived.conf",
            "virtual_server 192.0.2.1 80 {\n  lb_algo rr\n  lb_kind NAT\n  protocol TCP\n  \
             real_server 10.0.0.51 80 {\n    weight 1\n    TCP_CHECK {\n      connect_timeout 3\n    }\n  }\n}\n",
        );
    });
}

#[test]
fn the_commands_of_the_guide_for_pen_run() {
    run_document("docs/migrate-from-pen.md", &[], |directory, _| {
        directory.write("pen.cfg", "listen 127.0.0.1:8080\nserver 0 address 10.0.0.51 port 80\n");
    });
}
