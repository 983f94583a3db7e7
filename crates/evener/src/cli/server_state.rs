//! `evener drain|ready|maintenance SERVER`, and `--wait`, which waits until the server has no connections left.

use super::client::percent_encoded;
use super::shell;
use super::{AdminArgs, duration};
use crate::admin::client::{Client, Refused};
use crate::admin::server_state::StateRequest;
use crate::table::seconds;
use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two queries of the work that is left.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Time after which the kernel's connections were counted since the state was set.
const COUNTED_AFTER: Duration = Duration::from_secs(3);
/// Maximum number of connections that are read for the longest idle time.
const CONNECTIONS_MAX: usize = 1000;

/// `evener ready SERVER`
#[derive(Args, Debug)]
pub(super) struct ReadyCommand {
    /// The server: pool/server, or just the server if only one pool has it
    server: String,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// `evener drain|maintenance SERVER`
#[derive(Args, Debug)]
pub(super) struct LeaveCommand {
    /// The server: pool/server, or just the server if only one pool has it
    server: String,
    /// Time after which the server becomes ready again, such as 10m (default: never)
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// Wait until the server has no connections, requests or flows left, and show what is left
    #[arg(long)]
    wait: bool,
    /// Stop waiting after this time, with exit status 1 (default: wait without limit)
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    timeout: Option<Duration>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl ReadyCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let (client, done) = set_state(&self.server, "ready", None, &self.admin_args).await?;
        let effect = Effect::of(&client, &done, &self.admin_args).await;
        self.admin_args
            .print(&done, |done| format!("{}: ready{}\n", text_of(&done["server"]), effect.of_ready()))
    }
}

impl LeaveCommand {
    /// Sets the state `drain` or `maintenance`.
    pub(super) async fn run(&self, state: &'static str) -> anyhow::Result<()> {
        let (client, done) = set_state(&self.server, state, self.time, &self.admin_args).await?;
        let server = text_of(&done["server"]).to_owned();
        if self.wait {
            let effect = Effect::of(&client, &done, &self.admin_args).await;
            if let Some(warning) = effect.of_leaving() {
                eprintln!("{server}: {}{warning}", state_text(state));
            }
            let status = client.get("/v1/status").await.unwrap_or_default();
            let in_kernel = InKernel::of(&status, &server);
            let wait = Wait { client, server, state, timeout: self.timeout, in_kernel };
            wait.run(&self.admin_args).await
        } else {
            let time = self.time.map(|time| format!(" for {}", humantime::format_duration(time)));
            let time = time.unwrap_or_default();
            let effect = Effect::of(&client, &done, &self.admin_args).await;
            self.admin_args.print(&done, |_| {
                format!("{server}: {}{time}{}\n", state_text(state), effect.of_leaving().unwrap_or_default())
            })
        }
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Describes a state that a server gets no new clients in.
fn state_text(state: &str) -> &str {
    match state {
        "drain" => "draining",
        "maintenance" => "in maintenance",
        state => state,
    }
}

/// The state of the instance after a change of a server, as far as text for people needs it.
#[derive(Debug, Default)]
struct Effect {
    status: Value,
    /// Full name, `pool/server`.
    server: String,
}

impl Effect {
    /// Reads the state of the instance. Without it, there are only no warnings.
    async fn of(client: &Client, done: &Value, admin_args: &AdminArgs) -> Self {
        if admin_args.is_json() {
            return Self::default();
        }
        let status = client.get("/v1/status").await.unwrap_or_default();
        Self { status, server: text_of(&done["server"]).to_owned() }
    }

    /// Returns a warning if the pool of the server has no usable server.
    fn of_leaving(&self) -> Option<String> {
        let (pool, _) = find_server(&self.status["pools"], &self.server)?;
        let can_serve = |server: &Value| {
            server["state"] == "ready" && server["verdict"] != "down" && server["weight"] != 0
        };
        if items(&pool["servers"]).any(can_serve) {
            return None;
        }
        // A server that only failures of traffic marked down may still be tried.
        let is_down = |server: &Value| server["state"] == "ready" && server["verdict"] == "down";
        if pool["check"].is_null() && items(&pool["servers"]).any(is_down) {
            return Some(format!("; warning: pool {} now has no server that is up", text_of(&pool["name"])));
        }
        let uses = |service: &&Value| items(&service["pools"]).any(|used| *used == pool["name"]);
        let is_http =
            items(&self.status["services"]).filter(uses).any(|service| service["protocol"] == "http");
        let status = if is_http { " (http: 503)" } else { "" };
        Some(format!(
            "; warning: pool {} now has no usable server, and its clients are refused{status}",
            text_of(&pool["name"])
        ))
    }

    /// Returns the reason why a ready server gets no clients.
    fn of_ready(&self) -> String {
        match find_server(&self.status["pools"], &self.server) {
            Some((_, server)) if server["verdict"] == "down" => match text_of(&server["reason"]) {
                "" => ", but down".into(),
                reason => format!(", but down: {reason}"),
            },
            Some((_, server)) if server["weight"] == 0 => ", but its weight is 0: no new clients".into(),
            _ => String::new(),
        }
    }
}

/// Returns a pool and its server in the status, given `pool/server`.
fn find_server<'a>(pools: &'a Value, full_name: &str) -> Option<(&'a Value, &'a Value)> {
    items(pools).find_map(|pool| {
        let name = full_name.strip_prefix(text_of(&pool["name"]))?.strip_prefix('/')?;
        Some((pool, items(&pool["servers"]).find(|server| server["name"] == *name)?))
    })
}

/// Sets the state of a server. The response has the full name of the server.
async fn set_state(
    server: &str,
    state: &str,
    time: Option<Duration>,
    admin_args: &AdminArgs,
) -> anyhow::Result<(Client, Value)> {
    let client = admin_args.client()?;
    let done = client.post("/v1/servers/state", &StateRequest::new(server, state, time)).await?;
    Ok((client, done))
}

/// The wait for the end of the last connection of a server.
struct Wait {
    client: Client,
    /// Full name, `pool/server`.
    server: String,
    state: &'static str,
    timeout: Option<Duration>,
    in_kernel: InKernel,
}

/// Planes of the kernel that send packets to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InKernel {
    xdp: bool,
    ipvs: bool,
}

