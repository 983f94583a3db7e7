//! Builds a specification from raw declarations: checks types, bounds, references and duplicates. Finds every
//! problem in one pass.

mod whole;

pub(super) use whole::pools_of;

use super::access::{read_acl, read_denied, read_prefixes, read_throttle};
use super::fields::{Fields, Reading, nearest};
use super::patience::read_queue;
use super::raw::{Made, Run, Table, Value};
use super::sticky::{name_cookies, read_sticky};
use super::{Config, Location, Problem, check, dns, edge};
use crate::scope;
use evener_core::Endpoint;
use evener_core::limits::Limits;
use evener_core::policy::is_prime;
use evener_core::route::Route;
use evener_core::spec::{
    AdminState, Denied, Failover, FastClose, PassiveSpec, Policy, PoolSpec, Protocol, QueueSpec, RequestLog,
    ServerSpec, ServiceOptions, ServiceSpec, Source, WEIGHT_MAX,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SERVERS_MAX: usize = 100_000;

/// Returns the specification, or every problem.
pub(super) fn build(run: &Run) -> Result<Config, Vec<Problem>> {
    let reading = Reading::new(run);
    let mut builder = Builder { reading: &reading, config: Config::default() };
    let mut pools: BTreeMap<&str, &Location> = BTreeMap::new();
    for made in run.pools.iter().chain(&run.services) {
        let name = made.name.as_deref().unwrap_or_default();
        if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
            reading.problem(
                &made.location,
                format!(
                    "{name:?} is not a valid name of a {}: use 1 to 255 bytes without control characters",
                    made.builder
                ),
            );
        }
    }
    for made in &run.pools {
        let name = made.name.as_deref().unwrap_or_default();
        if let Some(first) = pools.insert(name, &made.location) {
            builder.twice("pool", name, first, &made.location);
        }
        builder.pool(made);
    }
    let mut services: BTreeMap<&str, &Location> = BTreeMap::new();
    for made in &run.services {
        let name = made.name.as_deref().unwrap_or_default();
        if let Some(first) = services.insert(name, &made.location) {
            builder.twice("service", name, first, &made.location);
        }
        builder.service(made);
    }
    name_cookies(&mut builder.config.spec);
    builder.check_whole();
    let config = builder.config;
    if reading.is_well() { Ok(config) } else { Err(reading.into_problems()) }
}

struct Builder<'a> {
    reading: &'a Reading<'a>,
    config: Config,
}

impl<'a> Builder<'a> {
    fn twice(&self, what: &str, name: &str, first: &Location, again: &Location) {
        let message = format!("{what} `{name}` is already declared at {}:{}", first.file, first.line);
        self.reading.problem(again, message);
    }

    fn pool(&mut self, made: &'a Made) {
        let name = made.name.as_deref().unwrap_or_default();
        let mut fields = Fields::new(self.reading, &made.table, &made.location, format!("pool `{name}`"));
        let mut pool = self.pool_fields(name, made, &mut fields);
        pool.tls = edge::read_server_tls(&mut fields);
        self.config.tls_locations.insert(("pool", name.into()), fields.location_of("tls"));
        edge::inherit_tls(&mut pool, &mut fields);
        if pool.servers.is_empty() && !fields.has("discover") {
            fields.problem_here(format!(
                "pool `{name}` has no servers: list their addresses, such as \"10.0.0.1:80\""
            ));
        }
        fields.finish();
        self.config.spec.pools.push(pool);
    }

