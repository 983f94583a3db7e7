//! Hints for unknown keys and words: the table to which the key belongs, the name of the key in Evener, or the
//! most similar known key or word.

use super::Location;
use super::raw::Run;
use evener_core::spec::{Plane, Policy};

/// Most keys of one advice.
type Keys = &'static [&'static str];

/// Keys of a server. They are often written by mistake in the table of the pool or service.
const OF_SERVER: Keys = &["weight", "tier", "max", "hard", "state", "mname"];

/// Keys of a pool. A service with inline servers can have them too.
const OF_POOL: Keys = &[
    "policy",
    "sticky",
    "check",
    "passive",
    "failover",
    "retry_budget",
    "on_down",
    "slow_start",
    "queue",
    "send_proxy",
    "discover",
    "resolve",
    "resolver",
];

/// Keys that every service can have.
const OF_SERVICE: Keys = &[
    "listen",
    "protocol",
    "plane",
    "idle_timeout",
    "freebind",
    "source",
    "allow",
    "deny",
    "access",
    "denied",
    "per_client",
    "proxy_from",
    "request_log",
    "clients",
];

/// Keys that services have only with some protocols: the protocols, then the keys.
const OF_PROTOCOLS: &[(&[&str], Keys)] = &[
    (
        &["http"],
        &[
            "balance_per",
            "forwarded",
            "redirect",
            "respond",
            "health",
            "retries",
            "header_timeout",
            "keepalive_timeout",
            "stall_timeout",
            "min_rate",
            "abort_on_close",
            "response_timeout",
            "header_bytes_max",
            "header_fields_max",
            "certificate_header",
            "http2",
        ],
    ),
    (&["dns"], &["dns"]),
    (&["udp"], &["flows_max", "spread"]),
    (
        &["tcp", "http"],
        &[
            "routes",
            "unix_mode",
            "attempts_max",
            "connect_time_max",
            "half_closed_timeout",
            "nodelay",
            "fast_close",
            "pending_max",
            "warm",
            "server_keepalive",
        ],
    ),
    (&["tcp", "http", "dns"], &["connections_max", "connect_timeout", "backlog", "keepalive"]),
];

/// Keys of the table `dns`.
const OF_DNS: Keys = &[
    "query_timeout",
    "cache",
    "on_failure",
    "retry_on",
    "outstanding_max",
    "sockets",
    "pipeline_max",
    "client_subnet",
    "rate_limit",
];

const OF_CHECK: Keys = &["path", "every", "interval", "inter", "rise", "fall", "method", "timeout", "status"];

/// Words that are values of keys, and are easily written without quotes.
const WORDS: &[(&str, &[&str])] = &[
    ("policy", &Policy::NAMES),
    ("check", &super::check::KINDS),
    ("protocol", &["tcp", "udp", "http", "dns"]),
    ("plane", &Plane::NAMES),
    ("state", &["ready", "drain", "maintenance"]),
    ("denied", &["drop", "reject", "tarpit"]),
    ("exceeded", &["drop", "reject", "tarpit"]),
    ("forwarded", &["replace", "append", "off"]),
    ("redirect", &["https"]),
    ("by", &["client_ip", "cookie"]),
    ("on_down", &["keep", "close"]),
    ("send_proxy", &["v1", "v2"]),
    ("resolve", &["required", "optional"]),
];

