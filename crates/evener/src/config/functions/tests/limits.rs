//! Limits of what functions may use outside the memory that Lua counts.

use super::{outcome, outcome_of, outcome_within};
use crate::config::functions::actor::verdict;
use crate::config::functions::{Actor, Checker, Output, PoolSlots, TEXT_CHARS_MAX, Verdict};
use evener_core::ServerId;
use evener_core::event::Event;
use mlua::{IntoLua, Lua, MultiValue, Value};
use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// A list of 100000 times the same text of 1 MiB.
const LONG_LIST: &str =
    "local text, list = (\"x\"):rep(1 << 20), {}\nfor i = 1, 99999 do list[i] = text end\n";

fn is_refused(name: &str, body: &str, expected: &str) {
    let why = outcome(name, body).unwrap_err();
    assert!(why.contains(expected), "{name}: {why}");
}

#[test]
fn json_is_measured_before_it_is_copied() {
    is_refused("json", &format!("{LONG_LIST}json.encode(list)"), "json.encode makes at most");
    let keys = "local key, list = (\"x\"):rep(200000), {}\nfor i = 1, 90000 do list[i] = { [key] = 1 } end\n";
    is_refused("keys", &format!("{keys}json.encode(list)"), "json.encode makes at most");
}

#[test]
fn a_log_message_is_cut_before_it_is_joined() {
    let body = format!("{LONG_LIST}log.info(table.unpack(list))\nreturn 1");
    assert_eq!(outcome("log", &body).as_deref(), Ok("1"));
}

#[test]
fn arguments_of_programs_are_limited() {
    let body = format!("{LONG_LIST}exec(\"/bin/echo\", list)");
    is_refused("count", &body, "exec takes at most 1000 arguments");
    let body = "exec(\"/bin/echo\", { (\"x\"):rep(1 << 20) })";
    is_refused("bytes", body, "the arguments of exec have at most");
    is_refused("forbidden", &format!("{LONG_LIST}exec(\"/bin/rm\", list)"), "has to allow it");
    let body = "return exec(\"/bin/echo\", { \"a\", \"b\" }).output";
    assert_eq!(outcome("echo", body).as_deref(), Ok("a b\n"));
}

#[test]
fn header_fields_and_bytes_of_a_request_are_limited() {
    let many = "local all = {}\nfor i = 1, 30000 do all[\"x-\" .. i] = \"y\" end\n";
    is_refused(
        "many",
        &format!("{many}http.get(\"http://127.0.0.1:1/\", {{ headers = all }})"),
        "at most 100 headers",
    );
    let long = "http.get(\"http://127.0.0.1:1/\", { headers = { x = (\"y\"):rep(1 << 17) } })";
    is_refused("long", long, "at most 100 headers of 65536 bytes");
    is_refused("url", "http.get(\"http://127.0.0.1:1/\" .. (\"x\"):rep(1 << 17))", "a URL has at most");
    let body = "local x = (\"x\"):rep(1 << 20)\nhttp.post(\"http://127.0.0.1:1/\", x .. x)";
    is_refused("body", body, "http.post sends at most");
}

#[test]
fn positions_whose_difference_overflows_are_refused() {
    let list = "setmetatable({}, { __index = getmetatable, __metatable = \"\" })";
    for body in [
        format!("table.concat({list}, \"\", math.mininteger, math.maxinteger)"),
        format!("table.unpack({list}, math.mininteger, math.maxinteger)"),
        format!("table.move({list}, math.mininteger, -2, 1)"),
    ] {
        is_refused("positions", &body, "out of bounds");
    }
    assert_eq!(
        outcome("empty", "return table.concat({}, \"\", math.maxinteger, math.mininteger)").as_deref(),
        Ok("")
    );
}

