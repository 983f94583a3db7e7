//! Output to a closed pipe: commands end quietly, and servers continue.

use crate::harness::{BINARY, Directory, Evener, Server, reserved_port, wait_until, who};
use std::fs;
use std::io::{Read, Write, pipe};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// Exit status that shells show for a program that SIGPIPE ended.
const READER_GONE: i32 = 141;

/// Runs a command whose standard output is a closed pipe.
fn run_with_closed_stdout(command: &mut Command) -> Output {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().unwrap()
}

fn assert_quiet(command: &str, output: &Output) {
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*printed), (Some(READER_GONE), ""), "{command}");
}

#[test]
fn commands_to_an_instance_end_quietly_when_their_output_is_closed() {
    let a = Server::named("a");
    let server = a.port;
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", clients = 10, pool = pool \"p\" {{ \"127.0.0.1:{server}\", sticky = true }} }}"
    ));
    let listen = evener.port("s");
    assert_eq!(who(listen), "a");
    let socket = evener.admin_socket();
    for words in [
        "status",
        "status --json",
        "clients",
        "clients --json",
        "connections",
        "connections --json",
        "explain s 127.0.0.1",
        "explain s 127.0.0.1 --json",
        "balstat",
        "balstat --json",
        "deny s 192.0.2.0/24",
        "access",
        "access --json",
        "forget s 192.0.2.0/24",
        &format!("drain p/127.0.0.1:{server}"),
        &format!("ready p/127.0.0.1:{server}"),
        "reload",
    ] {
        let mut command = Command::new(BINARY);
        assert_quiet(
            words,
            &run_with_closed_stdout(command.args(words.split(' ')).arg("--socket").arg(&socket)),
        );
    }
    assert_eq!(who(listen), "a");
}

#[test]
fn commands_that_only_print_end_quietly_when_their_output_is_closed() {
    let directory = Directory::new();
    let file = directory.write("a.lua", "service \"s\" { listen = \"127.0.0.1:1\", \"127.0.0.1:2\" }");
    let file = file.display();
    let web = "192.0.2.7 - - [28/Nov/2026:08:00:00 +0000] \"GET / HTTP/1.1\" 200 1\n";
    let log = directory.write("web.log", &web.repeat(10_000));
    let pen = directory.write("pen.log", "");
    for words in [
        "completions bash",
        "completions zsh",
        "pen --help",
        "penctl --help",
        "mname-balancer --help",
        "import pen -r 80 10.0.0.1",
        "help run",
        &format!("check {file}"),
        &format!("check {file} --print"),
        &format!("mergelogs -p {} 127.0.0.1:{}", pen.display(), log.display()),
    ] {
        assert_quiet(words, &run_with_closed_stdout(Command::new(BINARY).args(words.split(' '))));
    }
    // clap ignores the failure to write its help.
    for words in ["--help", "--version", "run --help"] {
        let output = run_with_closed_stdout(Command::new(BINARY).args(words.split(' ')));
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{words}");
    }
}

#[test]
fn penctl_ends_quietly_when_its_output_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let responding = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 64]);
        // More bytes than a pipe holds: penctl may end before it has read all.
        let _ = stream.write_all(&vec![b'x'; 1 << 20]);
    });
    assert_quiet(
        "penctl",
        &run_with_closed_stdout(Command::new(BINARY).args(["penctl", &address, "status"])),
    );
    responding.join().unwrap();
}

#[test]
fn a_wrong_configuration_fails_quietly_when_stderr_is_closed() {
    let directory = Directory::new();
    let file = directory.write("a.lua", "service \"s\" { listen = 7, nonsense = 8 }");
    for arguments in [vec!["check".into(), file.clone().into_os_string()], vec!["pen".into(), "-r".into()]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut command = Command::new(BINARY);
        let status = command
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(writer)
            .status()
            .unwrap();
        assert!(matches!(status.code(), Some(1 | 2)), "{arguments:?}: {status:?}");
    }
}

#[test]
fn other_failures_to_write_output_are_reported() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(BINARY).args(["completions", "bash"]).stdout(full()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("cannot write to standard output: No space left"), "{printed}");
}

#[test]
fn the_demo_shuts_down_when_its_output_is_closed() {
    let directory = Directory::new();
    let mut command = Command::new(BINARY);
    command.arg("demo").env("XDG_RUNTIME_DIR", directory.file(""));
    assert_quiet("demo", &run_with_closed_stdout(&mut command));
    assert!(!directory.file("evener/evener.sock").exists(), "the admin socket was not removed");
}

#[test]
fn an_instance_continues_when_its_log_output_is_closed() {
    let (a, listen) = (Server::named("a"), reserved_port());
    for log in ["text", "bunyan"] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let directory = Directory::new();
        let mut child = Command::new(BINARY)
            .args(["tcp", &format!("127.0.0.1:{listen}"), &format!("127.0.0.1:{}", a.port)])
            .args(["--log", log, "--log-level", "debug", "--admin"])
            .arg(directory.file("admin.sock"))
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .spawn()
            .unwrap();
        wait_until("the listener", || std::net::TcpStream::connect(("127.0.0.1", listen)).ok());
        assert_eq!((who(listen).as_str(), who(listen).as_str()), ("a", "a"));
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
