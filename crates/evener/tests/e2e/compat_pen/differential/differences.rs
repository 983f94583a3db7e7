//! All differences between Evener's pen and Debian's pen. Each difference has a key that
//! `docs/migrate-from-pen.md` explains. Other behaviour is the same.

use super::programs::{ENDED, Implementation, Pen};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// A response that differs.
pub(super) struct Difference {
    key: &'static str,
    /// Commands, whose responses are joined.
    commands: &'static str,
    debian: &'static str,
    evener: &'static str,
}

impl Difference {
    /// Returns the known difference of these commands.
    pub(super) fn of(commands: &str) -> Option<&'static Self> {
        RESPONSES.iter().find(|known| known.commands == commands)
    }

    pub(super) fn commands(&self) -> &'static str {
        self.commands
    }

    /// Returns true if the difference exists only when Evener lacks a capability.
    pub(super) fn needs_missing_right(&self) -> bool {
        self.key == "transparent"
    }

    /// Returns true if the commands end Debian's pen.
    pub(super) fn ends_debian(&self) -> bool {
        self.debian == ENDED
    }

    pub(super) fn matches(&self, debian: &str, evener: &str) -> bool {
        (self.debian, self.evener) == (debian, evener)
    }

    pub(super) fn is_none(&self) -> bool {
        self.debian == self.evener
    }
}

const fn response(
    key: &'static str,
    commands: &'static str,
    debian: &'static str,
    evener: &'static str,
) -> Difference {
    Difference { key, commands, debian, evener }
}

const ACL_USAGE: &str = "write acl N permit|deny ADDRESS [MASK], ADDRESS6[/LENGTH] or country NN\n";
const KEEPS_INTERFACE: &str = "dsr_if: a running instance keeps its interface: write dsr_if on the command line (-O) or in \
    the file (-F), and start again\n";
const SERVER_USAGE: &str =
    "server: its number is missing, then acl, address, port, max, hard, blacklist, weight or prio\n";
const NOT_ALLOWED: &str = "service `pen`: source = \"client\" is not allowed here (Operation not permitted (os error 1)): give \
    the program CAP_NET_ADMIN (AmbientCapabilities= in its systemd unit, or run it as root)\n";