/// Accepts connections and does not respond.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[test]
fn an_operation_ends_before_its_call_so_that_the_function_sees_the_failure() {
    let (_listener, address) = silent();
    let body = format!("local c = tcp.connect(\"{address}\", {{ timeout = \"50s\" }})\nreturn c:receive(1)");
    let response = outcome_within("silent", &body, Duration::from_secs(2), Duration::ZERO).unwrap();
    assert!(response.starts_with("nil no response within 1."), "{response}");
}

#[test]
fn the_time_of_an_operation_begins_with_its_permit() {
    let (_listener, address) = silent();
    let body = format!("return tcp.connect(\"{address}\", {{ timeout = \"1s\" }}) ~= nil");
    let response = outcome_within("queued", &body, Duration::from_secs(600), Duration::from_secs(2));
    assert_eq!(response.as_deref(), Ok("true"));
}

#[test]
fn an_operation_without_a_permit_is_an_error_and_not_a_failure() {
    let (_listener, address) = silent();
    let body = format!("return tcp.connect(\"{address}\") ~= nil");
    let why = outcome_within("starved", &body, Duration::from_secs(1), Duration::from_secs(600)).unwrap_err();
    assert!(why.contains("256 other operations of functions ran"), "{why}");
    let body =
        format!("local c = tcp.connect(\"{address}\", {{ timeout = \"50s\" }})\nreturn c:receive(1) ~= nil");
    let why = outcome_within("short", &body, Duration::from_secs(2), Duration::from_secs(1)).unwrap_err();
    assert!(why.contains("256 other operations of functions ran"), "{why}");
}

#[test]
fn errors_of_functions_are_cut() {
    let why = outcome("long", "error((\"x\"):rep(1 << 20))").unwrap_err();
    assert_eq!(why.chars().count(), TEXT_CHARS_MAX);
    let lua = Lua::new();
    let text = "x".repeat(1 << 20).into_lua(&lua).unwrap();
    let values = MultiValue::from_iter([Value::Boolean(false), text]);
    let Verdict::Fail(reason) = verdict(&values, "x.lua:1") else { panic!("the check did not fail") };
    assert_eq!(reason.chars().count(), TEXT_CHARS_MAX);
}

/// Starts functions. Returns their events, too.
fn start(name: &str, functions: &str) -> (Actor, mpsc::Receiver<Event>) {
    let file = std::env::temp_dir().join(format!("evener-script-{name}-{}.lua", std::process::id()));
    let service = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\" }\n";
    std::fs::write(&file, format!("{service}{functions}")).unwrap();
    let config = crate::config::load(&file).unwrap();
    let (sender, events) = mpsc::channel();
    let outputs = Arc::new(move |output| match output {
        Output::Event(event) => sender.send(event).is_ok(),
        Output::Change(_) => true,
    });
    let actor = Actor::start(config.program().unwrap(), 1, PoolSlots::new(), outputs).unwrap();
    (actor, events)
}

fn next(events: &mpsc::Receiver<Event>) -> Event {
    events.recv_timeout(Duration::from_secs(60)).unwrap()
}

fn run_check(checker: &Checker) -> Verdict {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(checker.check(0, ("s".into(), ServerId(0)), 1, Duration::from_secs(60)))
}

#[test]
fn functions_stay_stopped_after_three_threads_were_given_up() {
    let (actor, events) = start("stays", "every(\"10ms\", function() block(true) end)");
    for _ in 0..2 {
        let event = next(&events);
        assert!(matches!(event, Event::ScriptsRestarted { .. }), "{event:?}");
    }
    let event = next(&events);
    let Event::ScriptFailed { error, .. } = &event else { panic!("unexpected event: {event:?}") };
    assert!(error.contains("no function runs until a reload"), "{error}");
    assert_eq!(run_check(&actor.checker()), Verdict::Cancelled);
}

#[test]
fn functions_whose_values_fill_the_memory_are_started_anew() {
    let functions = "local all = {}\nevery(\"10ms\", function() for i = 1, 100 do all[#all + 1] = (\"x\"):rep(100000) .. #all end end)";
    let (_actor, events) = start("full", functions);
    let found = (0..1000).map(|_| next(&events)).find(|event| !matches!(event, Event::ScriptFailed { .. }));
    assert!(matches!(found, Some(Event::ScriptsRestarted { .. })), "{found:?}");
}