impl InKernel {
    /// Returns the planes of the services that use the pool of a server, given `pool/server`.
    fn of(status: &Value, full_name: &str) -> Self {
        let Some((pool, _)) = find_server(&status["pools"], full_name) else { return Self::default() };
        let uses = |service: &&Value| items(&service["pools"]).any(|used| *used == pool["name"]);
        let has = |plane: &str| items(&status["services"]).filter(uses).any(|one| one["plane"] == *plane);
        Self { xdp: has("xdp"), ipvs: has("ipvs") }
    }
}

/// Work that a server still has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Left {
    /// Connections, requests, flows and associations.
    active: u64,
    unit: Unit,
    /// The longest time without traffic of a connection or flow.
    idle_s: Option<u64>,
    /// Clients that the sticky table sends to the server.
    sticky: u64,
}

/// Kind of the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Unit {
    #[default]
    Connection,
    Flow,
    Request,
    Query,
    Association,
}

impl Unit {
    /// Returns the kind of work of a connection or flow in a stage.
    fn of_stage(stage: &str) -> Self {
        match stage.split(['/', ' ']).next() {
            Some("flow") => Self::Flow,
            Some("http") => Self::Request,
            Some("dns") => Self::Query,
            _ => Self::Connection,
        }
    }

    fn text(self, count: u64) -> String {
        let (one, several) = match self {
            Self::Connection => ("connection", "connections"),
            Self::Flow => ("flow", "flows"),
            Self::Request => ("request", "requests"),
            Self::Query => ("query", "queries"),
            Self::Association => ("association", "associations"),
        };
        format!("{count} {}", if count == 1 { one } else { several })
    }
}

