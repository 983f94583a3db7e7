//! Lines as operators and programs send them.

use super::*;
use evener_core::Random;

/// Executes commands, and returns their output: responses, and errors after `!`.
fn session(lines: &str) -> (PenSettings, String) {
    let mut settings = PenSettings::default();
    let mut output = String::new();
    for line in lines.split("; ") {
        let mut changed = settings.clone();
        let done = changed.execute(line);
        if done.is_ok() {
            settings = changed;
        }
        match done {
            Ok(steps) => output.extend(steps.into_iter().filter_map(|step| match step {
                Step::Respond(text) => Some(text.trim_end().to_owned() + "; "),
                Step::Warn(text) => Some(format!("({}) ", text.split(':').next().unwrap_or_default())),
                Step::Query(_) | Step::Do(_) => None,
            })),
            Err(error) => output += &format!("!{error}; "),
        }
    }
    (settings, output.trim_end_matches("; ").trim_end().to_owned())
}

#[track_caller]
fn check(lines: &str, expected: &str) {
    assert_eq!(session(lines).1, expected, "{lines}");
}

#[test]
fn numbers_are_set_and_shown() {
    check("blacklist; blacklist 7; blacklist", "30; 7; 7");
    check("timeout 9; tracking 60; debug 2", "9; 60; 2");
    check("idle_timeout; idle_timeout 5", "Idle timeout: 0 seconds; Idle timeout: 5 seconds");
    check("clients_max; clients_max 100; clients_max 5000; clients_max 10", "2048; 100; 5000; 5000");
    check("conn_max 1000; conn_max 20", "1000; 1000");
    check("client_acl; client_acl 3; client_acl", "0; 3; 3");
    check("pending_max 5", "");
}

#[test]
fn errors_change_nothing_and_have_a_reason() {
    for (line, part) in [
        ("blacklist x", "`x` is not a number"),
        ("blacklist -1", "`-1` is not a number"),
        ("timeout 0", "at least 1"),
        ("pending_max 0", "at least 1"),
        ("client_acl 12", "not an access list between 0 and 9"),
        ("control_acl -1", "not an access list between 0 and 9"),
        ("no acl", "its number is missing"),
        ("no acl 99", "not an access list between 0 and 9"),
        ("no", "what?"),
        ("no hsh", "did you mean `hash`?"),
        ("acl 1", "write acl N"),
        ("acl 11 permit 10.0.0.1", "not an access list between 0 and 9"),
        ("acl 1 allow 10.0.0.1", "`allow` is not permit or deny"),
        ("server", "its number is missing"),
        ("server x port 1", "not a number of a server"),
        ("server 10000 port 1", "not a number of a server"),
        ("server 0 max", "`max` lacks its value"),
        ("server 0 blacklist 5", "has no address and port yet"),
        ("log 'x", "the second ' is missing"),
        ("server 0 max 4 port 99999", "not a port"),
        ("server 0 colour red", "`colour` is not one of"),
        ("listen nonsense", "not a port to listen on"),
        ("source", "an address is missing"),
        ("tcp_fastclose sideways", "not up, down, both or off"),
        ("hash now", "takes no argument"),
        ("mode now", "takes no argument"),
        ("write", "There is no -F"),
        ("ssl_option no_tls", "is not one of"),
        ("ssl_ocsp_response", "a file is missing"),
        ("dsr_if", "an interface is missing"),
        ("tarpit_acl 12", "not an access list"),
        ("include /nonexistent/file", "cannot be read"),
    ] {
        let (settings, output) = session(line);
        assert!(output.starts_with('!') && output.contains(part), "{line}: {output}");
        assert_eq!(settings, PenSettings::default(), "{line}");
    }
}

#[test]
fn modes_are_shown_as_pen_shows_them() {
    check("mode", "no hash no roundrobin no stubborn no weight no prio");
    check("hash; prio; stubborn; no hash; mode", "no hash no roundrobin stubborn no weight prio");
}

#[test]
fn obsolete_commands_are_accepted_with_a_warning() {
    for word in ["poll", "epoll", "select", "kqueue", "block", "delayed_forward", "abort_on_error", "ascii"] {
        assert_eq!(session(word).1, format!("({word})"));
    }
    check("no abort_on_error; no ascii; no block; no delayed_forward; no peek", "");
}

#[test]
fn servers_are_set_in_any_order_and_the_table_grows() {
    let (settings, output) = session("server 3 port 81 address 10.0.0.1 max 2 hard 3 weight 4 prio -5 acl 6");
    assert_eq!((output.as_str(), settings.servers.len()), ("", 4));
    let slot = &settings.servers[3];
    assert!(slot.is_used() && !settings.servers[0].is_used());
    assert_eq!(slot.command(3), "server 3 acl 6 address 10.0.0.1 port 81 max 2 hard 3 weight 4 prio -5");
}

#[test]
fn exit_needs_to_be_enabled() {
    check("exit", "Exit is not enabled; restart with -X flag");
    let mut settings = PenSettings { exit_enabled: true, ..PenSettings::default() };
    assert_eq!(settings.execute("exit"), Ok(vec![Step::Do(InstanceAction::Exit)]));
}

#[test]
fn comments_and_empty_lines_have_no_effect() {
    check("# comment; ; hash # no tracking; mode #", "hash no roundrobin no stubborn no weight no prio");
}

#[test]
fn suggested_commands_exist() {
    for word in more::ALL {
        let error = PenSettings::default().execute(word).err().unwrap_or_default();
        assert!(!error.starts_with(UNKNOWN), "{word}");
    }
}

#[test]
fn words_in_quotes_may_have_spaces() {
    check("log '/tmp/my log'; log; web_stats \"/tmp/it's\"", "/tmp/my log; /tmp/my log; /tmp/it's");
    for text in ["plain", "two words", "it's", "#1", "say \"x\"", ""] {
        assert_eq!(split(&quote(text).expect(text)), Ok(vec![text]));
    }
    assert_eq!((quote("both ' and \""), quote("a\nline")), (None, None));
}

#[test]
fn every_line_gets_a_response() {
    let words: Vec<&str> = "no acl server blacklist permit deny 0 9 10.0.0.1 ::1/64 country SE port max hard \
        weight prio timeout x -1 99999999999 listen 127.0.0.1:1 :: [ ] / # \u{fffd} tcp_fastclose up ssl_option"
        .split_whitespace()
        .collect();
    let mut random = Random::seeded(7);
    let mut settings = PenSettings::default();
    for _ in 0..20_000 {
        let count = random.below(7);
        let line: Vec<&str> = (0..count).map(|_| words[random.below(words.len())]).collect();
        let mut changed = settings.clone();
        if changed.execute(&line.join(" ")).is_ok() {
            settings = changed;
        }
    }
}
