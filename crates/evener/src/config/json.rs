//! Configurations and servers as JSON, for the admin API. A server of a request passes the same checks as a server of
//! a file: its keys are read by the same reader, and the configuration with it is printed and loaded.

use super::build::read_server;
use super::fields::{Fields, Reading};
use super::raw::{Made, Run, Table, Value};
use super::{Location, load, lua, print};
use crate::scope;
use evener_core::Endpoint;
use evener_core::spec::{ServerSpec, Spec};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Map, Value as Json};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Maximum number of messages about a request.
const MESSAGES_MAX: usize = 20;

/// Reads a server of a request: its address, and the keys that a server of a file has.
pub(crate) fn server_of_json(address: &str, settings: &Map<String, Json>) -> Result<ServerSpec, Vec<String>> {
    let server = match scope::server(address) {
        Ok(server) if matches!(server.endpoint, Endpoint::Host { .. }) => {
            return Err(vec![format!(
                "a server that is added needs an address, got the host name {address:?}"
            )]);
        }
        Ok(server) => server,
        Err(error) => return Err(vec![super::server_problem(address, &error, 80)]),
    };
    let table = table_of(settings);
    let (run, location) = (Run::default(), Location::new("request", 1));
    let reading = Reading::new(&run);
    let mut fields = Fields::of_server(&reading, &table, &location, address, &[]);
    let server = read_server(server, None, &mut fields);
    fields.finish();
    if reading.is_valid() {
        return Ok(server);
    }
    let problems = reading.into_problems().into_iter().take(MESSAGES_MAX);
    Err(problems.map(super::Problem::into_message).collect())
}

/// Checks a configuration as a whole, after a server was added to one of its pools.
pub(crate) fn check_with_server(spec: &Spec, pool: &str, server: &ServerSpec) -> Result<(), Vec<String>> {
    let mut with = spec.clone();
    let found = with.pools.iter_mut().find(|one| *one.name == *pool);
    found.into_iter().for_each(|pool| pool.servers.push(server.clone()));
    let problems = match problems_of(&with) {
        problems if problems.is_empty() => return Ok(()),
        problems => problems,
    };
    // Problems that the configuration has without the server, too, are not problems of the server.
    let before = problems_of(spec);
    let new: Vec<String> =
        problems.into_iter().filter(|problem| !before.contains(problem)).take(MESSAGES_MAX).collect();
    if new.is_empty() { Ok(()) } else { Err(new) }
}

/// Returns the problems of a configuration, without locations.
fn problems_of(spec: &Spec) -> Vec<String> {
    let loaded = in_memory(&print(spec, &|_| None)).map_err(|error| vec![error.to_string()]);
    let loaded = loaded.and_then(|(_file, path)| {
        load(&path).map(drop).map_err(|found| found.into_iter().map(super::Problem::into_message).collect())
    });
    loaded.err().unwrap_or_default()
}