impl Wait {
    async fn run(&self, admin_args: &AdminArgs) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut progress = Progress::new(admin_args.is_json());
        let mut last = None;
        loop {
            let polled = self.poll().await;
            if polled.is_err() {
                progress.end();
            }
            let left = polled.map_err(|error| self.ended(last.as_ref(), &error))?;
            // The connections of IPVS are counted every 2 s.
            let is_counted = !self.in_kernel.ipvs || began.elapsed() >= COUNTED_AFTER;
            if left.active == 0 && is_counted {
                progress.end();
                let view = json!({ "server": self.server, "state": self.state, "active": 0, "sticky_clients": left.sticky });
                return admin_args.print(&view, |_| self.empty(&left));
            }
            let waited = began.elapsed();
            if self.timeout.is_some_and(|timeout| waited >= timeout) {
                progress.end();
                bail!("{}", self.timed_out(&left, waited));
            }
            progress.show(&format!("{}: {}", self.server, left.text()));
            last = Some(left);
            let rest =
                self.timeout.map_or(POLL_EVERY, |timeout| timeout.saturating_sub(waited).min(POLL_EVERY));
            tokio::time::sleep(rest).await;
        }
    }

    /// Returns the work that the server still has.
    async fn poll(&self) -> Result<Left, Stopped> {
        let path = format!("/v1/status?server={}", percent_encoded(&self.server));
        let status = self.client.get::<Value>(&path).await;
        let status = status.map_err(|error| match error.downcast_ref::<Refused>() {
            Some(refused) if refused.is_not_found() => Stopped::Removed,
            _ => Stopped::Instance(error),
        })?;
        let (pool, server) = find_server(&status["pools"], &self.server).ok_or(Stopped::Removed)?;
        let state = text_of(&server["state"]);
        if state != self.state {
            return Err(Stopped::Changed(state.to_owned()));
        }
        let mut active = server["active"].as_u64().unwrap_or_default();
        if self.in_kernel.ipvs {
            active += server["associations"].as_u64().unwrap_or_default();
        }
        let path =
            format!("/v1/connections?server={}&limit={CONNECTIONS_MAX}", percent_encoded(&self.server));
        // Both are details, which may be missing: the server may have been removed since.
        let open: Value = self.client.get(&path).await.unwrap_or_default();
        let path = format!("/v1/sticky?limit=0&pool={}", percent_encoded(text_of(&pool["name"])));
        let associations = open["associations_total"].as_u64().filter(|_| self.in_kernel.xdp);
        let unit = match associations {
            Some(1..) if active == 0 => Unit::Association,
            _ => Unit::Connection,
        };
        active += associations.unwrap_or_default();
        let sticky: Value = self.client.get(&path).await.unwrap_or_default();
        let sticky = items(&sticky["servers"]).find(|one| one["server"] == server["name"]);
        let mut stages = items(&open["connections"]).map(|one| text_of(&one["stage"]));
        let idle =
            items(&open["connections"]).filter_map(|one| one["idle_s"].as_f64()).map(|idle_s| idle_s as u64);
        Ok(Left {
            active,
            unit: stages.next().map_or(unit, Unit::of_stage),
            idle_s: idle.max(),
            sticky: sticky.map_or(0, |one| one["clients"].as_u64().unwrap_or_default()),
        })
    }

    fn empty(&self, left: &Left) -> String {
        let sticky = match left.sticky {
            0 => String::new(),
            _ if self.state == "maintenance" => String::new(),
            1 => "; 1 sticky client still goes to it when it returns".into(),
            clients => format!("; {clients} sticky clients still go to it when they return"),
        };
        format!("{}: {}, and no connections are left{sticky}\n", self.server, state_text(self.state))
    }

    fn timed_out(&self, left: &Left, waited: Duration) -> String {
        let (server, word) = (&self.server, shell::word(&self.server));
        let listed = format!("`evener connections --server {word}` lists them");
        let end = match left.unit {
            Unit::Association => {
                format!("{listed}, `evener maintenance {word}` sends their next packets to other servers")
            }
            _ if self.in_kernel.ipvs => "`ipvsadm -Lnc` lists those in the kernel".into(),
            _ => format!("{listed}, `evener close --server {word}` closes them"),
        };
        let mut text =
            format!("{server} still has {1} after {0}\n{end}", seconds(waited.as_secs()), left.text());
        if left.sticky > 0 && self.state == "drain" {
            text += &format!("\n`evener maintenance {word}` sends its sticky clients to other servers");
        }
        text
    }

    /// Returns the error for a wait that cannot continue. `last` is the work that the server had before, if it is
    /// known.
    fn ended(&self, last: Option<&Left>, stopped: &Stopped) -> anyhow::Error {
        let (server, last) = (&self.server, last.map(Left::text));
        let had =
            |before: &str| last.as_ref().map_or_else(String::new, |last| format!("{before} had {last}"));
        match stopped {
            Stopped::Removed => anyhow::anyhow!(
                "{server} was removed from the configuration{}; `evener connections` lists open connections",
                had(" while it")
            ),
            Stopped::Changed(state) => anyhow::anyhow!(
                "{server} is no longer in state {}: another command or the end of --for made it {state}{}",
                self.state,
                had("; it")
            ),
            Stopped::Instance(error) => {
                let when = last.as_ref().map_or_else(
                    || format!("before it reported the connections of {server}"),
                    |last| format!("while {server} had {last}"),
                );
                anyhow::anyhow!("the instance ended {when} ({error:#})")
            }
        }
    }
}

/// Reason why a wait cannot continue.
enum Stopped {
    /// The server is no longer configured.
    Removed,
    /// The server is in another state.
    Changed(String),
    /// The instance does not respond.
    Instance(anyhow::Error),
}