/// Advice about keys in a kind of table. `KEY` stands for the key.
const ADVICE: &[(&[&str], Keys, &str)] = &[
    (&["service"], &["port"], "the port is part of `listen`"),
    (
        &["server"],
        &["port", "host", "address"],
        "the address with its port comes first: { \"10.0.0.1:80\", ... }",
    ),
    (&["service"], &["trust"], "write forwarded = { trust = \"10.0.0.0/8\" }"),
    (&["service"], &["timeout"], "see idle_timeout, connect_timeout and response_timeout"),
    (
        &["service"],
        &["connections", "connection_rate", "request_rate", "exceeded"],
        "write per_client = { KEY = ... }",
    ),
    (
        &["service"],
        &[
            "certificate",
            "certificates",
            "key",
            "client_ca",
            "client_certificate",
            "min_version",
            "alpn",
            "handshake_timeout",
            "ocsp",
        ],
        "write tls = { KEY = ... }",
    ),
    (
        &["service"],
        &["ssl_certificate", "crt", "cert", "ssl_certificate_key"],
        "write tls = { certificate = \"site.crt\", key = \"site.key\" }",
    ),
    (
        &["service"],
        &["host", "path", "location", "server_name"],
        "write routes = { { host = \"www.example.org\", pool = www } }",
    ),
    (
        &["service", "pool", "server"],
        &["backup"],
        "write tier = 2 at the server: { \"10.0.0.1:80\", tier = 2 }",
    ),
    (&["service", "pool"], OF_SERVER, "KEY is a key of a server: write { \"10.0.0.1:80\", KEY = ... }"),
    (
        &["pool"],
        &["maxconn", "max_conns", "connections_max"],
        "limits are keys of a server: write { \"10.0.0.1:80\", max = 100 }",
    ),
    (&["server"], &["maxconn", "max_conns", "connections_max"], "use `max` or `hard`"),
    (&["server"], &["down", "disabled"], "write state = \"maintenance\""),
    (&["server"], OF_POOL, "KEY is a key of the pool"),
    (
        &["service", "pool"],
        &["servers", "server", "backends", "upstream"],
        "list the servers directly, without a key: { \"10.0.0.1:80\", ... }",
    ),
    (
        &["pool"],
        OF_CHECK,
        "it is a key of a check: write check = check.http { path = \"/health\", every = \"2s\" }",
    ),
    (&["discover"], &["file", "dns", "srv"], "write discover.KEY \"...\" among the servers"),
    (&["check.tcp", "check.http"], &["verify", "sni", "ca"], "KEY needs check.https or check.tls"),
    (&["pool"], OF_SERVICE, "KEY is a key of a service: move it to the service"),
];

/// Names of keys in the configurations of other programs, with the names in Evener. Names that the table cannot
/// have are ignored.
const RENAMED: &[(&str, &[&str])] = &[
    ("bind", &["listen"]),
    ("address", &["listen"]),
    ("balance", &["policy"]),
    ("algorithm", &["policy"]),
    ("lb_policy", &["policy"]),
    ("maxconn", &["connections_max", "flows_max"]),
    ("max_conns", &["connections_max", "flows_max"]),
    ("max_connections", &["connections_max", "flows_max"]),
    ("stick", &["sticky"]),
    ("cookie", &["sticky"]),
    ("health_check", &["check"]),
    ("mode", &["protocol"]),
    ("ssl", &["tls"]),
    ("crt", &["certificate"]),
    ("cert", &["certificate"]),
    ("ssl_certificate", &["certificate"]),
    ("ssl_certificate_key", &["key"]),
    ("ca_file", &["client_ca", "ca"]),
    ("cafile", &["client_ca", "ca"]),
    ("verify", &["client_certificate"]),
    ("insecure", &["verify"]),
    ("accept_proxy", &["proxy_from"]),
    ("proxy_protocol", &["proxy_from", "send_proxy"]),
    ("send_proxy_v2", &["send_proxy"]),
    ("forwardfor", &["forwarded"]),
    ("x_forwarded_for", &["forwarded"]),
    ("server_name", &["host", "sni"]),
    ("location", &["path"]),
    ("timeout_connect", &["connect_timeout"]),
    ("timeout_client", &["idle_timeout"]),
    ("allow", &["permit"]),
    ("code", &["status"]),
    ("content_type", &["type"]),
    ("interval", &["every"]),
    ("inter", &["every"]),
    ("uri", &["path"]),
    ("url", &["path"]),
    ("expect", &["body"]),
];

/// The kind of a table, which decides the hint about an unknown key.
#[derive(Clone, Copy)]
pub(super) struct Context {
    /// The builder or key of the table.
    table: &'static str,
    /// The protocol, in the table of a service.
    protocol: Option<&'static str>,
}

impl Context {
    /// Creates the context of the table of a builder.
    pub(super) fn of(builder: &'static str) -> Self {
        Self { table: builder, protocol: None }
    }

    /// Returns the context of the table under a key.
    pub(super) fn within(self, key: &'static str) -> Self {
        Self { table: key, protocol: None }
    }

