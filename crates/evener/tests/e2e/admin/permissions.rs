//! Access to the admin socket by other users: `--admin-mode`, `--admin-group`, and the messages about instances
//! that a user may not use.

use crate::harness::{BINARY, Directory, Evener, have, have_root};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// An unprivileged user and group.
const ID: &str = "65534";

/// Runs a command as an unprivileged user.
fn as_user(arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", ID, "--regid", ID, "--clear-groups", BINARY]).args(arguments);
    command.env_remove("XDG_RUNTIME_DIR").env_remove("EVENER_SOCKET").output().unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts an instance whose admin socket is in a directory that everyone can enter.
fn run(options: &[&str]) -> Evener {
    let directory = Directory::new();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.file("x").parent().unwrap(), open).unwrap();
    let arguments = [&["tcp", "127.0.0.1:0", "127.0.0.1:9"], options].concat();
    Evener::start(Command::new(BINARY), directory, &arguments)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn the_socket_is_for_its_owner_unless_the_options_admit_others() {
    let evener = run(&[]);
    assert_eq!(mode(&evener.admin_socket()), 0o600);
    let evener = run(&["--admin-mode", "0660"]);
    assert_eq!(mode(&evener.admin_socket()), 0o660);
    if !have_root() {
        return;
    }
    let evener = run(&["--admin-group", ID]);
    let meta = std::fs::metadata(evener.admin_socket()).unwrap();
    assert_eq!((meta.gid().to_string().as_str(), meta.mode() & 0o7777), (ID, 0o660));
    if have("setpriv") {
        let socket = evener.admin_socket().display().to_string();
        let output = as_user(&["status", "--socket", &socket]);
        assert!(output.status.success(), "a member of the group must be admitted: {output:?}");
    }
}

#[test]
fn a_wrong_group_or_mode_is_refused_before_the_start() {
    let run = |options: &[&str]| {
        let output =
            Command::new(BINARY).args(["tcp", "127.0.0.1:0", "127.0.0.1:9"]).args(options).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, error) = run(&["--admin-group", "no-such-group"]);
    assert_eq!(
        (status, error.as_str()),
        (Some(1), "evener: --admin-group: there is no group `no-such-group`\n")
    );
    let (status, error) = run(&["--admin-group", "0", "--admin-mode", "0640"]);
    assert_eq!(
        (status, error.as_str()),
        (
            Some(1),
            "evener: --admin-mode 0640 does not admit the group of --admin-group: a connection needs write permission; write 0660\n"
        )
    );
    let (status, error) = run(&["--admin-mode", "rw"]);
    assert!(status == Some(2) && error.contains("must be an octal mode such as 0600 or 0660"), "{error}");
}

#[test]
fn the_errors_about_sockets_name_the_cause() {
    let directory = Directory::new();
    let path = |name: &str| directory.file(name).display().to_string();
    let message = |path: &str| {
        let output = Command::new(BINARY).args(["status", "--socket", path]).output().unwrap();
        error(&output)
    };
    assert!(message(&path("missing")).ends_with("missing: there is no such file\n"));
    directory.write("file", "");
    assert!(message(&path("file")).ends_with("file: the file is not a socket\n"));
    drop(std::os::unix::net::UnixListener::bind(path("old")).unwrap());
    let left_over = message(&path("old"));
    assert!(left_over.ends_with("old: the socket is left over from an instance that ended\n"), "{left_over}");
    let from_environment =
        Command::new(BINARY).arg("status").env("EVENER_SOCKET", path("missing")).output().unwrap();
    let from_environment = error(&from_environment);
    assert!(from_environment.contains(" (from EVENER_SOCKET): "), "{from_environment}");
    if have_root() && have("setpriv") {
        let evener = run(&[]);
        let socket = evener.admin_socket().display().to_string();
        let expected = format!(
            "evener: an instance runs at {socket}, but its socket is for root (mode 0600): use sudo, "
        );
        let refused = error(&as_user(&["status", "--socket", &socket]));
        assert!(refused.starts_with(&expected), "{refused}");
    }
}

/// Runs a script with an empty /run and a network namespace of its own, with `$EVENER`, and `$USER` before a
/// command that an unprivileged user runs.
fn with_empty_run(script: &str) -> String {
    let user = format!("setpriv --reuid {ID} --regid {ID} --clear-groups");
    let script = format!("ip link set lo up; mount -t tmpfs none /run\n{script}");
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "bash", "-c", &script])
        .env("EVENER", BINARY)
        .env("USER", user)
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("EVENER_SOCKET")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Starts an instance in the background and waits for its socket.
const START: &str = "start() { rm -f /run/log; $PREFIX $EVENER tcp 127.0.0.1:0 127.0.0.1:9 --log-level info \"$@\" 2>/run/log &\n\
                     for n in $(seq 200); do grep -q admin_listening /run/log && return; sleep .05; done; cat /run/log; }\n";