impl Left {
    fn text(&self) -> String {
        let idle = match self.idle_s {
            Some(idle) if idle > 0 => format!(", idle for up to {}", seconds(idle)),
            _ => String::new(),
        };
        let sticky = match self.sticky {
            0 => String::new(),
            1 => ", 1 sticky client".into(),
            clients => format!(", {clients} sticky clients"),
        };
        format!("{}{idle}{sticky}", self.unit.text(self.active))
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Lines about what is left, on standard error: one line that changes on a terminal, else a line for each
/// change.
struct Progress {
    is_terminal: bool,
    is_quiet: bool,
    last: String,
}

impl Progress {
    fn new(is_quiet: bool) -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), is_quiet, last: String::new() }
    }

    fn show(&mut self, text: &str) {
        if self.is_quiet || self.last == text {
            return;
        }
        if self.is_terminal {
            // Erases the rest of the line (ECMA-48, EL).
            crate::output::to_stderr(format_args!("\r{text}\x1b[K"));
        } else {
            eprintln!("{text}");
        }
        text.clone_into(&mut self.last);
    }

    /// Ends the line that changes.
    fn end(&mut self) {
        if self.is_terminal && !self.last.is_empty() {
            crate::output::to_stderr(format_args!("\n"));
            self.last.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for_test(server: &str) -> Wait {
        let client = Client::find(Some("/no/such.sock".as_ref())).unwrap();
        Wait { client, server: server.into(), state: "drain", timeout: None, in_kernel: InKernel::default() }
    }

    #[test]
    fn advice_quotes_names_for_the_shell() {
        let left = Left { active: 1, sticky: 1, ..Left::default() };
        assert_eq!(
            wait_for_test("p/a b").timed_out(&left, Duration::from_secs(1)),
            "p/a b still has 1 connection, 1 sticky client after 1s\n\
             `evener connections --server 'p/a b'` lists them, `evener close --server 'p/a b'` closes them\n\
             `evener maintenance 'p/a b'` sends its sticky clients to other servers"
        );
    }

    #[test]
    fn a_wait_that_ends_before_its_first_response_gives_no_number_of_connections() {
        let wait = wait_for_test("p/a");
        let changed = wait.ended(None, &Stopped::Changed("ready".into())).to_string();
        assert!(changed.ends_with("made it ready"), "{changed}");
        let left = Left { active: 2, ..Left::default() };
        let changed = wait.ended(Some(&left), &Stopped::Changed("ready".into())).to_string();
        assert!(changed.ends_with("made it ready; it had 2 connections"), "{changed}");
        let removed = wait.ended(None, &Stopped::Removed).to_string();
        assert!(removed.starts_with("p/a was removed from the configuration; "), "{removed}");
    }

    #[test]
    fn a_change_warns_if_no_server_is_usable_or_the_server_is_down() {
        let status = |protocol: &str, other: &str| {
            json!({
                "services": [{ "name": "www", "protocol": protocol, "pools": ["shop"] }],
                "pools": [{ "name": "shop", "check": { "kind": "http" }, "servers": [
                    { "name": "a", "state": "drain", "verdict": "up", "weight": 1 },
                    { "name": "b", "state": "ready", "verdict": other, "weight": 1, "reason": "connect: refused" },
                ]}],
            })
        };
        let effect = |status: Value, server: &str| Effect { status, server: server.into() };
        assert_eq!(effect(status("http", "up"), "shop/a").of_leaving(), None);
        assert_eq!(
            effect(status("http", "down"), "shop/a").of_leaving().as_deref(),
            Some("; warning: pool shop now has no usable server, and its clients are refused (http: 503)")
        );
        assert!(
            effect(status("tcp", "down"), "shop/a")
                .of_leaving()
                .is_some_and(|text| text.ends_with("refused"))
        );
        assert_eq!(effect(status("tcp", "down"), "shop/b").of_ready(), ", but down: connect: refused");
        assert_eq!(effect(status("tcp", "up"), "shop/b").of_ready(), "");
    }

    #[test]
    fn the_planes_of_a_server_are_the_planes_of_the_services_that_use_its_pool() {
        let status = json!({
            "services": [{ "plane": "xdp", "pools": ["a"] }, { "plane": "proxy", "pools": ["a", "b"] },
                         { "plane": "ipvs", "pools": ["c"] }],
            "pools": [{ "name": "a", "servers": [{ "name": "s" }] }, { "name": "b", "servers": [{ "name": "s" }] },
                      { "name": "c", "servers": [{ "name": "s" }] }],
        });
        let planes = |name| InKernel::of(&status, name);
        assert_eq!(planes("a/s"), InKernel { xdp: true, ipvs: false });
        assert_eq!(planes("b/s"), InKernel::default());
        assert_eq!(planes("c/s"), InKernel { xdp: false, ipvs: true });
        assert_eq!(planes("a/t"), InKernel::default());
    }

    #[test]
    fn what_is_left_is_described_in_words() {
        let check = |stage: &str, active, idle_s, sticky, expected: &str| {
            let left = Left { active, unit: Unit::of_stage(stage), idle_s, sticky };
            assert_eq!(left.text(), expected);
        };
        check("relaying", 1, None, 0, "1 connection");
        check("flow", 3, Some(0), 1, "3 flows, 1 sticky client");
        check("http/2 requests", 1, Some(0), 0, "1 request");
        check("dns queries", 2, Some(75), 4, "2 queries, idle for up to 1m 15s, 4 sticky clients");
    }
}
