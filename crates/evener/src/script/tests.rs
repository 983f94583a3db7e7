//! Bounds of functions.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::actor::prepare;
use super::call::{Call, run};
use super::{PoolSlots, Runtime};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Runs the body of a function, and returns what it returned as text, or the error.
fn outcome(name: &str, body: &str) -> Result<String, String> {
    let file = std::env::temp_dir().join(format!("evener-script-{name}-{}.lua", std::process::id()));
    let service = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\" }";
    std::fs::write(&file, format!("{service} every(\"1h\", function()\n{body}\nend)")).unwrap();
    let loaded = crate::config::load(&file);
    std::fs::remove_file(&file).unwrap();
    let config = loaded.unwrap();
    let program = config.program().unwrap();
    let runtime = Arc::new(Runtime::new(1, PoolSlots::new(), Arc::new(|_| true), BTreeSet::new()));
    let lua = prepare(program, &runtime).unwrap();
    let (function, script) = program.function(0).unwrap();
    let call = Arc::new(Call::new(script, None));
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let values = tokio.block_on(run(&lua, &runtime, function, (), call, Duration::from_secs(600)))?;
    Ok(values.iter().map(|value| value.to_string().unwrap()).collect::<Vec<_>>().join(" "))
}

fn is_stopped(name: &str, body: &str) {
    let why = outcome(name, body).unwrap_err();
    assert!(why.contains("it ran for"), "{name}: {why}");
}

#[test]
fn an_endless_loop_is_stopped_with_its_line() {
    let why = outcome("loop", "local x = 1\nwhile true do end").unwrap_err();
    assert!(why.contains(".lua:3: it ran for more than 1s"), "{why}");
}

#[test]
fn pcall_does_not_catch_the_end_of_the_budget() {
    is_stopped("pcall", "while true do pcall(function() while true do end end) end");
    is_stopped("nested", "local function f() pcall(f) return f() end\nwhile true do pcall(f) end");
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
    is_stopped("find", "local s = (\"a\"):rep(100000)\nwhile true do s:find(\"b\") end");
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
        ("length", "table.remove(setmetatable({}, { __len = function() return 1e9 end }), 1)", "longer than"),
        ("memory", "local t = {}\nfor i = 1, 1e9 do t[i] = { i } end", "memory"),
        ("recursion", "local function f() return 1 + f() end\nreturn f()", ""),
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
