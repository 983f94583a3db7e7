//! Bounds of functions.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod limits;

use super::actor::prepare;
use super::call::{Call, Failure, run};
use super::{Actor, Output, Outputs, PoolSlots, Runtime};
use evener_core::event::Event;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Number of functions that were run.
static RUNS: AtomicUsize = AtomicUsize::new(0);

/// True after the first call of `block`.
static IS_BLOCKED: AtomicBool = AtomicBool::new(false);

/// Blocks the thread of the functions at its first call, or always, as a library function that has no bound would.
pub(super) fn block(_: &mlua::Lua, is_always: Option<bool>) -> mlua::Result<()> {
    if is_always == Some(true) || !IS_BLOCKED.swap(true, Ordering::Relaxed) {
        std::thread::sleep(Duration::from_secs(3600));
    }
    Ok(())
}

/// Runs the body of a function, and returns what it returned as text, or the error.
fn outcome(name: &str, body: &str) -> Result<String, String> {
    outcome_within(name, body, Duration::from_secs(600), Duration::ZERO)
}

fn outcome_within(name: &str, body: &str, limit: Duration, no_permit: Duration) -> Result<String, String> {
    outcome_of(name, body, limit, no_permit, Arc::new(|_| true))
}

/// Runs a body with a time limit. It gets no permit for operations in the first time.
fn outcome_of(
    name: &str,
    body: &str,
    limit: Duration,
    no_permit: Duration,
    outputs: Outputs,
) -> Result<String, String> {
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("evener-script-{name}-{}-{number}.lua", std::process::id()));
    let service = "local web = pool \"web\" { \"10.0.0.2:80\" } service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\" }";
    std::fs::write(&file, format!("{service} every(\"1h\", function()\n{body}\nend)")).unwrap();
    let loaded = crate::config::load(&file);
    std::fs::remove_file(&file).unwrap();
    let config = loaded.unwrap();
    let program = config.program().unwrap();
    let runtime = Arc::new(Runtime::new(1, PoolSlots::new(), outputs, BTreeSet::from(["/bin/echo".into()])));
    let lua = prepare(program, &runtime).unwrap();
    let (function, script) = program.function(0).unwrap();
    let call = Arc::new(Call::new(script, None, limit));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let permits =
        Arc::clone(&runtime.operations).try_acquire_many_owned(super::OPERATIONS_MAX as u32).unwrap();
    let values = tokio.block_on(async {
        tokio::spawn(async move {
            tokio::time::sleep(no_permit).await;
            drop(permits);
        });
        run(&lua, &runtime, function, (), call).await
    });
    let values = values.map_err(|(Failure::Error(why) | Failure::NoResponse(why))| why)?;
    Ok(values.iter().map(|value| value.to_string().unwrap()).collect::<Vec<_>>().join(" "))
}

fn is_stopped(name: &str, body: &str) {
    let why = outcome(name, body).unwrap_err();
    assert!(why.contains("it ran for"), "{name}: {why}");
}

#[test]
fn an_endless_loop_is_stopped_with_its_line() {
    let why = outcome("loop", "local x = 1\nwhile true do end").unwrap_err();
    assert!(why.contains(".lua:3: it ran for more than 1s in all"), "{why}");
}

#[test]
fn pcall_does_not_catch_the_bounds() {
    is_stopped("pcall", "while true do pcall(function() while true do end end) end");
    let body = "local function f() pcall(f) return f() end\nwhile true do pcall(f) end";
    let why = outcome("nested", body).unwrap_err();
    assert!(why.contains("it ran for") || why.contains("16 MiB"), "{why}");
}

#[test]
fn an_endless_loop_inside_the_library_is_stopped() {
    is_stopped("sort", "table.sort({ 3, 2, 1 }, function() while true do end end)");
    is_stopped("gsub", "string.gsub((\"a\"):rep(100), \"a\", function() while true do end end)");
    is_stopped("tostring", "tostring(setmetatable({}, { __tostring = function() while true do end end }))");
    is_stopped(
        "caught",
        "local t = setmetatable({}, { __tostring = function() while true do pcall(error) end end })\nwhile true do pcall(tostring, t) end",
    );
    is_stopped(
        "concat",
        "table.concat(setmetatable({}, { __index = function() while true do end end }), '', 1, 2)",
    );
    is_stopped("find", "local s = (\"a\"):rep(100000)\nwhile true do s:find(\"b\") end");
}