#[test]
fn an_ordinary_user_is_referred_to_the_instance_of_root() {
    if !have_root() || !have("setpriv") {
        return;
    }
    let text = with_empty_run(&format!("{START}start; $USER $EVENER status 2>&1; kill %1; wait"));
    let expected = "evener: an instance runs at /run/evener/evener.sock, but its socket is for root (mode 0600): use sudo, or \
                    start it with --admin-group GROUP to admit the members of a group\n";
    assert_eq!(text, expected);
    // All instances are listed, also in a directory that the user cannot open.
    let text = with_empty_run(&format!(
        "{START}start; start; chmod 700 /run/evener; $USER $EVENER status 2>&1; kill %1 %2; wait"
    ));
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(
        text.lines().all(|line| line.contains("this user may not open its directory: use sudo")),
        "{text}"
    );
    let text = with_empty_run(&format!(
        "{START}start --admin-group {ID}; $USER $EVENER status 2>&1 | head -1; kill %1; wait"
    ));
    assert!(
        text.starts_with("evener ") && text.contains(", up "),
        "a member of the group must find it: {text}"
    );
}

#[test]
fn the_owner_of_another_users_socket_is_named() {
    if !have_root() || !have("setpriv") {
        return;
    }
    let text = with_empty_run(&format!(
        "{START}mkdir -m 700 /run/u; chown {ID} /run/u; touch /run/log; chmod 666 /run/log; export XDG_RUNTIME_DIR=/run/u\n\
         PREFIX=$USER; start; unset XDG_RUNTIME_DIR; $EVENER status 2>&1; kill %1; wait"
    ));
    let expected =
        "evener: no instance of this user is running; the socket /run/u/evener/evener.sock belongs to ";
    assert!(text.starts_with(expected), "{text}");
}

/// Listens at a path of the form of a default path, with escape sequences for a terminal in it, and never accepts:
/// the queue is full.
const LISTENER: &str = "import os, socket, sys, time\n\
    os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))\n\
    d = '/run/u/\\x1b[31mx/evener'; os.makedirs(d)\n\
    s = socket.socket(socket.AF_UNIX); s.bind(d + '/evener.sock'); os.chmod(d + '/evener.sock', 0o777); s.listen(0)\n\
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]\n\
    for c in clients:\n    c.setblocking(False)\n    try: c.connect(d + '/evener.sock')\n    except BlockingIOError: pass\n\
    open('/run/u/ready', 'w').close(); time.sleep(600)\n";

#[test]
fn a_socket_of_another_user_neither_blocks_a_command_nor_changes_the_terminal() {
    if !have_root() || !have("python3") {
        return;
    }
    let directory = Directory::new();
    let script = directory.write("listener.py", LISTENER).display().to_string();
    let text = with_empty_run(&format!(
        "mkdir -m 755 /run/u; chown {ID} /run/u; python3 {script} {ID} &\n\
         for n in $(seq 200); do [ -e /run/u/ready ] && break; sleep .05; done\n\
         timeout 20 $EVENER status 2>&1; echo status $?; \
         timeout 20 $EVENER status --socket /run/u/*x/evener/evener.sock 2>&1; echo status $?; kill %1; wait"
    ));
    let at = "/run/u/\\u{1b}[31mx/evener/evener.sock";
    let [automatic, first, given, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(
        automatic.starts_with(&format!(
            "evener: no instance of this user is running; the socket {at} belongs to "
        )),
        "{text}"
    );
    assert!(!automatic.contains("--socket"), "root must not be referred to a socket of anyone: {text}");
    assert!(given.starts_with(&format!("evener: {at} accepts no connections: ")), "{text}");
    assert_eq!((first, second), ("status 1", "status 1"));
}