/// Returns a file in memory with a text, and its path.
fn in_memory(text: &str) -> std::io::Result<(File, PathBuf)> {
    let mut file = File::from(memfd_create("configuration", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Ok((file, path))
}

/// Returns a specification as JSON: what the printed configuration declares.
pub(crate) fn spec_as_json(spec: &Spec) -> Result<Json, String> {
    let (_file, path) = in_memory(&print(spec, &|_| None)).map_err(|error| error.to_string())?;
    let run = lua::run(&path, None).map_err(|problems| {
        problems.into_iter().next().map_or_else(String::new, super::Problem::into_message)
    })?;
    let declared =
        |all: &[std::sync::Arc<Made>]| -> Json { all.iter().map(|made| declaration(made)).collect() };
    let mut json = Map::new();
    let settings = [("admin", run.admin()), ("xdp", run.xdp()), ("ipvs", run.ipvs())];
    for (name, made) in settings {
        json.extend(made.map(|made| (name.to_owned(), table(made.table(), "values"))));
    }
    json.insert("pools".into(), declared(run.pools()));
    json.insert("services".into(), declared(run.services()));
    Ok(json.into())
}

/// Returns a pool or service, with its name and its servers.
fn declaration(made: &Made) -> Json {
    let mut json = Map::new();
    json.insert("name".into(), made.name().into());
    let servers: Vec<Json> = made.table().list().iter().map(server).collect();
    if !servers.is_empty() {
        json.insert("servers".into(), servers.into());
    }
    for key in made.table().keys() {
        json.extend(made.table().get(key).map(|of| (key.to_owned(), value(of))));
    }
    json.into()
}

fn server(of: &Value) -> Json {
    match of {
        Value::Table(of) => table(of, "address"),
        Value::Text(address) => Map::from_iter([("address".to_owned(), address.as_str().into())]).into(),
        other => value(other),
    }
}

/// Returns a list, or an object. The list part of an object is the value of `list_key`.
fn table(of: &Table, list_key: &str) -> Json {
    let list: Vec<Json> = of.list().iter().map(value).collect();
    if of.keys().next().is_none() && !list.is_empty() && list_key != "address" {
        return list.into();
    }
    let keys = of.keys().filter_map(|key| Some((key.to_owned(), value(of.get(key)?))));
    let mut json: Map<String, Json> = keys.collect();
    match <[Json; 1]>::try_from(list) {
        Ok([only]) => drop(json.insert(list_key.to_owned(), only)),
        Err(list) if list.is_empty() => {}
        Err(list) => drop(json.insert(list_key.to_owned(), list.into())),
    }
    json.into()
}

fn value(of: &Value) -> Json {
    match of {
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Number(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned().into(),
        Value::Table(of) => table(of, "values"),
        Value::Made(made) if made.builder() == "pool" => made.name().into(),
        Value::Made(made) => {
            let inner = match made.name() {
                "" => table(made.table(), "values"),
                name => name.into(),
            };
            Map::from_iter([(made.builder().to_owned(), inner)]).into()
        }
        Value::Function(_) | Value::Unknown | Value::Library(_) | Value::Other(_) => Json::Null,
    }
}

/// Converts an object to a table of a configuration.
fn table_of(object: &Map<String, Json>) -> Table {
    let mut table = Table::EMPTY;
    object.iter().for_each(|(key, value)| table.insert(key.clone(), value_of(value)));
    table
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::Other("null"),
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(value) => Value::Int(value),
            None => Value::Number(number.as_f64().unwrap_or(f64::MAX)),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => {
            let mut table = Table::EMPTY;
            items.iter().for_each(|item| table.push(value_of(item)));
            Value::Table(table)
        }
        Json::Object(object) => Value::Table(table_of(object)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use serde_json::json;

    fn settings(json: Json) -> Map<String, Json> {
        let Json::Object(settings) = json else { panic!("not an object") };
        settings
    }

    #[test]
    fn a_server_of_a_request_is_read_as_one_of_a_file() {
        let server =
            server_of_json("10.0.0.1:80", &settings(json!({"weight": 3, "name": "a", "max": 7}))).unwrap();
        assert_eq!((&*server.name, server.weight, server.limits.soft), ("a", 3, Some(7)));
        let check = |address: &str, json: Json, expected: &str| {
            let problems = server_of_json(address, &settings(json)).unwrap_err();
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{problems:?}");
        };
        check("10.0.0.1:80", json!({"weight": 1_000_000}), "weight must be");
        check("10.0.0.1:80", json!({"weight": null}), "weight must be");
        check("10.0.0.1:80", json!({"wieght": 1}), "wieght");
        check("10.0.0.1:80", json!({"max": 2, "hard": 1}), "hard (1) must be at least max (2)");
        check("10.0.0.1", json!({}), "10.0.0.1");
        check("example.org:80", json!({}), "host name");
    }

    #[test]
    fn a_server_that_its_service_cannot_use_is_refused() {
        let text = "pool \"p\" { \"10.0.0.1:1\" } service \"s\" { listen = \"127.0.0.1:1\", protocol = \"udp\", pool = \"p\" }";
        let (_file, path) = in_memory(text).unwrap();
        let spec = load(&path).unwrap().spec;
        let check =
            |address: &str| check_with_server(&spec, "p", &server_of_json(address, &Map::new()).unwrap());
        assert_eq!(check("10.0.0.2:1"), Ok(()));
        assert!(check("/run/a.sock").unwrap_err()[0].contains("/run/a.sock"));
    }

    #[test]
    fn a_configuration_is_shown_as_its_declarations() {
        let text = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:1\", { \"10.0.0.2:1\", weight = 2 }, check = check.tcp { every = \"3s\" } }";
        let (_file, path) = in_memory(text).unwrap();
        let json = spec_as_json(&load(&path).unwrap().spec).unwrap();
        let expected = json!({"pools": [], "services": [{"name": "s", "listen": "127.0.0.1:1",
            "servers": [{"address": "10.0.0.1:1"}, {"address": "10.0.0.2:1", "weight": 2}],
            "check": {"check.tcp": {"every": "3s"}}}]});
        assert_eq!(json, expected);
    }
}