    /// Reads the keys that pools and services with inline servers share.
    fn pool_fields(&mut self, name: &str, made: &'a Made, fields: &mut Fields<'a>) -> PoolSpec {
        let servers = self.servers(made, fields);
        if !servers.is_empty() && servers.iter().all(|server| server.weight == 0) {
            fields.problem_here(format!(
                "pool `{name}`: every server has weight 0: give at least one a higher weight"
            ));
        }
        PoolSpec {
            discover: dns::read_discover(fields),
            policy: read_policy(fields).unwrap_or(Policy::RoundRobin),
            sticky: read_sticky(fields),
            check: check::read(fields),
            passive: read_passive(fields),
            failover: read_failover(fields),
            on_down: edge::read_on_down(fields).unwrap_or_default(),
            slow_start: fields.duration("slow_start"),
            queue: read_queue(fields).unwrap_or(Some(QueueSpec::DEFAULT)),
            send_proxy: edge::read_send_proxy(fields),
            ..PoolSpec::new(name, servers)
        }
    }

    fn servers(&mut self, made: &'a Made, fields: &mut Fields<'a>) -> Vec<ServerSpec> {
        let mut servers: Vec<ServerSpec> = Vec::new();
        if fields.list().len() > SERVERS_MAX {
            fields.problem_here(format!("a pool must have at most {SERVERS_MAX} servers"));
            return servers;
        }
        let mut names: BTreeMap<Arc<str>, Location> = BTreeMap::new();
        for item in fields.list() {
            let Some((server, location)) = self.server(item, made, fields) else { continue };
            self.config.locations.entry(server.endpoint.clone()).or_insert_with(|| location.clone());
            match names.get(&server.name) {
                Some(first) => {
                    let (name, file, line) = (&server.name, &first.file, first.line);
                    let message = format!(
                        "server `{name}` is already in this pool, at {file}:{line}: give one of them another `name`"
                    );
                    self.reading.problem(&location, message);
                }
                None => {
                    names.insert(server.name.clone(), location);
                    servers.push(server);
                }
            }
        }
        servers
    }

    /// Reads a server: an address, a table that begins with one, or `server "address" { ... }`.
    fn server(
        &self,
        item: &'a Value,
        made: &'a Made,
        fields: &mut Fields<'a>,
    ) -> Option<(ServerSpec, Location)> {
        static EMPTY: Table = Table { list: Vec::new(), named: BTreeMap::new() };
        let (address, table, location, path): (&str, &Table, &Location, Vec<&str>) = match item {
            Value::Text(address) => (address, &EMPTY, &made.location, vec![address]),
            Value::Table(table) => match table.list.first() {
                Some(Value::Text(address)) => (address, table, &made.location, vec![address]),
                _ => {
                    fields.problem_here(
                        "a server must begin with its address: {  \"10.0.0.1:80\", weight = 2 }",
                    );
                    return None;
                }
            },
            Value::Made(server) if server.builder == "server" => {
                (server.name.as_deref().unwrap_or_default(), &server.table, &server.location, Vec::new())
            }
            Value::Unknown => return None,
            other => {
                fields.problem_here(format!(
                    "{} is not a server: write an address such as \"10.0.0.1:80\"",
                    other.kind()
                ));
                return None;
            }
        };
        let mut nested =
            Fields::new(self.reading, table, location, format!("server `{address}`")).inside(&path);
        let at = if path.is_empty() { location.clone() } else { self.reading.run.refine(location, &path) };
        let server = match scope::server(address) {
            Ok(defaults) => Some(read_server(defaults, &mut nested)),
            Err(error) => {
                nested.problem_here(error.to_string());
                None
            }
        };
        if server.is_some() {
            nested.finish();
        }
        server.map(|server| (server, at))
    }

