//! Every command, with valid and invalid arguments, sent to both programs in the same order.

use super::differences::{Difference, RESPONSES};
use super::programs::{ENDED, Implementation, Pen};
use crate::harness::{have, wait_until};

/// Steps by topic; `; ` separates the commands of a step. Each topic is run with two new programs.
const SCRIPTS: &[(&str, &[&str])] = &[
    ("lists", LISTS),
    ("numbers", NUMBERS),
    ("switches", SWITCHES),
    ("servers", SERVERS),
    ("files", FILES),
    ("the rest", REST),
];

const LISTS: &[&str] = &[
    "acl",
    "acl 1",
    "acl 1 permit",
    "acl 1 allow 10.0.0.1",
    "acl 1 permit 10.0.0.1",
    "acl 1 deny 10.0.0.0 255.0.255.0",
    "acl 1 permit nonsense",
    "acl 1 permit 10.0.0.1 mask",
    "acl 1 permit 10.0.0.1 255.0.0.1",
    "acl 1 permit ::1",
    "acl 1 deny 2001:db8::/32",
    "acl 1 permit ::g",
    "acl 1 permit country",
    "acl 10 permit 10.0.0.1",
    "acl -1 permit 10.0.0.1",
    "acl x permit 10.0.0.1; no acl 0",
    "no acl 1",
    "no acl 10",
    "no acl x",
    "no acl",
    "client_acl",
    "client_acl 9; client_acl; client_acl 0",
    "client_acl 3; client_acl 12; client_acl; client_acl 0",
    "client_acl -1",
    "control_acl; control_acl 9; control_acl; control_acl 0",
    "control_acl 3; control_acl 10; control_acl; control_acl 0",
    "control_acl x",
];

const NUMBERS: &[&str] = &[
    "blacklist; blacklist 7; blacklist; blacklist 0; blacklist 30",
    "blacklist 7; blacklist x; blacklist; blacklist 30",
    "blacklist -1; blacklist 30",
    "blacklist 7 8; blacklist 30",
    "clients_max; clients_max 100; clients_max",
    "clients_max 4000; clients_max 2100; clients_max",
    "clients_max x",
    "clients_max -1",
    "conn_max; conn_max 100; conn_max",
    "conn_max 1000; conn_max 600; conn_max",
    "conn_max x",
    "debug; debug 1; debug 0; debug",
    "debug x",
    "idle_timeout; idle_timeout 5; idle_timeout; idle_timeout 0",
    "idle_timeout 5; idle_timeout x; idle_timeout; idle_timeout 0",
    "idle_timeout -1",
    "idlers; idlers 0",
    "idlers x",
    "pending_max; pending_max 10; pending_max 100",
    "pending_max 0",
    "pending_max x",
    "timeout; timeout 5; timeout; timeout 3",
    "timeout 0; timeout 3",
    "timeout 5; timeout x; timeout; timeout 3",
    "tracking; tracking 60; tracking; tracking 0",
    "tracking 5; tracking x; tracking; tracking 0",
    "recent; recent 0; recent 10",
    "recent x",
    "recent -5",
    "close; close 0; close 3; close 99999; close -1",
    "close x",
    "connection; connection 0; connection 3; connection 99999; connection -1",
    "connection x",
    "socket; socket 5; socket 99999; socket -1",
    "socket x",
];

const SWITCHES: &[&str] = &[
    "mode",
    "hash; mode; no hash; mode",
    "roundrobin; mode; no roundrobin; mode",
    "stubborn; mode; no stubborn; mode",
    "weight; mode; no weight; mode",
    "prio; mode; no prio; mode",
    "hash; roundrobin; stubborn; weight; prio; mode",
    "no hash; no roundrobin; no stubborn; no weight; no prio; mode",
    "hash x; no hash",
    "mode x",
    "abort_on_error; no abort_on_error",
    "abort_on_error x; no abort_on_error",
    "ascii; no ascii",
    "dummy; no dummy",
    "http; no http",
    "keepalive; no keepalive",
    "peek; no peek",
    "no peek x",
    "tcp_nodelay; no tcp_nodelay",
    "transparent; no transparent",
    "tcp_fastclose; tcp_fastclose up; tcp_fastclose down; tcp_fastclose both; tcp_fastclose off",
    "tcp_fastclose up; tcp_fastclose x; tcp_fastclose off",
    "block",
    "no block",
    "delayed_forward",
    "no delayed_forward",
    "epoll; kqueue; poll; select; epoll",
    "no",
    "no nonsense",
    "no mode",
    "nonsense",
    "serverz",
    "#nonsense; # mode",
];