#[test]
fn a_check_that_does_not_run_is_cancelled() {
    let (actor, _events) = start("ended", "every(\"1h\", function() end)");
    let checker = actor.checker();
    assert_eq!(run_check(&checker), Verdict::Cancelled, "there is no such pool");
    drop(actor);
    assert_eq!(run_check(&checker), Verdict::Cancelled, "the functions ended");
}

#[test]
fn messages_of_functions_are_limited_by_the_second() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let outputs = Arc::new(move |_| counted.fetch_add(1, Ordering::Relaxed) < usize::MAX);
    let body = "for i = 1, 20000 do log.info(\"x\") end";
    let began = Instant::now();
    outcome_of("flood", body, Duration::from_secs(600), Duration::ZERO, outputs).unwrap();
    let count = count.load(Ordering::Relaxed) as u64;
    // Each second has 200 messages and a notice.
    let seconds = began.elapsed().as_secs() + 1;
    assert!((201..=seconds * 201).contains(&count), "{count} messages in {seconds} s");
}

#[test]
fn changes_above_the_maximum_of_a_second_wait() {
    let outputs = Arc::new(|output| {
        if let Output::Change(request) = output {
            request.complete(Some(1), |_, _, _, _| Ok(true));
        }
        true
    });
    let body = "for i = 1, 1500 do web:remove(\"a\") end\nreturn 1";
    let began = Instant::now();
    let made = outcome_of("changes", body, Duration::from_secs(600), Duration::ZERO, outputs);
    assert_eq!(made.as_deref(), Ok("1"));
    assert!(began.elapsed() >= Duration::from_secs(1), "all changes were made within a second");
}

#[test]
fn a_plain_search_takes_time_in_proportion_to_its_text() {
    let body = "local s, p = (\"a\"):rep(1 << 20), (\"a\"):rep(1 << 19) .. \"b\"
        for i = 1, 3 do if s:find(p, 1, true) then return i end end
        for i = 1, 10000 do end
        return s:find(\"a\", -1, true), s:find(\"\", 3, true)";
    assert_eq!(outcome("plain", body).as_deref(), Ok("1048576 3 2"));
}

#[test]
fn expect_finds_a_text_that_comes_in_parts_and_limits_it() {
    let (listener, address) = silent();
    let sender = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for part in ["ab", "ab", "c", "d"] {
            stream.write_all(part.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let body = format!(
        "local c = tcp.connect(\"{address}\", {{ timeout = 60 }})\nreturn c:expect(\"abc\"), c:expect(\"d\")"
    );
    assert_eq!(outcome("parts", &body).as_deref(), Ok("ababc d"));
    sender.join().unwrap();
    let (_listener, address) = silent();
    let body = format!("tcp.connect(\"{address}\"):expect((\"x\"):rep(5000))");
    is_refused("expect", &body, "expect takes a text of at most 4096 bytes");
}

#[test]
fn connections_of_a_call_are_limited() {
    let (_listener, address) = silent();
    let body = format!(
        "local all = {{}}
         for i = 1, 16 do all[i] = assert(tcp.connect(\"{address}\")) end
         local none, why = tcp.connect(\"{address}\")
         all[1]:close()
         return none, why, tcp.connect(\"{address}\") ~= nil"
    );
    let expected = "nil this call has 16 connections, the maximum: close those that are not needed true";
    assert_eq!(outcome("connections", &body).as_deref(), Ok(expected));
}

#[test]
fn a_text_is_not_repeated_without_an_end() {
    for count in ["\"0x7fffffffffffffff\"", "\" 9e18 \"", "math.maxinteger", "2^62"] {
        let why = outcome("repeat", &format!("string.rep(\"\", {count})")).unwrap_err();
        assert!(why.contains("string.rep would make more"), "{count}: {why}");
    }
}