    /// Sets the protocol of a service.
    pub(super) fn set_protocol(&mut self, protocol: &'static str) {
        self.protocol = Some(protocol);
    }

    /// Returns the message for an unknown key. `pool` is the pool that a service names; `known` are the keys
    /// that the table can have.
    pub(super) fn unknown_key(
        &self,
        key: &str,
        prefix: &str,
        pool: Option<&str>,
        known: &[&'static str],
    ) -> String {
        if let Some(message) = self.of_another_protocol(key, pool) {
            return message;
        }
        let means =
            |(tables, keys, _): &&(&[&str], Keys, &str)| tables.contains(&self.table) && keys.contains(&key);
        if let Some((_, _, advice)) = ADVICE.iter().find(means) {
            let advice = advice.replace("KEY = ...", &format!("KEY = {}", example(key)));
            return match advice.strip_prefix("KEY ") {
                Some(advice) => format!("{prefix}{key} {}", advice.replace("KEY", key)),
                None => format!("unknown key `{prefix}{key}`; {}", advice.replace("KEY", key)),
            };
        }
        let renamed = RENAMED.iter().find(|(other, _)| *other == key);
        let name = renamed.and_then(|(_, names)| names.iter().find(|name| known.contains(name)));
        let hint = name.map_or_else(|| nearest(key, known.iter().copied()), |name| format!("; use `{name}`"));
        format!("unknown key `{prefix}{key}`{hint}")
    }

    /// Returns the message for a key that the service could have with another protocol or without a pool.
    fn of_another_protocol(&self, key: &str, pool: Option<&str>) -> Option<String> {
        let protocol = self.protocol?;
        if OF_DNS.contains(&key) && protocol == "http" {
            return Some(match key {
                "rate_limit" => {
                    "unknown key `rate_limit`; write per_client = { request_rate = \"100/s\" }".into()
                }
                "cache" => "cache is not available with protocol = \"http\": only dns services cache".into(),
                _ => format!("{key} is not available with protocol = \"http\": only dns services have it"),
            });
        }
        if OF_DNS.contains(&key) || (key == "retries" && protocol == "dns") {
            let needs = if protocol == "dns" { "" } else { "protocol = \"dns\" and " };
            return Some(format!("unknown key `{key}`; write {needs}dns = {{ {key} = ... }}"));
        }
        if let Some(pool) = pool.filter(|_| OF_POOL.contains(&key)) {
            return Some(format!("{key} is a key of the pool: move it to pool `{pool}`"));
        }
        let (protocols, _) = OF_PROTOCOLS.iter().find(|(_, keys)| keys.contains(&key))?;
        Some(match protocols {
            [one] => format!("{key} needs protocol = \"{one}\""),
            _ => format!("{key} is not available with protocol = \"{protocol}\""),
        })
    }
}

/// Returns an example of a value of a key.
fn example(key: &str) -> &'static str {
    match key {
        "weight" | "tier" => "2",
        "max" | "connections" => "100",
        "hard" => "120",
        "state" => "\"drain\"",
        "mname" => "true",
        "connection_rate" | "request_rate" => "\"100/s\"",
        _ => "...",
    }
}

/// An undefined name that the configuration uses.
pub(super) struct Undefined<'a> {
    /// `check.`, `policy.`, or empty for globals.
    namespace: &'a str,
    name: &'a str,
    /// The key whose value the name is.
    key: Option<&'a str>,
    is_called: bool,
    /// True if a pool has the name.
    is_pool: bool,
}

impl<'a> Undefined<'a> {
    /// Creates an undefined name that a line of the configuration uses.
    pub(super) fn new(namespace: &'a str, name: &'a str, run: &'a Run, location: &Location) -> Self {
        let source = run.source(location);
        Self {
            namespace,
            name,
            key: source.and_then(|source| source.key_of(location.line(), name)),
            is_called: source.is_some_and(|source| source.calls(location.line(), name)),
            is_pool: run.pools().iter().any(|pool| pool.name() == name),
        }
    }

    /// Returns true if the name may be a misspelt function. A global function of that name is only meant if it
    /// is called.
    pub(super) fn may_be_function(&self) -> bool {
        self.is_called || !self.namespace.is_empty()
    }

