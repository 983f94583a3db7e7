//! Recognizes configurations of other programs, which were given to Evener by mistake.

use std::net::SocketAddr;

/// The beginning of the messages about files in another language.
pub(crate) const FOREIGN_FILE: &str = "this looks like ";

/// A service in Evener's language.
const EXAMPLE: &str =
    "service \"www\" { listen = \"0.0.0.0:80\", protocol = \"http\", \"10.0.0.1:80\", \"10.0.0.2:80\" }";

/// Number of lines that decides.
const LINES_MIN: usize = 2;

/// Maximum number of lines that are read.
const LINES_MAX: usize = 200;

/// Words at the beginning of lines, by program.
const HAPROXY: [&str; 22] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "bind",
    "balance",
    "mode",
    "maxconn",
    "timeout",
    "option",
    "default_backend",
    "use_backend",
    "http-request",
    "stick-table",
    "cookie",
    "log",
    "daemon",
    "nbthread",
    "tcp-check",
    "http-check",
    "acl",
];
const NGINX: [&str; 14] = [
    "worker_processes",
    "worker_connections",
    "proxy_pass",
    "proxy_set_header",
    "upstream",
    "location",
    "server_name",
    "http",
    "stream",
    "events",
    "listen",
    "server",
    "least_conn",
    "ip_hash",
];
const CADDY: [&str; 8] =
    ["reverse_proxy", "lb_policy", "health_uri", "health_interval", "file_server", "encode", "handle", "tls"];
const PEN: [&str; 8] =
    ["acl", "server", "client_acl", "blacklist", "max_connections", "tracking", "emergency_server", "weight"];

/// Returns the message about a file in another language.
pub(super) fn recognize(text: &str) -> Option<String> {
    let language = language(text)?;
    let import = if language == "commands of pen" { "; evener import pen FILE converts it" } else { "" };
    Some(format!(
        "{FOREIGN_FILE}{language}; Evener's language is Lua, such as {EXAMPLE}{import}; see docs/configuration.md"
    ))
}

fn language(text: &str) -> Option<&'static str> {
    let trimmed = text.trim_start();
    let is_comment =
        |line: &&str| line.is_empty() || line.starts_with('#') || (line.starts_with("--") && *line != "---");
    let lines: Vec<&str> =
        text.lines().take(LINES_MAX).map(str::trim).filter(|line| !is_comment(line)).collect();
    if lines.iter().any(|line| declares(line)) {
        return None;
    }
    if trimmed.starts_with('{') && trimmed.contains("\":") || trimmed.starts_with("[{") {
        return Some("JSON");
    }
    // A line of Lua that sets a key has a `=` behind the word.
    let begins = |words: &'static [&'static str]| {
        move |line: &&&str| {
            let mut parts = line.split_whitespace();
            let word = parts.next().unwrap_or_default();
            words.contains(&word) && !parts.next().unwrap_or_default().starts_with(['=', '"'])
        }
    };
    let count = |words: &'static [&'static str]| lines.iter().filter(begins(words)).count();
    let ends = |end: char| lines.iter().filter(|line| line.ends_with(end)).count();
    let has_block = ["upstream ", "server {", "http {", "events {", "location /"]
        .iter()
        .any(|begin| text.contains(begin));
    let semicolons = text.matches(';').count();
    let is_nginx = semicolons >= 1 && (has_block || count(&NGINX) >= LINES_MIN);
    if is_nginx || semicolons >= LINES_MIN && count(&NGINX) >= 1 {
        return Some("a configuration of nginx");
    }
    let is_address = |line: &&str| line.parse::<SocketAddr>().is_ok() || line.parse::<u16>().is_ok();
    if !lines.is_empty() && lines.iter().all(is_address) {
        return Some("a list of addresses");
    }
    if count(&CADDY) >= 1 && ends('{') >= 1 {
        return Some("a Caddyfile");
    }
    if count(&HAPROXY) >= LINES_MIN && ends('{') == 0 {
        return Some("a configuration of HAProxy");
    }
    if count(&PEN) >= LINES_MIN && ends('{') == 0 {
        return Some("commands of pen");
    }
    let is_section =
        |line: &&&str| line.starts_with('[') && line.ends_with(']') && !line.contains(['"', '=']);
    if lines.iter().filter(is_section).count() >= 1 {
        return Some("TOML");
    }
    let is_yaml = |line: &&&str| {
        let line = line.strip_prefix("- ").unwrap_or(line);
        let key = line.split_once(':').filter(|(_, rest)| rest.is_empty() || rest.starts_with(' '));
        let is_key = |key: &str| {
            key.starts_with(char::is_alphabetic)
                && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        key.is_some_and(|(key, _)| is_key(key)) && !line.ends_with([',', '}'])
    };
    (lines.first() == Some(&"---") || lines.iter().filter(is_yaml).count() >= LINES_MIN).then_some("YAML")
}

/// Returns true if a line begins a declaration of Evener, such as `pool "web" {` or `service('www' .. n) {`.
fn declares(line: &str) -> bool {
    let name = ["pool", "service"].iter().find_map(|builder| line.strip_prefix(builder)).map(str::trim_start);
    let is_name = |name: &str| ["\"", "'", "(", "[[", "[="].iter().any(|begin| name.starts_with(begin));
    name.is_some_and(is_name) || line.starts_with("local ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_of_other_programs_are_recognized() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(language(text), expected, "{text}");
        check("global\n  maxconn 100\ndefaults\n  mode http\n", Some("a configuration of HAProxy"));
        check("frontend f\n bind :80\n default_backend b\n", Some("a configuration of HAProxy"));
        check(
            "upstream a { server 10.0.0.1:80; }\nserver { listen 80; }\n",
            Some("a configuration of nginx"),
        );
        check("80\n127.0.0.1:80\n", Some("a list of addresses"));
        check("http {\n upstream a {\n server 10.0.0.1:80;\n }\n}\n", Some("a configuration of nginx"));
        check("worker_processes 4;\nevents { }\n", Some("a configuration of nginx"));
        check("example.org {\n  reverse_proxy 10.0.0.1:80\n}\n", Some("a Caddyfile"));
        check("{ \"services\": { \"a\": 1 } }", Some("JSON"));
        check("services:\n  - name: a\n    url: http://10.0.0.1\n", Some("YAML"));
        check("---\na: 1\n", Some("YAML"));
        check("[entryPoints]\n  [entryPoints.web]\n  address = \":80\"\n", Some("TOML"));
        check("acl 1 permit 10.0.0.0 255.0.0.0\nserver 0 address 10.0.0.1\n", Some("commands of pen"));
        check("service \"a\" {\n  listen: \"0.0.0.0:80\",\n  pool: \"b\"\n}\n", None);
        check("pool \"p\" {\n  balance roundrobin\n  maxconn 5\n}\n", None);
        check("x = = 1", None);
        for begin in ["service 'www' {", "service [[www]] {", "service [=[www]=] {", "service ('www') {"] {
            check(&format!("{begin}\n  tls = {{ directory = 'c' }}\n  pool = 'p'\n}}\n"), None);
            check(&format!("{begin}\n  server = 1;\n  listen = '0.0.0.0:80';\n  http = {{}}\n}};\n"), None);
        }
        check("pool(\n  'p' .. n) {\n  tls = {}\n  a = 1\n}\n", None);
        check("x {\n  tls = {\n  a = 1\n}\n", None);
        check("service.www {\n  reverse_proxy 10.0.0.1:80\n}\n", Some("a Caddyfile"));
    }
}