    fn service(&mut self, made: &'a Made) {
        let name = made.name.as_deref().unwrap_or_default();
        let mut fields = Fields::new(self.reading, &made.table, &made.location, format!("service `{name}`"));
        let protocol = read_protocol(&mut fields);
        let listen = self.listen(name, &mut fields);
        let options = read_options(protocol, &mut fields);
        let acl = read_acl(&mut fields);
        let denied = read_denied(&mut fields, "denied").unwrap_or(Denied::Drop);
        let throttle = read_throttle(&mut fields);
        let proxy_from = read_prefixes(&mut fields, "proxy_from");
        let tls = edge::read_tls(&mut fields, protocol);
        self.config.tls_locations.insert(("service", name.into()), fields.location_of("tls"));
        let http = (protocol == Protocol::Http).then(|| edge::read_http(&mut fields));
        let clients = fields.integer("clients", 1..=ServiceSpec::CLIENTS_MAX);
        let request_log = read_request_log(&mut fields, protocol);
        let dns = (protocol == Protocol::Dns).then(|| dns::read_dns(&mut fields));
        let routes = match protocol {
            Protocol::Udp | Protocol::Dns => Vec::new(),
            Protocol::Tcp | Protocol::Http => self.routes(&mut fields, protocol),
        };
        let responds_to_all = !routes.is_empty()
            || http.as_ref().is_some_and(|http| http.redirect.is_some() || http.respond.is_some());
        let pool = self.service_pool(name, made, &mut fields, responds_to_all);
        fields.finish();
        let (throttle, exceeded) =
            throttle.map_or((None, Denied::Drop), |(spec, denied)| (Some(spec), denied));
        let service = ServiceSpec {
            name: name.into(),
            listen,
            protocol,
            pool,
            routes,
            acl,
            denied,
            throttle,
            exceeded,
            proxy_from,
            tls,
            http,
            dns,
            clients,
            request_log,
            options,
        };
        self.config.spec.services.push(service);
    }

    /// Reads `routes = { { host = "a.example", pool = a }, ... }`.
    fn routes(&self, fields: &mut Fields<'a>, protocol: Protocol) -> Vec<Route<Arc<str>>> {
        let Some(items) = fields.items("routes") else { return Vec::new() };
        let mut routes = Vec::new();
        for item in items {
            let Value::Table(table) = item else {
                fields.problem(
                    "routes",
                    "`routes` must be a list of { host = \"www.example.org\", pool = www }",
                );
                continue;
            };
            routes.extend(edge::read_route(fields, table, protocol, |nested| self.route_pool(nested)));
        }
        routes
    }

    fn route_pool(&self, nested: &mut Fields<'_>) -> Option<Arc<str>> {
        let name = match nested.take("pool") {
            Some(Value::Text(name)) => name.as_str(),
            Some(Value::Made(pool)) if pool.builder == "pool" => pool.name.as_deref()?,
            Some(Value::Unknown) => return None,
            Some(_) | None => {
                nested.problem_here("a route needs a pool: pool = www");
                return None;
            }
        };
        self.known_pool(name, nested).then(|| name.into())
    }

    fn known_pool(&self, name: &str, fields: &mut Fields<'_>) -> bool {
        let known = || self.config.spec.pools.iter().map(|pool| &*pool.name);
        let is_known = known().any(|known| known == name);
        if !is_known {
            let hint = nearest(name, known());
            fields.problem("pool", format!("there is no pool `{name}`{hint}"));
        }
        is_known
    }

    fn listen(&mut self, name: &str, fields: &mut Fields<'_>) -> Vec<Endpoint> {
        let given = fields.texts("listen", "an address or a list of addresses", parse_listen);
        // A name that is an address is also the listen address.
        let listen = given.or_else(|| parse_listen(name).ok().map(|endpoint| vec![endpoint]));
        let listen = listen.unwrap_or_else(|| {
            if fields.take("listen").is_none() {
                fields
                    .problem_here(format!("service `{name}` has no listen address: listen = \"0.0.0.0:80\""));
            }
            Vec::new()
        });
        for endpoint in &listen {
            let location = fields.location_of(&endpoint.to_string());
            self.config.listen_locations.insert((name.into(), endpoint.clone()), location);
        }
        listen
    }