    /// Returns a hint with the punctuation before it. `defined` are the names that the name could mean.
    pub(super) fn hint(&self, defined: &[String]) -> String {
        let near = || nearest(self.name, defined.iter().map(String::as_str));
        match self.namespace {
            "" => self.global_hint().unwrap_or_else(near),
            "policy." => self.policy_hint(defined).unwrap_or_else(near),
            _ => near(),
        }
    }

    /// Returns a hint for a policy without settings. Policies with settings are defined, as functions.
    fn policy_hint(&self, defined: &[String]) -> Option<String> {
        let known = Policy::NAMES.into_iter().chain(defined.iter().map(String::as_str));
        let policy = nearest_of(self.name, known).filter(|near| !defined.iter().any(|name| name == near))?;
        Some(format!(": write policy = \"{policy}\""))
    }

    fn global_hint(&self) -> Option<String> {
        let name = self.name;
        let fixed = match name {
            "os" => ": the environment is read by env \"NAME\"",
            "upstream" | "backend" | "cluster" => "; use `pool`",
            "frontend" | "listener" => "; use `service`",
            "True" | "TRUE" => ": write true",
            "False" | "FALSE" => ": write false",
            _ => "",
        };
        if !fixed.is_empty() {
            return Some(fixed.into());
        }
        let fits =
            |key: &str, words: &[&str]| self.key.is_none_or(|given| given == key) && words.contains(&name);
        let word = WORDS.iter().find(|(key, words)| !self.is_called && fits(key, words));
        let key = word.map(|(key, _)| format!(": write {key} = \"{name}\""));
        let pool = || format!(": write \"{name}\" in quotes, or local {name} = pool \"{name}\" {{ ... }}");
        key.or_else(|| self.is_pool.then(pool))
    }
}

/// Returns `; did you mean "X"?` if a word is similar enough.
pub(super) fn nearest_text<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest_of(word, known).map(|known| format!("; did you mean \"{known}\"?")).unwrap_or_default()
}

/// Returns `; did you mean `X`?` if a known word is similar enough. Letter case does not matter.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest_of(word, known).map(|known| format!("; did you mean `{known}`?")).unwrap_or_default()
}

fn nearest_of<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near = |known: &'a str| (strsim::damerau_levenshtein(&word, &known.to_lowercase()), known);
    let close =
        known.map(near).filter(|(distance, known)| *distance <= 1 + known.len().min(word.len()) / 4).min();
    close.map(|(_, known)| known)
}

/// Returns words in quotes and other possible values: `"tcp", "udp" or a table`.
pub(super) fn one_of(words: &[&str], others: &str) -> String {
    let mut all: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    all.extend((!others.is_empty()).then(|| others.to_owned()));
    match all.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => all.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &'static str, key: &str, expected: &str) {
        let context = Context { table, protocol: (table == "service").then_some("udp") };
        let known = ["listen", "flows_max", "status", "every", "weight"];
        assert_eq!(context.unknown_key(key, "", Some("web"), &known), expected);
    }

    #[test]
    fn unknown_keys_have_a_hint() {
        check("service", "redirect", "redirect needs protocol = \"http\"");
        check("service", "warm", "warm is not available with protocol = \"udp\"");
        check("service", "policy", "policy is a key of the pool: move it to pool `web`");
        check("service", "maxconn", "unknown key `maxconn`; use `flows_max`");
        check("service", "lisen", "unknown key `lisen`; did you mean `listen`?");
        check("service", "Listen", "unknown key `Listen`; did you mean `listen`?");
        check("service", "port", "unknown key `port`; the port is part of `listen`");
        check("check.http", "interval", "unknown key `interval`; use `every`");
        check("pool", "weight", "weight is a key of a server: write { \"10.0.0.1:80\", weight = 2 }");
        check("respond", "nonsense", "unknown key `nonsense`");
    }

    #[test]
    fn choices_are_listed_in_quotes() {
        assert_eq!(one_of(&["a", "b"], ""), "\"a\" or \"b\"");
        assert_eq!(one_of(&["a", "b"], "a pool"), "\"a\", \"b\" or a pool");
        assert_eq!(one_of(&["a"], ""), "\"a\"");
    }
}