const SERVERS: &[&str] = &[
    "servers",
    "server",
    "server 0",
    "server 0 max",
    "server 0 max 5 hard 8; servers; server 0 max 0 hard 0; servers",
    "server 0 weight 4 prio -5; servers; server 0 weight 0 prio 0",
    "server 0 address ::1; servers; server 0 address 127.0.0.1; servers",
    "server 0 port 11; servers; server 0 port 9",
    "server 1 prio 6 max 11 hard 21 weight 5; servers; server 1 hard 20 weight 3 max 10 prio 4; servers",
    "server 0 acl 3; server 0 acl 0",
    "server 0 blacklist 10; server 0 blacklist 0",
    "server x max 1; server 0 max 0",
    "server 0 max x",
    "server -1 max 1",
    "server 0 max -3; server 0 max 0",
    "server 0 weight -1; server 0 weight 0",
    "server 0 blacklist x",
    "server 0 max 7 nonsense 5 hard 9; servers; server 0 max 0 hard 0",
    "server 0 acl 12; server 0 acl 0",
    "server 0 address no.invalid; server 0 address 127.0.0.1",
    "server 0 port x; server 0 port 9",
    "servers x",
    "source 127.0.0.9; source ::1",
    "source no.invalid",
    "no source",
    "source",
    "server 3 max 3; servers",
    "server 3 address 127.0.0.4 port 99; servers",
    "server 10000 max 3",
];

const FILES: &[&str] = &[
    "pid",
    "control",
    "listen",
    "log; log requests; log; no log; log",
    "web_stats; web_stats page; web_stats; no web_stats; web_stats",
    "include",
    "include none",
    "include lines; blacklist 30",
    "include bad; blacklist; blacklist 30",
    "no hash; include tabs; mode; no hash",
    "include comments; servers; mode; no weight",
    "log none/log",
    "log no.invalid:99",
    "log 127.0.0.1:9; log; no log",
    "pid x; control x",
    "listen nonsense",
    "write",
    "write file",
    "write none/file",
    "exit",
    "exit now",
];

const REST: &[&str] = &[
    "ssl_ciphers; ssl_ciphers HIGH; ssl_ciphers",
    "ssl_client_renegotiation_interval 5",
    "ssl_client_renegotiation_interval",
    "ssl_ocsp_response file",
    "ssl_ocsp_response",
    "ssl_option no_sslv2; ssl_option no_sslv3; ssl_option no_tlsv1; ssl_option no_tlsv1.1; ssl_option no_tlsv1.2",
    "ssl_option cipher_server_preference",
    "ssl_option",
    "ssl_option nonsense",
    "ssl_sni_path .",
    "ssl_sni_path",
    "tarpit_acl; tarpit_acl -1",
    "tarpit_acl 3; tarpit_acl -1",
    "tarpit_acl 12",
    "dsr_ip; dsr_ip 10.0.0.1",
    "dsr_if",
    "dsr_if lo",
    "idlers 2",
];

/// Verbs that penctl(1) documents, and undocumented verbs.
const VERBS: &[&str] = &[
    "abort_on_error",
    "acl",
    "ascii",
    "blacklist",
    "block",
    "client_acl",
    "clients_max",
    "close",
    "connection",
    "conn_max",
    "control",
    "control_acl",
    "debug",
    "delayed_forward",
    "dsr_if",
    "dsr_ip",
    "dummy",
    "epoll",
    "exit",
    "hash",
    "http",
    "idle_timeout",
    "idlers",
    "include",
    "keepalive",
    "kqueue",
    "listen",
    "log",
    "mode",
    "no abort_on_error",
    "no acl",
    "no ascii",
    "no block",
    "no delayed_forward",
    "no dummy",
    "no hash",
    "no http",
    "no keepalive",
    "no log",
    "no peek",
    "no prio",
    "no roundrobin",
    "no stubborn",
    "no tcp_nodelay",
    "no transparent",
    "no web_stats",
    "no weight",
    "peek",
    "pending_max",
    "pid",
    "poll",
    "prio",
    "recent",
    "roundrobin",
    "select",
    "server",
    "servers",
    "socket",
    "source",
    "ssl_ciphers",
    "ssl_client_renegotiation_interval",
    "ssl_ocsp_response",
    "ssl_option",
    "ssl_sni_path",
    "stubborn",
    "tarpit_acl",
    "tcp_fastclose",
    "tcp_nodelay",
    "timeout",
    "tracking",
    "transparent",
    "web_stats",
    "weight",
    "write",
];