#[test]
fn a_call_pauses_inside_pcall() {
    let body = "return pcall(function() local x = time.monotonic() while time.monotonic() < x + 0.2 do end return 1 end)";
    assert_eq!(outcome("pause", body).as_deref(), Ok("true 1"));
    let body = "return pcall(function() time.sleep(0.01) return 1 end)";
    assert_eq!(outcome("sleep", body).as_deref(), Ok("true 1"));
    let body =
        "local t = {} return pcall(function() for i = 1, 100000 do t[#t + 1] = { i } end return 1 end)";
    assert_eq!(outcome("grow", body).as_deref(), Ok("true 1"));
    let body = "local t = {} for i = 1, 50000 do t[#t + 1] = { i } end return 1";
    assert_eq!(outcome("big", body).as_deref(), Ok("1"));
}

#[test]
fn a_pattern_that_explodes_is_an_error() {
    let why = outcome("pattern", "return ((\"a\"):rep(60)):find((\"a*\"):rep(15) .. \"b\")").unwrap_err();
    assert!(why.contains("the pattern needs more than"), "{why}");
}

#[test]
fn large_values_are_errors() {
    for (name, body, expected) in [
        ("rep", "return (\"x\"):rep(1e9)", "string.rep would make more"),
        ("empty", "return (\"\"):rep(1e9)", "string.rep would make more"),
        ("move", "table.move({}, 1, 1e9, 2)", "longer than"),
        ("text", "table.move({}, 1, \"1000000000\", 2)", "longer than"),
        ("range", "table.concat(setmetatable({}, { __index = type }), \"\", 1, 1e9)", "longer than"),
        ("unpack", "table.unpack({}, 1, 1e9)", "longer than"),
        (
            "lengths",
            "local n = 0\ntable.insert(setmetatable({}, { __len = function() n = n + 1 return n > 1 and 0 or 1e9 end }), 1, 1)",
            "longer than",
        ),
        (
            "caught",
            "while true do pcall(function() local t = {} while true do t[#t + 1] = { t } end end) end",
            "16 MiB",
        ),
        ("length", "table.remove(setmetatable({}, { __len = function() return 1e9 end }), 1)", "longer than"),
        ("memory", "local t = {}\nfor i = 1, 1e9 do t[i] = { i } end", "16 MiB"),
        ("recursion", "local function f() return 1 + f() end\nreturn f()", "16 MiB"),
        ("finalizer", "setmetatable({}, { __gc = function() end })", "__gc"),
        ("coroutine", "return coroutine.create(print)", "`coroutine` is not defined"),
        ("load", "return load(\"return 1\")", "`load` is not defined"),
        ("declare", "pool \"x\" { \"10.0.0.1:80\" }", "cannot be called"),
    ] {
        let why = outcome(name, body).unwrap_err();
        assert!(why.contains(expected), "{name}: {why}");
    }
}