    /// Returns the pool of a service: one that it names, or its inline servers.
    fn service_pool(
        &mut self,
        name: &str,
        made: &'a Made,
        fields: &mut Fields<'a>,
        responds_to_all: bool,
    ) -> Option<Arc<str>> {
        let named = match fields.take("pool") {
            None => None,
            Some(Value::Text(pool)) => Some(pool.as_str()),
            Some(Value::Made(pool)) if pool.builder == "pool" => pool.name.as_deref(),
            Some(Value::Unknown) => return Some(name.into()),
            Some(other) => {
                let hint = if matches!(other, Value::Table(_)) {
                    ": write the servers of a service without `pool =`"
                } else {
                    ""
                };
                fields.problem("pool", format!("`pool` is {}, not a pool or its name{hint}", other.kind()));
                return Some(name.into());
            }
        };
        if named.is_none() && responds_to_all && fields.list().is_empty() {
            return None;
        }
        match named {
            Some(pool) => {
                if !fields.list().is_empty() {
                    fields.problem(
                        "pool",
                        format!("service `{name}` has both a pool and servers: remove one of them"),
                    );
                }
                let known = || self.config.spec.pools.iter().map(|pool| &*pool.name);
                if !known().any(|known| known == pool) {
                    let hint = nearest(pool, known());
                    fields.problem("pool", format!("service `{name}`: there is no pool `{pool}`{hint}"));
                }
                Some(pool.into())
            }
            None => {
                let pool = self.pool_fields(name, made, fields);
                if made.table.list.is_empty() && !fields.has("discover") {
                    fields.problem_here(format!(
                        "service `{name}` has neither a pool nor servers: add one of them"
                    ));
                }
                if self.config.spec.pools.iter().any(|other| other.name == pool.name) {
                    fields.problem_here(format!(
                        "a pool is also named `{name}`: give the service another name"
                    ));
                }
                self.config.spec.pools.push(pool);
                Some(name.into())
            }
        }
    }
}

fn parse_listen(text: &str) -> Result<Endpoint, String> {
    match scope::parse_listen(text).map_err(|error| error.to_string())? {
        Endpoint::Host { name, port } => Err(format!(
            "`{name}:{port}` is not a listen address: write an IP address, such as 0.0.0.0:{port} for all addresses"
        )),
        endpoint => Ok(endpoint),
    }
}

fn read_protocol(fields: &mut Fields<'_>) -> Protocol {
    match fields.text("protocol") {
        None | Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        Some("http") => Protocol::Http,
        Some("dns") => Protocol::Dns,
        Some(other) => {
            let hint = nearest(other, ["tcp", "udp", "http", "dns"].into_iter());
            fields.problem("protocol", format!("`{other}` is not a protocol: tcp, udp, http or dns{hint}"));
            Protocol::Tcp
        }
    }
}