/// Responses that differ, in the order of their scripts.
pub(super) const RESPONSES: &[Difference] = &[
    // Access lists
    response("says-what-is-wrong", "acl", "", ACL_USAGE),
    response("says-what-is-wrong", "acl 1", "", ACL_USAGE),
    response(
        "says-what-is-wrong",
        "acl 1 permit",
        "",
        "acl: write acl N permit|deny ADDRESS [MASK], ADDRESS6[/LENGTH] or country NN\n",
    ),
    response("says-what-is-wrong", "acl 1 allow 10.0.0.1", "", "acl: `allow` is not permit or deny\n"),
    response("says-what-is-wrong", "acl 1 permit nonsense", "", "acl: `nonsense` is not an IPv4 address\n"),
    response("says-what-is-wrong", "acl 1 permit 10.0.0.1 mask", "", "acl: `mask` is not an IPv4 address\n"),
    response("says-what-is-wrong", "acl 1 permit ::g", "", "acl: `::g` is not an IPv6 prefix\n"),
    response(
        "says-what-is-wrong",
        "acl 1 permit country",
        "",
        "acl: country needs two letters, such as SE\n",
    ),
    response(
        "mask-with-many-holes",
        "acl 1 permit 10.0.0.1 255.0.0.1",
        "",
        "acl: the mask 255.0.0.1 has too many holes: more than 4096 networks\n",
    ),
    response(
        "says-what-is-wrong",
        "acl 10 permit 10.0.0.1",
        "",
        "`10` is not an access list between 0 and 9\n",
    ),
    response(
        "says-what-is-wrong",
        "acl -1 permit 10.0.0.1",
        "",
        "`-1` is not an access list between 0 and 9\n",
    ),
    response("says-what-is-wrong", "no acl 10", "", "`10` is not an access list between 0 and 9\n"),
    response("no-number", "no acl x", "", "`x` is not an access list between 0 and 9\n"),
    response(
        "no-number",
        "acl x permit 10.0.0.1; no acl 0",
        "",
        "`x` is not an access list between 0 and 9\n",
    ),
    response("crash", "no acl", ENDED, "acl: its number is missing\n"),
    response(
        "list-out-of-range",
        "client_acl 3; client_acl 12; client_acl; client_acl 0",
        "3\n0\n0\n0\n",
        "3\n`12` is not an access list between 0 and 9\n3\n0\n",
    ),
    response("list-out-of-range", "client_acl -1", "0\n", "`-1` is not an access list between 0 and 9\n"),
    response(
        "list-out-of-range",
        "control_acl 3; control_acl 10; control_acl; control_acl 0",
        "3\n0\n0\n0\n",
        "3\n`10` is not an access list between 0 and 9\n3\n0\n",
    ),
    response("no-number", "control_acl x", "0\n", "`x` is not an access list between 0 and 9\n"),
    // Numbers
    response(
        "no-number",
        "blacklist 7; blacklist x; blacklist; blacklist 30",
        "7\n0\n0\n30\n",
        "7\nblacklist: `x` is not a number\n7\n30\n",
    ),
    response("negative", "blacklist -1; blacklist 30", "-1\n30\n", "blacklist: `-1` is not a number\n30\n"),
    response(
        "more-words",
        "blacklist 7 8; blacklist 30",
        "7\n30\n",
        "blacklist: `8` is one word too many\n30\n",
    ),
    response("no-number", "clients_max x", "4000\n", "clients_max: `x` is not a number\n"),
    response("negative", "clients_max -1", "4000\n", "clients_max: `-1` is not a number\n"),
    response("no-number", "conn_max x", "1000\n", "conn_max: `x` is not a number\n"),
    response("no-number", "debug x", "0\n", "debug: `x` is not a number\n"),
    response(
        "no-number",
        "idle_timeout 5; idle_timeout x; idle_timeout; idle_timeout 0",
        "Idle timeout: 5 seconds\nIdle timeout: 0 seconds\nIdle timeout: 0 seconds\nIdle timeout: 0 seconds\n",
        "Idle timeout: 5 seconds\nidle_timeout: `x` is not a number\nIdle timeout: 5 seconds\nIdle timeout: 0 seconds\n",
    ),
    response(
        "negative",
        "idle_timeout -1",
        "Idle timeout: 0 seconds\n",
        "idle_timeout: `-1` is not a number\n",
    ),
    response("no-number", "idlers x", "Idlers: 0/0\n", "idlers: `x` is not a number\n"),
    response("too-little", "pending_max 0", "", "pending_max: at least 1\n"),
    response("no-number", "pending_max x", "", "pending_max: `x` is not a number\n"),
    response("too-little", "timeout 0; timeout 3", "0\n3\n", "timeout: at least 1\n3\n"),
    response(
        "no-number",
        "timeout 5; timeout x; timeout; timeout 3",
        "5\n0\n0\n3\n",
        "5\ntimeout: `x` is not a number\n5\n3\n",
    ),
    response(
        "no-number",
        "tracking 5; tracking x; tracking; tracking 0",
        "5\n0\n0\n0\n",
        "5\ntracking: `x` is not a number\n5\n0\n",
    ),
    response("no-number", "recent x", "", "recent: `x` is not a number\n"),
    response("negative", "recent -5", "", "recent: `-5` is not a number\n"),
    response("no-number", "close x", "Forcibly closing connection 0\n", "close: `x` is not a number\n"),
    response(
        "no-number",
        "connection x",
        "Connection 0:\nstate = 0\ndownfd = -1, upfd = -1\nclient = 0, server = 0\npend = 0\n",
        "connection: `x` is not a number\n",
    ),
    response("no-number", "socket x", "Socket 0 belongs to connection -1\n", "socket: `x` is not a number\n"),
    // Switches
    response("more-words", "hash x; no hash", "", "hash takes no argument such as `x`\n"),
    response(
        "more-words",
        "abort_on_error x; no abort_on_error",
        "",
        "abort_on_error takes no argument such as `x`\n",
    ),
    response(
        "more-words",
        "mode x",
        "no hash no roundrobin no stubborn no weight no prio\n",
        "mode takes no argument such as `x`\n",
    ),
    response("more-words", "no peek x", "", "peek takes no argument such as `x`\n"),
    response("manual-only", "block", "do_cmd: ignoring command starting with 'block'\n", ""),
    response(
        "manual-only",
        "delayed_forward",
        "do_cmd: ignoring command starting with 'delayed_forward'\n",
        "",
    ),
    response("says-what-is-wrong", "no", "", "no: what?\n"),
    response(
        "says-what-is-wrong",
        "no nonsense",
        "",
        "no nonsense: there is nothing of that name to turn off\n",
    ),
    response(
        "says-what-is-wrong",
        "no mode",
        "",
        "no mode: there is nothing of that name to turn off; did you mean `mode`?\n",
    ),
    response(
        "says-what-is-wrong",
        "tcp_fastclose up; tcp_fastclose x; tcp_fastclose off",
        "",
        "tcp_fastclose: `x` is not up, down, both or off\n",
    ),
    response(
        "nearest",
        "serverz",
        "do_cmd: ignoring command starting with 'serverz'\n",
        "do_cmd: ignoring command starting with 'serverz'; did you mean `server`?\n",
    ),
    response("transparent", "transparent; no transparent", "", NOT_ALLOWED),
    // Servers
    response("says-what-is-wrong", "server", "", SERVER_USAGE),
    response("says-what-is-wrong", "server 0 max", "", "server: `max` lacks its value\n"),
    response(
        "no-number",
        "server x max 1; server 0 max 0",
        "",
        "server: `x` is not a number of a server between 0 and 9999\n",
    ),
    response("no-number", "server 0 max x", "", "server: max is not a number: `x`\n"),
    response(
        "negative",
        "server -1 max 1",
        "",
        "server: `-1` is not a number of a server between 0 and 9999\n",
    ),
    response("negative", "server 0 max -3; server 0 max 0", "", "server: max is not a number: `-3`\n"),
    response(
        "negative",
        "server 0 weight -1; server 0 weight 0",
        "",
        "server: weight is not a number: `-1`\n",
    ),
    response("no-number", "server 0 blacklist x", "", "server: blacklist is not a number: `x`\n"),
    response(
        "half-done",
        "server 0 max 7 nonsense 5 hard 9; servers; server 0 max 0 hard 0",
        "0 addr 127.0.0.1 port 9 conn 0 max 7 hard 9 weight 0 prio 0 sx 0 rx 0\n\
         1 addr 127.0.0.2 port 9 conn 0 max 10 hard 20 weight 3 prio 4 sx 0 rx 0\n",
        "server: `nonsense` is not one of acl, address, port, max, hard, blacklist, weight or prio\n\
         0 addr 127.0.0.1 port 9 conn 0 max 0 hard 0 weight 0 prio 0 sx 0 rx 0\n\
         1 addr 127.0.0.2 port 9 conn 0 max 10 hard 20 weight 3 prio 4 sx 0 rx 0\n",
    ),
    response(
        "list-out-of-range",
        "server 0 acl 12; server 0 acl 0",
        "",
        "`12` is not an access list between 0 and 9\n",
    ),
    response(
        "source-says-why",
        "source no.invalid",
        "unable to set source address to 'no.invalid'",
        "unable to set source address to 'no.invalid': `no.invalid` does not resolve: failed to lookup address information: Name \
         or service not known\n",
    ),
    response(
        "says-what-is-wrong",
        "server 0 address no.invalid; server 0 address 127.0.0.1",
        "",
        "`no.invalid` does not resolve: failed to lookup address information: Name or service not known\n",
    ),
    response("port-by-name", "server 0 port x; server 0 port 9", "", "server: `x` is not a port\n"),
    response(
        "server-numbers",
        "server 10000 max 3",
        "",
        "server: `10000` is not a number of a server between 0 and 9999\n",
    ),
    response(
        "more-words",
        "servers x",
        "0 addr 127.0.0.1 port 9 conn 0 max 0 hard 0 weight 0 prio 0 sx 0 rx 0\n\
         1 addr 127.0.0.2 port 9 conn 0 max 10 hard 20 weight 3 prio 4 sx 0 rx 0\n",
        "servers takes no argument such as `x`\n",
    ),
    response("crash", "source", ENDED, "source: an address is missing\n"),
    // Files and addresses
    response("says-what-is-wrong", "include", "", "include: a file is missing\n"),
    response(
        "says-what-is-wrong",
        "include none",
        "",
        "none: it cannot be read: No such file or directory (os error 2)\n",
    ),
    response(
        "include-responses",
        "include lines; blacklist 30",
        "30\n",
        "9\nno hash no roundrobin no stubborn no weight no prio\n30\n",
    ),
    response(
        "tabs",
        "no hash; include tabs; mode; no hash",
        "no hash no roundrobin no stubborn no weight no prio\n",
        "hash no roundrobin no stubborn no weight no prio\n",
    ),
    response(
        "include-whole",
        "include bad; blacklist; blacklist 30",
        "8\n30\n",
        "bad:2: there is no command 'nonsense'\nbad:3: hash takes no argument such as `x`\n30\n30\n",
    ),
    response(
        "crash",
        "log none/log",
        ENDED,
        "service `pen`: request_log: none/log: No such file or directory (os error 2)\n",
    ),
    response(
        "crash",
        "log no.invalid:99",
        ENDED,
        "`no.invalid` does not resolve: failed to lookup address information: Name or service not known\n",
    ),
    response(
        "log-to-net",
        "log 127.0.0.1:9; log; no log",
        "127.0.0.1\n127.0.0.1\n",
        "127.0.0.1:9\n127.0.0.1:9\n",
    ),
    response(
        "more-words",
        "pid x; control x",
        "PID\n./control\n",
        "pid takes no argument such as `x`\ncontrol takes no argument such as `x`\n",
    ),
    response(
        "crash",
        "listen nonsense",
        ENDED,
        "`nonsense` is not a port to listen on: write [HOST:]PORT (1 to 65535, or a name such as http), or a path with a `/`\n",
    ),
    response("says-what-is-wrong", "write", "", "write: to which file? There is no -F\n"),
    response(
        "says-what-is-wrong",
        "write none/file",
        "",
        "none/file cannot be written: No such file or directory (os error 2)\n",
    ),
    response(
        "more-words",
        "exit now",
        "Exit is not enabled; restart with -X flag\n",
        "exit takes no argument such as `now`\n",
    ),
    // TLS, direct server return
    response("crash", "ssl_client_renegotiation_interval", ENDED, ""),
    response("crash", "ssl_ocsp_response", ENDED, "ssl_ocsp_response: a file is missing\n"),
    response("says-what-is-wrong", "ssl_option", "", "ssl_option: an option is missing\n"),
    response(
        "says-what-is-wrong",
        "ssl_option nonsense",
        "",
        "ssl_option: `nonsense` is not one of no_sslv2, no_sslv3, no_tlsv1, no_tlsv1.1, no_tlsv1.2, cipher_server_preference\n",
    ),
    response("says-what-is-wrong", "ssl_sni_path", "", "ssl_sni_path: a file is missing\n"),
    response("direct-server-return", "dsr_if", "", "dsr_if: an interface is missing\n"),
    response("direct-server-return", "dsr_if lo", ENDED, KEEPS_INTERFACE),
    response(
        "direct-server-return",
        "tarpit_acl 12",
        "tarpit_acl = 0",
        "`12` is not an access list between 0 and 9\n",
    ),
    response("crash", "idlers 2", ENDED, "Idlers: 0/2\n"),
];