/// Returns the joined responses to a step, or `ENDED` if the step ends the program.
fn responses(pen: &Pen, step: &str, ends: bool) -> String {
    let responses: String = step.split("; ").map(|command| pen.comparable_response(command)).collect();
    if !ends {
        return responses;
    }
    wait_until("pen to end", || pen.has_ended().then_some(()));
    ENDED.to_owned()
}

fn start(by: Implementation) -> Pen {
    let pen = Pen::start(by, "", &["127.0.0.1:9".into(), "127.0.0.2:9:10:20:3:4".into()]);
    pen.write("lines", "blacklist 9\nmode\n");
    pen.write("bad", "blacklist 8\nnonsense\nhash x\n");
    pen.write(
        "comments",
        "# a comment\n\n  \nno acl 1 # and one more\r\nserver 0 max 4 # four\nserver 0 max 0 #none\n   weight #\n",
    );
    pen.write("tabs", "\thash\n");
    pen
}

/// Returns true if the kernel permits the use of clients' addresses, so that no error is reported.
fn may_be_transparent() -> bool {
    let permitted = rustix::thread::capabilities(None).unwrap().permitted;
    permitted.contains(rustix::thread::CapabilitySet::NET_ADMIN)
}

/// Runs the steps of a topic with both programs, and compares the responses.
#[track_caller]
fn compare(topic: &str) {
    if !have("pen") {
        return;
    }
    let (_, steps) = SCRIPTS.iter().find(|(name, _)| *name == topic).unwrap();
    let (debian, evener) = (start(Implementation::Debian), start(Implementation::Evener));
    let mut wrong = Vec::new();
    for step in *steps {
        let known =
            Difference::of(step).filter(|known| !known.needs_missing_right() || !may_be_transparent());
        let ends = known.is_some_and(Difference::ends_debian);
        let (of_debian, of_evener) = (responses(&debian, step, ends), responses(&evener, step, false));
        let is_expected = known.map_or(of_debian == of_evener, |known| known.matches(&of_debian, &of_evener));
        if !is_expected {
            wrong.push(format!("{step}\n  Debian {of_debian:?}\n  Evener {of_evener:?}"));
        }
        if ends {
            // Both programs start again with the initial settings.
            debian.start_process();
            evener.signal("KILL");
            evener.start_process();
        }
    }
    assert!(wrong.is_empty(), "{topic}:\n{}", wrong.join("\n"));
    assert!(!debian.has_ended() && !evener.has_ended());
}

#[test]
fn responses_about_access_lists_are_the_same() {
    compare("lists");
}

#[test]
fn responses_about_numbers_are_the_same() {
    compare("numbers");
}

#[test]
fn responses_about_switches_are_the_same() {
    compare("switches");
}

#[test]
fn responses_about_servers_are_the_same() {
    compare("servers");
}

#[test]
fn responses_about_files_and_addresses_are_the_same() {
    compare("files");
}

#[test]
fn responses_to_other_commands_are_the_same() {
    compare("the rest");
}

#[test]
fn every_command_and_every_difference_is_in_a_script() {
    let steps: Vec<&str> = SCRIPTS.iter().flat_map(|(_, steps)| steps.iter().copied()).collect();
    for difference in RESPONSES {
        let commands = difference.commands();
        assert!(steps.contains(&commands), "no script has: {commands}");
        assert!(!difference.is_none(), "both responses are the same: {commands}");
    }
    for verb in VERBS {
        let requested = |command: &str| command == *verb || command.starts_with(&format!("{verb} "));
        assert!(steps.iter().any(|step| step.split("; ").any(requested)), "no script has: {verb}");
    }
}