fn read_options(protocol: Protocol, fields: &mut Fields<'_>) -> ServiceOptions {
    let mut options = ServiceOptions::of(protocol);
    let (is_udp, is_dns) = (protocol == Protocol::Udp, protocol == Protocol::Dns);
    if let Some(idle) = fields.optional_duration("idle_timeout") {
        if is_udp && idle.is_none() {
            fields.problem("idle_timeout", "a udp service needs an idle_timeout, because only it ends flows");
        }
        if is_dns && idle.is_none() {
            fields.problem(
                "idle_timeout",
                "a dns service needs an idle_timeout, or idle clients would use up its connections",
            );
        }
        options.idle_timeout = idle;
    }
    options.freebind = fields.bool("freebind").unwrap_or(options.freebind);
    if !is_udp
        && !is_dns
        && let Some(mode) = fields.text("unix_mode")
    {
        options.unix_mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777);
        if options.unix_mode.is_none() {
            fields.problem("unix_mode", format!("`{mode}` is not a file mode such as \"0660\""));
        }
    }
    options.source = fields.text("source").and_then(|text| {
        let source =
            if text == "client" { Some(Source::Client) } else { text.parse().map(Source::Address).ok() };
        if source.is_none() {
            fields.problem("source", format!("`{text}` is not an IP address or \"client\""));
        }
        if is_dns && source == Some(Source::Client) {
            fields.problem("source", "a dns service shares its sockets between clients: `source` must be an address of this machine");
        }
        source
    });
    if is_udp {
        options.flows_max = fields.integer("flows_max", 1..=16_000_000).unwrap_or(options.flows_max);
        options.spread = fields.integer("spread", 1..=ServiceOptions::SPREAD_MAX);
        return options;
    }
    options.connections_max =
        fields.integer("connections_max", 1..=16_000_000).unwrap_or(options.connections_max);
    options.connect_timeout = fields.duration("connect_timeout").unwrap_or(options.connect_timeout);
    options.backlog = fields.integer("backlog", 1..=65_535).unwrap_or(options.backlog);
    options.keepalive = fields.optional_duration("keepalive").unwrap_or(options.keepalive);
    check_keepalive("keepalive", options.keepalive, fields);
    if is_dns {
        return options;
    }
    options.attempts_max = fields.integer("attempts_max", 1..=1000).unwrap_or(options.attempts_max);
    options.connect_time_max = fields.duration("connect_time_max").unwrap_or(options.connect_time_max);
    options.half_closed_timeout =
        fields.optional_duration("half_closed_timeout").unwrap_or(options.half_closed_timeout);
    options.nodelay = fields.bool("nodelay").unwrap_or(options.nodelay);
    if let Some(word) = fields.text("fast_close") {
        match FastClose::ALL.into_iter().find(|fast_close| fast_close.name() == word) {
            Some(fast_close) => options.fast_close = fast_close,
            None => fields.problem("fast_close", format!("`{word}` is not off, client, server or both")),
        }
    }
    options.pending_max = fields.integer("pending_max", 1..=16_000_000);
    options.warm = fields.integer("warm", 0..=10_000).unwrap_or(options.warm);
    options.server_keepalive =
        fields.optional_duration("server_keepalive").unwrap_or(options.server_keepalive);
    check_keepalive("server_keepalive", options.server_keepalive, fields);
    options
}

fn check_keepalive(key: &str, keepalive: Option<Duration>, fields: &mut Fields<'_>) {
    if keepalive.is_some_and(|after| after < Duration::from_secs(1) || after.as_secs() > 32_767) {
        fields.problem(key, format!("`{key}` must be between 1s and 32767s (tcp(7))"));
    }
}

fn read_server(defaults: ServerSpec, fields: &mut Fields<'_>) -> ServerSpec {
    let endpoint = &defaults.endpoint;
    let name: Arc<str> = fields.text("name").map_or(defaults.name, Into::into);
    if name.is_empty() || name.chars().any(char::is_control) {
        fields.problem("name", format!("{name:?} is not a valid name of a server"));
    }
    let limits =
        Limits { soft: fields.integer("max", 1..=u32::MAX), hard: fields.integer("hard", 1..=u32::MAX) };
    if let (Some(soft), Some(hard)) = (limits.soft, limits.hard)
        && hard < soft
    {
        fields.problem("hard", format!("server `{name}`: hard ({hard}) must not be below max ({soft})"));
    }
    let state = fields.text("state").and_then(|word| {
        let state = AdminState::ALL.into_iter().find(|state| state.name() == word);
        if state.is_none() {
            fields.problem("state", format!("`{word}` is not a state: ready, drain or maintenance"));
        }
        state
    });
    if fields.list().len() > 1 {
        fields.problem_here("a server must have one address; its other settings need keys");
    }
    ServerSpec {
        name,
        dialect: dns::read_dialect(fields, endpoint),
        weight: fields.integer("weight", 0..=WEIGHT_MAX).unwrap_or(defaults.weight),
        tier: fields.integer("tier", 1..=255).map_or(defaults.tier, |tier| tier as u8),
        limits,
        acl: read_acl(fields),
        state: state.unwrap_or(defaults.state),
        endpoint: defaults.endpoint,
    }
}