/// Keys of differences in behaviour other than responses.
pub(super) const BEHAVIOURS: &[&str] = &[
    "first-server",
    "hash",
    "tracking-time",
    "refused-connect",
    "limit-leak",
    "networks",
    "denied-emergency",
    "host-bits",
    "abuse-list",
    "no-source",
    "status-without-file",
    "spoofed-header",
    "http-rewritten",
    "include-whole",
    "file-over-line",
    "written-file",
    "usage",
    "option-n",
    "penctl-usage",
    "statistics",
    "drain",
    "unix-clients",
    "client-order",
];

/// Runs a scenario with both programs, and checks that each program gives the result expected from it. The
/// guide explains the difference `key`.
#[track_caller]
pub(super) fn differs<T: PartialEq + Debug>(
    key: &str,
    options: &str,
    servers: &[String],
    debian: T,
    evener: T,
    scenario: impl Fn(&Pen) -> T,
) {
    assert!(BEHAVIOURS.contains(&key), "{key} is not listed");
    assert_ne!(debian, evener);
    for (by, expected) in [(Implementation::Debian, debian), (Implementation::Evener, evener)] {
        let pen = Pen::start(by, options, servers);
        assert_eq!(scenario(&pen), expected, "{by:?}");
        assert!(!pen.has_ended(), "{by:?} ended: {}", pen.printed());
    }
}