#[test]
fn the_bounded_library_does_what_the_original_does() {
    for (name, body, expected) in [
        ("find", "return (\"hello world\"):find(\"o w\", 1, true)", "5 7"),
        ("captures", "return (\"key = value\"):match(\"^(%w+)%s*=%s*(%w+)$\")", "key value"),
        ("position", "return (\"abc\"):find(\"()b()\")", "2 2 2 3"),
        ("frontier", "return (\"THE (quick) fox\"):find(\"%f[%a]%a+%f[%A]\", 5)", "6 10"),
        ("balance", "return (\"f(a(b)c)d\"):match(\"%b()\")", "(a(b)c)"),
        ("gsub", "return (\"hello world\"):gsub(\"o\", \"0\", 1)", "hell0 world 1"),
        ("empty", "return (\"abc\"):gsub(\"\", \"-\")", "-a-b-c- 4"),
        ("star", "return (\"abc\"):gsub(\"%w*\", \"x\")", "x 1"),
        ("swap", "return (\"a b\"):gsub(\"(%w) (%w)\", \"%2 %1\")", "b a 1"),
        ("table", "return (\"$x $y\"):gsub(\"%$(%w)\", { x = 1 })", "1 $y 2"),
        (
            "gmatch",
            "local t = {}\nfor k, v in (\"a=1, b=2\"):gmatch(\"(%w)=(%w)\") do t[#t + 1] = k .. v end\nreturn table.concat(t, \" \")",
            "a1 b2",
        ),
        ("words", "local n = 0\nfor _ in (\"one two\"):gmatch(\"%a*\") do n = n + 1 end\nreturn n", "2"),
        (
            "sort",
            "local t = { 3, 1, 2 }\ntable.sort(t, function(a, b) return a > b end)\nreturn table.unpack(t)",
            "3 2 1",
        ),
        ("pcall", "return pcall(error, \"x\")", "false x"),
        ("json", "return json.encode(json.decode(\"[1,{\\\"a\\\":null}]\"))", "[1,{\"a\":null}]"),
        ("sleep", "time.sleep(0.01)\nreturn time.now() > 0", "true"),
    ] {
        assert_eq!(outcome(name, body).as_deref(), Ok(expected), "{name}");
    }
}

#[test]
fn an_operation_that_fails_returns_the_reason() {
    let body = "local r = http.get(\"http://127.0.0.1:1/\")\nreturn r.ok, r.error";
    assert_eq!(outcome("refused", body).as_deref(), Ok("false connect: refused"));
    let why = outcome("exec", "exec(\"/bin/true\")").unwrap_err();
    assert!(why.contains("has to allow it"), "{why}");
}

#[test]
fn a_thread_that_a_call_blocks_is_replaced() {
    let file = std::env::temp_dir().join(format!("evener-script-blocked-{}.lua", std::process::id()));
    let service = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\" }\n";
    let functions = "every(\"10ms\", function() block() log.info(\"not blocked\") end)";
    std::fs::write(&file, format!("{service}{functions}")).unwrap();
    let config = crate::config::load(&file).unwrap();
    let (sender, outputs) = mpsc::channel();
    let outputs_of_thread = Arc::new(move |output| sender.send(output).is_ok());
    let actor = Actor::start(config.program().unwrap(), 1, PoolSlots::new(), outputs_of_thread).unwrap();
    let next = || match outputs.recv_timeout(Duration::from_secs(60)).unwrap() {
        Output::Event(event) => event,
        Output::Change(_) => panic!("a change was requested"),
    };
    let event = next();
    let Event::ScriptsRestarted { script } = &event else { panic!("unexpected event: {event:?}") };
    assert!(script.ends_with(".lua:2"), "{script}");
    let event = next();
    assert!(matches!(&event, Event::ScriptMessage { text, .. } if text == "not blocked"), "{event:?}");
    std::fs::remove_file(&file).unwrap();
    drop(actor);
}

#[test]
fn a_handler_that_causes_the_event_that_it_handles_is_slowed_down() {
    let file = std::env::temp_dir().join(format!("evener-script-event-{}.lua", std::process::id()));
    let service = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\" }\n";
    let functions = "on(\"script_message\", function() log.info(\"again\") end)
        every(\"500ms\", function() log.info(\"first\") end)";
    std::fs::write(&file, format!("{service}{functions}")).unwrap();
    let config = crate::config::load(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let (sender, outputs) = mpsc::channel();
    let outputs_of_thread = Arc::new(move |output| sender.send(output).is_ok());
    let actor = Actor::start(config.program().unwrap(), 1, PoolSlots::new(), outputs_of_thread).unwrap();
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_secs(2) {
        if let Ok(Output::Event(event)) = outputs.recv_timeout(Duration::from_millis(10)) {
            count += 1;
            actor.on_event(&event);
        }
    }
    // Each second has at most 100 handled events and a few of the timer.
    let seconds = began.elapsed().as_secs() + 1;
    assert!((2..=seconds * 110).contains(&count), "{count} events in {seconds} s");
}
