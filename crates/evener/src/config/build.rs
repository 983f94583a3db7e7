//! Builds a specification from raw declarations: checks types, bounds, references and duplicates. Finds every
//! problem in one pass.

mod failing;
mod ipvs;
mod options;
mod request_log;
mod warnings;
mod whole;
mod xdp;

pub(super) use failing::SORRY_NAME;
pub(super) use xdp::Ports;

use failing::{read_failover, read_passive, read_quorum};
use options::{read_options, read_plane, read_protocol};

use super::access::{read_acl, read_denied, read_prefixes, read_throttle};
use super::address::{self, Part, parse_listen};
use super::fields::{Fields, Reading};
use super::hints::{nearest, one_of, values};
use super::locate::Step;
use super::patience::{read_queue, read_retry_budget};
use super::raw::{Made, Run, Table, Value, shown};
use super::sticky::{name_cookies, read_sticky};
use super::{Config, Location, Problem, TlsOwner, check, discover, dns, edge, exec};
use crate::scope;
use evener_core::Endpoint;
use evener_core::policy::is_prime;
use evener_core::route::Route;
use evener_core::spec::{
    AdminState, Denied, Plane, Policy, PoolSpec, Protocol, QueueSpec, QuicId, QuicIdError, RetryBudgetSpec,
    ServerSpec, ServiceSpec, WEIGHT_MAX,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

const SERVERS_MAX: usize = 100_000;
const UNCHECKED: &str = "note: certificates and host names were not checked because of the problems above";

/// Returns the configuration, or all problems.
pub(super) fn build(run: &Run) -> Result<Config, Vec<Problem>> {
    let reading = Reading::new(run);
    let mut builder = Builder {
        reading: &reading,
        config: Config::default(),
        pools: HashMap::new(),
        pools_of_kernel: xdp::pools_of_plane(run),
        declared: HashMap::new(),
    };
    for made in run.pools().iter().chain(run.services()) {
        builder.declared.entry(made.name()).or_insert(made);
    }
    if let Some(made) = run.xdp() {
        builder.config.spec.xdp = super::xdp::read(&reading, made);
    }
    if let Some(made) = run.ipvs() {
        builder.config.spec.ipvs = super::ipvs::read(&reading, made);
    }
    if let Some(made) = run.admin() {
        builder.config.admin = Some(made.location().clone());
        builder.config.spec.admin = super::admin::read(&reading, made);
    }
    let mut pools: BTreeMap<&str, &Location> = BTreeMap::new();
    for made in run.pools().iter().chain(run.services()) {
        let (name, builder) = (made.name(), made.builder());
        if name.is_empty() {
            reading.problem(
                made.location(),
                format!("the name of a {builder} must not be empty: write {builder} \"NAME\" {{ ... }}"),
            );
        } else if name.len() > 255 || name.chars().any(char::is_control) {
            let message = format!(
                "the name of a {builder} must have 1 to 255 bytes without control characters, got {}",
                shown(name)
            );
            reading.problem(made.location(), message);
        }
    }
    for made in run.pools() {
        if let Some(first) = pools.insert(made.name(), made.location()) {
            builder.twice(made, first);
        }
        builder.pool(made);
    }
    let mut services: BTreeMap<&str, &Location> = BTreeMap::new();
    for made in run.services() {
        if let Some(first) = services.insert(made.name(), made.location()) {
            builder.twice(made, first);
        }
        builder.service(made);
    }
    builder.check_cookie_names();
    name_cookies(&mut builder.config.spec);
    builder.settle_check_ports();
    builder.check_whole();
    run.repeated_keys().into_iter().for_each(|(location, message)| reading.problem(&location, message));
    if reading.is_valid() {
        builder.warn();
        return Ok(Config { warnings: reading.take_warnings(), ..builder.config });
    }
    let config = builder.config;
    let mut problems = reading.into_problems();
    if config.has_inputs() {
        problems.push(Problem::new(UNCHECKED));
    }
    Err(problems)
}

struct Builder<'a> {
    reading: &'a Reading<'a>,
    config: Config,
    /// Positions of the pools by name, because a configuration may have tens of thousands of pools.
    pools: HashMap<Arc<str>, usize>,
    /// Names of the pools of services in the planes of the kernel, whose servers may have no port.
    pools_of_kernel: HashSet<String>,
    /// Declarations of pools, and of services with their own servers, by name.
    declared: HashMap<&'a str, &'a Made>,
}