fn read_policy(fields: &mut Fields<'_>) -> Option<Policy> {
    match fields.take("policy")? {
        Value::Text(name) => {
            let policy = Policy::named(name);
            if policy.is_none() {
                let hint = nearest(name, Policy::NAMES.into_iter());
                let all = Policy::NAMES.join(", ");
                fields.problem("policy", format!("there is no policy `{name}`{hint}; use one of {all}"));
            }
            policy
        }
        Value::Made(made) if made.builder == "policy.ewma" => {
            let mut nested = Fields::new(fields.reading(), &made.table, &made.location, "policy.ewma".into());
            let decay = nested.duration("decay").unwrap_or(Policy::EWMA_DECAY);
            nested.finish();
            Some(Policy::Ewma { decay })
        }
        Value::Made(made) if made.builder == "policy.maglev" => {
            let mut nested =
                Fields::new(fields.reading(), &made.table, &made.location, "policy.maglev".into());
            let table = nested.integer("table", 2..=Policy::MAGLEV_TABLE_MAX).unwrap_or(Policy::MAGLEV_TABLE);
            if !is_prime(table) {
                nested.problem(
                    "table",
                    format!("policy.maglev: `table` must be a prime number such as 65537, got {table}"),
                );
            }
            nested.finish();
            Some(Policy::Maglev { table })
        }
        Value::Unknown => None,
        other => {
            fields.problem(
                "policy",
                format!("`policy` is {}, not one of {}", other.kind(), Policy::NAMES.join(", ")),
            );
            None
        }
    }
}

fn read_failover(fields: &mut Fields<'_>) -> Failover {
    if fields.bool("failover") == Some(false) { Failover::Never } else { Failover::Next }
}

/// Reads `request_log = "requests.log"`, or `{ udp = "10.0.0.9:10000" }`.
fn read_request_log(fields: &mut Fields<'_>, protocol: Protocol) -> Option<RequestLog> {
    let log = match fields.take("request_log")? {
        Value::Text(file) => RequestLog::File(fields.path_of("request_log", file).into()),
        Value::Table(table) => {
            let mut nested = fields.within("request_log", table);
            let address = nested.text("udp").unwrap_or_default();
            let parsed = address.parse().map(RequestLog::Udp);
            if parsed.is_err() {
                nested.problem("udp", format!("`{address}` is not an address such as \"10.0.0.9:10000\""));
            }
            nested.finish();
            parsed.ok()?
        }
        Value::Unknown => return None,
        other => {
            let message =
                format!("`request_log` is {}, not a file or {{ udp = \"10.0.0.9:10000\" }}", other.kind());
            fields.problem("request_log", message);
            return None;
        }
    };
    match protocol {
        Protocol::Tcp | Protocol::Http => {}
        Protocol::Udp => {
            fields.problem("request_log", "a udp service has no request_log: it has no requests");
        }
        Protocol::Dns => {
            fields.problem("request_log", "a dns service has no request_log: queries are not logged");
        }
    }
    Some(log)
}

fn read_passive(fields: &mut Fields<'_>) -> PassiveSpec {
    let defaults = PassiveSpec::default();
    match fields.take("passive") {
        None | Some(Value::Bool(true)) => defaults,
        Some(Value::Bool(false)) => PassiveSpec { failures: 0, ..defaults },
        Some(Value::Table(table)) => {
            let mut nested = fields.within("passive", table);
            let failures = nested.integer("failures", 0..=1000).unwrap_or(defaults.failures);
            let down_for = nested.duration("down_for").unwrap_or(defaults.down_for);
            nested.finish();
            PassiveSpec { failures, down_for }
        }
        Some(other) => {
            let message =
                format!("`passive` is {}, not false or {{ failures = 1, down_for = \"30s\" }}", other.kind());
            fields.problem("passive", message);
            defaults
        }
    }
}