/// Sources of the tests of differences in behaviour.
const SOURCES: &str = concat!(
    include_str!("access.rs"),
    include_str!("choosing.rs"),
    include_str!("running.rs"),
    include_str!("traffic.rs")
);

#[test]
fn each_difference_is_explained_in_the_guide_and_tested() {
    let document = include_str!("../../../../../../docs/migrate-from-pen.md");
    let document = document.split("## Differences").nth(1).expect("the section");
    let name = |row: &str| Some(row.strip_prefix("| `")?.split_once("` | ")?.0.to_owned());
    let explained: Vec<String> = document.lines().filter_map(name).collect();
    let known = RESPONSES.iter().map(|response| response.key).chain(BEHAVIOURS.iter().copied());
    let known: BTreeSet<&str> = known.collect();
    assert_eq!(explained.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
    assert_eq!(explained.len(), known.len(), "a difference is explained twice: {explained:?}");
    for row in document.lines().filter(|row| row.starts_with("| `")) {
        assert_eq!(row.matches(" | ").count(), 4, "expected five columns: {row}");
    }
    for key in BEHAVIOURS {
        assert!(
            SOURCES.contains(&format!("\"{key}\"")) || SOURCES.contains(&format!("\"{key}: ")),
            "the difference is not tested: {key}"
        );
    }
}