impl<'a> Builder<'a> {
    fn twice(&self, again: &Made, first: &Location) {
        let (builder, name) = (again.builder(), again.name());
        // A service whose name is an address listens on it.
        let is_address = builder == "service" && scope::parse_listen(name).is_ok();
        let advice = if is_address {
            "remove one of them, or give one another address"
        } else {
            "give one of them another name"
        };
        let message = format!("{builder} `{name}` is already declared at {first}: {advice}");
        self.reading.problem(again.location(), message);
    }

    fn pool(&mut self, made: &'a Made) {
        let name = made.name();
        let mut fields = Fields::new(self.reading, made, format!("pool `{name}`"));
        let mut pool = self.pool_fields(name, made, &mut fields);
        pool.tls = edge::read_server_tls(&mut fields);
        self.config.tls.insert((TlsOwner::Pool, name.into()), fields.location_of("tls"));
        check::inherit_tls(&mut pool, &mut fields, &self.config.servers);
        if made.table().list().is_empty() && !fields.has("discover") && !fields.has("servers") {
            fields.problem_here("there are no servers: list their addresses, such as \"10.0.0.1:80\"");
        }
        fields.finish();
        self.add_pool(pool);
    }

    /// Reads the keys that pools and services with inline servers share.
    fn pool_fields(&mut self, name: &str, made: &'a Made, fields: &mut Fields<'a>) -> PoolSpec {
        let mut servers = self.servers(made, fields);
        servers.extend(self.sorry(made, fields, &servers));
        let sources = discover::read_discover(self.reading, fields, self.ports_of(made));
        for (source, location) in &sources {
            self.config.sources.insert((name.into(), source.to_string()), location.clone());
        }
        if !servers.is_empty()
            && sources.is_empty()
            && servers.iter().all(|server| server.weight == 0 || server.is_sorry)
        {
            fields.problem_here("every server has weight 0: give at least one a higher weight");
        }
        PoolSpec {
            discover: sources.into_iter().map(|(source, _)| source).collect(),
            resolve: discover::read_resolve(fields),
            resolvers: discover::read_resolvers(fields),
            policy: read_policy(fields).unwrap_or(Policy::RoundRobin),
            sticky: read_sticky(fields),
            check: check::read(fields),
            passive: read_passive(fields),
            failover: read_failover(fields),
            retry_budget: read_retry_budget(fields).unwrap_or(Some(RetryBudgetSpec::DEFAULT)),
            on_down: edge::read_on_down(&servers, fields).unwrap_or_default(),
            slow_start: fields.duration("slow_start"),
            quorum: read_quorum(fields),
            inhibit_on_failure: fields.bool("inhibit_on_failure").unwrap_or(false),
            notify: exec::read_notify(fields),
            queue: read_queue(fields).unwrap_or(Some(QueueSpec::DEFAULT)),
            send_proxy: edge::read_send_proxy(fields),
            ..PoolSpec::new(name, servers)
        }
    }

