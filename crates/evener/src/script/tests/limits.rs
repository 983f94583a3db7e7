//! Limits of what functions may use outside the memory that Lua counts.

use super::outcome;

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
