//! Errors of functions, and functions that do not end.

use crate::harness::{Evener, Server, wait_until};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn config(port: u16, check: &str, more: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{port}\", check = check.script {{ every = \"20ms\", rise = 1, fall = 1,
         {more} run = function(server, pool)
         {check}
         end }} }}"
    )
}

fn await_verdict(evener: &Evener, port: u16, verdict: &str) {
    let name = format!("127.0.0.1:{port}");
    wait_until(&format!("{name} to be {verdict}"), || {
        (evener.server(&name)["verdict"] == verdict).then_some(())
    });
}

#[test]
fn a_check_that_fails_keeps_the_verdict_or_marks_the_server_down() {
    let server = Server::named("server");
    let port = server.port;
    let evener = Evener::run(&config(port, "return false, \"not today\"", ""));
    await_verdict(&evener, port, "down");
    assert_eq!(evener.server(&format!("127.0.0.1:{port}"))["reason"], "not today");
    for (verdict, check) in [("down", "return false"), ("up", "return true")] {
        evener.reload(&config(port, check, ""));
        await_verdict(&evener, port, verdict);
        let before = evener.log_count("script_failed");
        evener.reload(&config(port, "error(\"broken\")", ""));
        wait_until("two errors", || (evener.log_count("script_failed") >= before + 2).then_some(()));
        assert_eq!(evener.server(&format!("127.0.0.1:{port}"))["verdict"], verdict);
    }
    evener.reload(&config(port, "error(\"broken\")", "on_error = \"down\","));
    await_verdict(&evener, port, "down");
    evener.expect_log(".lua:3: broken");
    let status = evener.status();
    let error = &status["scripts"]["errors"][0];
    assert!(error["script"].as_str().unwrap().contains(".lua:2"), "{error}");
    assert!(error["error"].as_str().unwrap().ends_with(".lua:3: broken"), "{error}");
    assert!(error["count"].as_u64().unwrap() >= 1, "{error}");
    let text = evener.run_command(&["status"]).stdout;
    let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("failed") && text.contains("broken"), "{text}");
}

#[test]
fn an_endless_loop_does_not_stop_other_checks() {
    expect_other_checks("while true do end");
}

#[test]
fn an_endless_loop_inside_the_library_does_not_stop_other_checks() {
    expect_other_checks("local s = (\"a\"):rep(100000) while true do s:find(\"b\") end");
    expect_other_checks("while true do pcall(string.find, (\"a\"):rep(60), (\"a*\"):rep(15) .. \"b\") end");
    expect_other_checks("table.sort({ 3, 2, 1 }, function() while true do end end)");
}

fn expect_other_checks(body: &str) {
    let (looping, other) = (Server::named("looping"), Server::named("other"));
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\",
           server \"127.0.0.1:{}\" {{ check = check.script {{ every = \"10ms\", timeout = \"60s\", run = function() {body} end }} }},
           server \"127.0.0.1:{}\" {{ check = check.script {{ every = \"10ms\", run = function() log.info(\"checked\") return true end }} }},
         }}",
        looping.port, other.port
    ));
    await_verdict(&evener, other.port, "up");
    // The loop runs for a second of its own before each of these events.
    wait_until("two stops", || (evener.log_count("it ran for more than 1s") >= 2).then_some(()));
    let checks = evener.log_count("text=checked");
    assert!(checks >= 4, "{body}: there were only {checks} other checks");
}

#[test]
fn the_connections_of_a_call_end_with_it() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let server = Server::start(move |mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        let _ = stream.write_all(b"PONG");
        let _ = stream.read(&mut [0]);
    });
    // With many tables, Lua collects garbage rarely.
    let evener = Evener::run(&format!(
        "local big = {{}} for i = 1, 100000 do big[i] = {{ i }} end
         service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", check = check.script {{ every = \"10ms\", fall = 1,
           run = function(server)
             local connection, why = tcp.connect(server.address)
             if not connection then return false, why .. #big end
             return connection:expect(\"PONG\") ~= nil
           end }} }}",
        server.port
    ));
    wait_until("400 checks", || (connections.load(Ordering::Relaxed) >= 400).then_some(()));
    assert_eq!(evener.log_count("server_down"), 0, "no check lacked a connection");
}