    fn servers(&mut self, made: &'a Made, fields: &mut Fields<'a>) -> Vec<ServerSpec> {
        let mut servers: Vec<ServerSpec> = Vec::new();
        if fields.list().len() > SERVERS_MAX {
            let count = fields.list().len();
            fields.problem_here(format!("a pool must have at most {SERVERS_MAX} servers, got {count}"));
            return servers;
        }
        let mut names: BTreeMap<Arc<str>, Location> = BTreeMap::new();
        let items = fields.list().iter().enumerate();
        for (index, item) in items.filter(|(_, item)| !discover::is_source(item)) {
            let Some((server, location)) = self.server((index, item), made, fields) else { continue };
            self.config.servers.entry(server.endpoint.clone()).or_insert_with(|| location.clone());
            match names.get(&server.name) {
                Some(first) => {
                    let name = &server.name;
                    let message = format!(
                        "server `{name}` is already in this pool, at {first}: remove one of them, or give one another `name` to have it twice"
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

    /// Reads a server: an address, a table that begins with an address, or `server "address" { ... }`.
    fn server(
        &self,
        (index, item): (usize, &'a Value),
        made: &'a Made,
        fields: &mut Fields<'a>,
    ) -> Option<(ServerSpec, Location)> {
        static EMPTY: Table = Table::EMPTY;
        let item_at = |address| vec![Step::Item(index, Some(address))];
        let (address, table, location, path): (&str, &Table, &Location, Vec<Step<'_>>) = match item {
            Value::Text(address) => (address, &EMPTY, made.location(), item_at(address)),
            Value::Table(table) => match table.list().first() {
                Some(Value::Text(address)) => (address, table, made.location(), item_at(address)),
                Some(Value::Unknown) => return None,
                _ => {
                    let named =
                        ["address", "host", "url", "addr"].iter().find_map(|key| table.get(key)?.text());
                    let port = table.get("port").and_then(Value::number);
                    let right = named.map_or_else(
                        || "{ \"10.0.0.1:80\", weight = 2 }".into(),
                        |address| match port.filter(|_| scope::server(address).is_err()) {
                            Some(port) => format!("{{ {}, ... }}", shown(&format!("{address}:{port}"))),
                            None => format!("{{ {}, ... }}", shown(address)),
                        },
                    );
                    let message = format!("a server must begin with its address: {right}");
                    fields.problem_with_item(index, None, message);
                    return None;
                }
            },
            Value::Made(server) if server.builder() == "server" => {
                (server.name(), server.table(), server.location(), Vec::new())
            }
            Value::Unknown => return None,
            other => {
                let message =
                    format!("a server must be an address such as \"10.0.0.1:80\", got {}", other.shown());
                fields.problem_with_item(index, None, message);
                return None;
            }
        };
        let mut nested = Fields::of_server(self.reading, table, location, address, &path);
        let at = if path.is_empty() { location.clone() } else { self.reading.run().refine(location, &path) };
        let server = match self.server_at(address, made) {
            Ok(defaults) => {
                // In `server "address" { ... }` the address is not an item of the table.
                let second = table.list().get(usize::from(matches!(item, Value::Table(_))));
                Some(read_server(defaults, second, &mut nested))
            }
            Err(error) => {
                let port = address::usual_port(self.reading.run(), made);
                let why = address::problem(address, &error, Part::Server, port);
                self.reading.problem(&at, format!("{}: {why}", subject_of(made)));
                None
            }
        };
        if server.is_some() {
            nested.finish();
        }
        server.map(|server| (server, at))
    }

    fn service(&mut self, made: &'a Made) {
        let name = made.name();
        let mut fields = Fields::new(self.reading, made, format!("service `{name}`"));
        if Self::is_of_ipvs(made) {
            let _ = read_plane(&mut fields);
            return self.ipvs_service(made, fields);
        }
        let protocol = read_protocol(&mut fields);
        fields.set_protocol(protocol.name());
        let plane = read_plane(&mut fields);
        if plane == Plane::Xdp {
            return self.xdp_service(made, fields, protocol);
        }
        fields.set_plane(plane.name());
        let listen = self.listen(made, &mut fields);
        let options = read_options(protocol, &mut fields);
        let acl = read_acl(&mut fields);
        let denied = read_denied(&mut fields, "denied").unwrap_or(Denied::Drop);
        let throttle = read_throttle(&mut fields);
        let proxy_from = read_prefixes(&mut fields, "proxy_from");
        let tls = edge::read_tls(&mut fields, protocol);
        self.config.tls.insert((TlsOwner::Service, name.into()), fields.location_of("tls"));
        let http = (protocol == Protocol::Http).then(|| edge::read_http(&mut fields));
        let clients = fields.integer("clients", 1..=ServiceSpec::CLIENTS_MAX);
        let request_log = request_log::read(&mut fields, protocol);
        let dns = (protocol == Protocol::Dns).then(|| dns::read_dns(&mut fields));
        let routes = match protocol {
            Protocol::Udp | Protocol::Dns => Vec::new(),
            Protocol::Tcp | Protocol::Http => self.routes(&mut fields, protocol),
        };
        let responds_to_all = ["routes", "redirect", "respond"].iter().any(|key| fields.has(key));
        let pool = self.service_pool(name, made, &mut fields, responds_to_all);
        fields.finish();
        let (throttle, exceeded) =
            throttle.map_or((None, Denied::Drop), |(spec, denied)| (Some(spec), denied));
        let service = ServiceSpec {
            name: name.into(),
            listen,
            protocol,
            plane,
            xdp: None,
            ipvs: None,
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
            records_refused: true,
            request_log,
            options,
        };
        self.config.spec.services.push(service);
    }

    /// Reads `routes = { { host = "a.example", pool = a }, ... }`.
    fn routes(&self, fields: &mut Fields<'a>, protocol: Protocol) -> Vec<Route<Arc<str>>> {
        let Some(items) = fields.items("routes") else { return Vec::new() };
        let mut routes = Vec::new();
        for (index, item) in items {
            let Value::Table(table) = item else {
                fields.value_must(
                    "routes",
                    item,
                    "be a list of tables such as { host = \"www.example.org\", pool = www }",
                    "",
                );
                continue;
            };
            routes.extend(edge::read_route(
                fields.within_item("routes", index, table),
                table,
                protocol,
                |nested| self.route_pool(nested),
            ));
        }
        routes
    }

    fn route_pool(&self, nested: &mut Fields<'_>) -> Option<Arc<str>> {
        let name = match nested.take("pool") {
            Some(Value::Text(name)) => name.as_str(),
            Some(Value::Made(pool)) if pool.builder() == "pool" => pool.name(),
            Some(_) => {
                nested.must("pool", "be a pool or the name of a pool");
                return None;
            }
            None => {
                let route = edge::name_of_route(nested);
                // The pool may be there, under another key.
                if !nested.has_unknown_keys() {
                    nested.problem_here(match nested.list() {
                        [] => format!("{route} needs a pool: add pool = \"www\""),
                        _ => format!("{route} needs a pool, not a server: {ROUTE_TO_SERVER}"),
                    });
                }
                return None;
            }
        };
        self.known_pool(name, nested).then(|| name.into())
    }

    /// Returns true if there is a pool with this name. Otherwise records a problem.
    fn known_pool(&self, name: &str, fields: &mut Fields<'_>) -> bool {
        let is_known = self.has_pool(name);
        if !is_known {
            let hint = nearest(name, self.config.spec.pools.iter().map(|pool| &*pool.name));
            fields.problem("pool", format!("there is no pool `{name}`{hint}"));
        }
        is_known
    }

    fn listen(&mut self, made: &Made, fields: &mut Fields<'_>) -> Vec<Endpoint> {
        let (name, port) = (made.name(), address::usual_port(self.reading.run(), made));
        if let Some(Value::Table(table)) = fields.take("listen")
            && table.keys().next().is_none()
            && table.list().is_empty()
        {
            fields.problem_with("listen", "must not be empty: write listen = \"0.0.0.0:80\"");
        }
        if let Some(Value::Int(port)) = fields.take("listen") {
            fields.must_hint("listen", "be an address", &format!("write \"0.0.0.0:{port}\""));
            return Vec::new();
        }
        let parse = |text: &str| parse_listen(text, port);
        let given = fields.texts("listen", "an address or a list of addresses", parse);
        // Without `listen`, a service whose name is an address listens on this address.
        let listen = given.or_else(|| parse(name).ok().map(|endpoint| vec![endpoint]));
        let listen = listen.unwrap_or_else(|| {
            // An undefined name may be `listen "0.0.0.0:80"`, without `=`.
            let is_undefined = fields.list().iter().any(|item| matches!(item, Value::Unknown));
            let tried = ["listen", "lisen", "bind", "port", "address"].iter().any(|key| fields.has(key));
            if !tried && !is_undefined {
                fields.problem_here("there is no listen address: add listen = \"0.0.0.0:80\"");
            }
            Vec::new()
        });
        for endpoint in &listen {
            let location = fields.location_of(&endpoint.to_string());
            self.config.listen.insert((name.into(), endpoint.clone()), location);
        }
        listen
    }

    /// Returns the name of the pool of a service: the pool in `pool`, or the pool of the inline servers, which
    /// has the name of the service. Returns `None` if routes or a local response make a pool unnecessary.
    fn service_pool(
        &mut self,
        name: &str,
        made: &'a Made,
        fields: &mut Fields<'a>,
        responds_to_all: bool,
    ) -> Option<Arc<str>> {
        let named = match fields.take("pool") {
            None => None,
            Some(Value::Text(text))
                if text.contains(':') && scope::server(text).is_ok() && !self.has_pool(text) =>
            {
                let message = format!("pool is the address of a server: {INLINE_SERVERS}");
                fields.problem("pool", message);
                drop(self.pool_fields(name, made, fields));
                return Some(name.into());
            }
            Some(Value::Text(pool)) => Some(pool.as_str()),
            Some(Value::Made(pool)) if pool.builder() == "pool" => Some(pool.name()),
            Some(other) => {
                let hint = if matches!(other, Value::Table(_)) { INLINE_SERVERS } else { "" };
                fields.must_hint("pool", "be a pool or the name of a pool", hint);
                drop(self.pool_fields(name, made, fields));
                return Some(name.into());
            }
        };
        if named.is_none() && responds_to_all && fields.list().is_empty() {
            return None;
        }
        match named {
            Some(pool) => {
                if !fields.list().is_empty() {
                    fields.problem("pool", "there are both a pool and servers: remove one of them");
                }
                self.known_pool(pool, fields);
                Some(pool.into())
            }
            None => {
                let pool = self.pool_fields(name, made, fields);
                if made.table().list().is_empty() && !fields.has("discover") && !fields.has("servers") {
                    fields.problem_here(
                        "there is neither a pool nor a server: add pool = \"web\" or addresses",
                    );
                }
                // Of two services with the same name, the second is reported anyway.
                if self.reading.run().pools().iter().any(|pool| pool.name() == name) {
                    fields.problem_here(format!(
                        "a pool is also named `{name}`: give the service another name"
                    ));
                }
                self.add_pool(pool);
                Some(name.into())
            }
        }
    }

    fn add_pool(&mut self, pool: PoolSpec) {
        let position = self.config.spec.pools.len();
        self.pools.entry(Arc::clone(&pool.name)).or_insert(position);
        self.config.spec.pools.push(pool);
    }

    fn has_pool(&self, name: &str) -> bool {
        self.pools.contains_key(name)
    }

    /// Returns the first pool with a name.
    fn pool_named(&self, name: &str) -> Option<&PoolSpec> {
        self.config.spec.pools.get(*self.pools.get(name)?)
    }

    /// Returns the pools that a service can send clients to.
    fn pools_of<'b>(&'b self, service: &'b ServiceSpec) -> impl Iterator<Item = &'b PoolSpec> {
        service.pools().filter_map(|name| self.pool_named(name))
    }
}

const INLINE_SERVERS: &str =
    "list the servers in the service itself: { listen = \"0.0.0.0:80\", \"10.0.0.1:80\" }";

const ROUTE_TO_SERVER: &str = "declare pool \"www\" { \"10.0.0.1:80\" }, and add pool = \"www\"";

/// Returns the name of a declaration in messages.
fn subject_of(made: &Made) -> String {
    format!("{} `{}`", made.builder(), made.name())
}

pub(super) fn read_server(base: ServerSpec, second: Option<&Value>, fields: &mut Fields<'_>) -> ServerSpec {
    let endpoint = &base.endpoint;
    let name: Arc<str> = fields.text("name").map_or(base.name, Into::into);
    if name.is_empty() {
        fields.problem_with("name", "must not be empty: write a name, or remove it");
    } else if name.chars().any(char::is_control) {
        fields.must("name", "be text without control characters");
    }
    let limits = discover::read_limits(fields);
    let state = fields.word("state", &AdminState::ALL.map(AdminState::name), |word| {
        AdminState::ALL.into_iter().find(|state| state.name() == word)
    });
    if let Some(second) = second {
        let second_shown = second.shown();
        fields.problem_here(match second {
            Value::Text(_) => format!(
                "a server has one address, got a second one, {second_shown}: list servers separately, or write table.unpack(LIST)"
            ),
            _ => format!("a server must have one address, got also {second_shown}: its other settings need keys"),
        });
    }
    ServerSpec {
        name,
        configured_name: base.configured_name,
        dialect: dns::read_dialect(fields, endpoint),
        weight: fields.integer("weight", 0..=WEIGHT_MAX).unwrap_or(base.weight),
        tier: fields.integer("tier", 1..=255).map_or(base.tier, |tier| tier as u8),
        limits,
        acl: read_acl(fields),
        state: state.unwrap_or(base.state),
        is_sorry: base.is_sorry,
        quic_id: read_quic_id(fields),
        check: check::read(fields).map(Arc::new),
        endpoint: base.endpoint,
    }
}

/// Reads the identity of a server in connection IDs of QUIC.
fn read_quic_id(fields: &mut Fields<'_>) -> Option<QuicId> {
    let text =
        fields.text_such_as("quic_id", "1 to 15 bytes in hexadecimal, in quotes, such as \"a01f\"", "")?;
    text.parse().map_err(|why: QuicIdError| fields.problem_with("quic_id", why)).ok()
}

fn read_policy(fields: &mut Fields<'_>) -> Option<Policy> {
    match fields.take("policy")? {
        Value::Text(name) => {
            let policy = Policy::named(name);
            if policy.is_none() {
                let near = nearest(name, Policy::NAMES.into_iter());
                let hint = match values::policy(name) {
                    Some(policy) => format!("; write policy = \"{policy}\""),
                    None if near.is_empty() => format!("; use {}", one_of(&Policy::NAMES, "")),
                    None => near,
                };
                fields.problem("policy", format!("unknown policy `{name}`{hint}"));
            }
            policy
        }
        Value::Made(made) if made.builder() == "policy.ewma" => {
            let mut nested = Fields::new(fields.reading(), made, "policy.ewma".into());
            let decay = nested.duration("decay").unwrap_or(Policy::EWMA_DECAY);
            nested.finish();
            Some(Policy::Ewma { decay })
        }
        Value::Made(made) if made.builder() == "policy.maglev" => {
            let mut nested = Fields::new(fields.reading(), made, "policy.maglev".into());
            let table = nested.integer("table", 2..=Policy::MAGLEV_TABLE_MAX).unwrap_or(Policy::MAGLEV_TABLE);
            if !is_prime(table) {
                nested.must("table", "be a prime number such as 65537");
            }
            nested.finish();
            Some(Policy::Maglev { table })
        }
        _ => {
            fields.must_be_one_of("policy", &Policy::NAMES, "");
            None
        }
    }
}
