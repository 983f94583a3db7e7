//! Routes from a host name and a path to a pool. The most specific route wins, in any order of declaration:
//! an exact name before a wildcard, a longer wildcard before a shorter one, any name last; then the longest
//! path.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

/// A host name, or all names below one: `*.example.org`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// In lower case. A wildcard has the dot, but not the `*`.
    name: String,
    wildcard: bool,
}

/// Error of a text that is not a host pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host name: write www.example.org or *.example.org")]
pub struct HostError(String);

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let (name, wildcard) = match text.strip_prefix('*') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let labels = if wildcard { name.strip_prefix('.') } else { Some(name) };
        let is_address = text.parse::<std::net::IpAddr>().is_ok();
        let fits = labels.is_some_and(|labels| labels.split('.').all(label)) || is_address;
        if fits && text.len() <= 253 {
            Ok(Self { name: name.to_ascii_lowercase(), wildcard })
        } else {
            Err(HostError(text.into()))
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}", if self.wildcard { "*" } else { "" }, self.name)
    }
}

impl HostPattern {
    /// Returns true if the pattern matches a host without port.
    fn matches(&self, host: &[u8]) -> bool {
        let Some(split) = host.len().checked_sub(self.name.len()) else { return false };
        let tail = host[split..].eq_ignore_ascii_case(self.name.as_bytes());
        tail && (split == 0) != self.wildcard
    }
}

/// A route: hosts (an empty list matches any host), a path, and a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<T> {
    /// The hosts.
    pub hosts: Vec<HostPattern>,
    /// The path, which includes all paths below it; `None` matches any path.
    pub path: Option<String>,
    /// The target.
    pub to: T,
}

/// Compiled routes.
///
/// ```
/// use evener_core::route::{Route, Routes};
///
/// let route = |path: Option<&str>, to| Route { hosts: Vec::new(), path: path.map(Into::into), to };
/// let routes = Routes::new(&[route(None, "web"), route(Some("/api"), "api")]);
/// assert_eq!(routes.find(b"www.example.org", b"/api/users"), Some(&"api"));
/// assert_eq!(routes.find(b"www.example.org", b"/apis"), Some(&"web"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes<T>(Vec<Rule<T>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule<T> {
    host: Option<HostPattern>,
    path: String,
    to: T,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Routes<T> {
    /// Compiles routes, the most specific first. Of two equal routes the first counts.
    #[must_use]
    pub fn new(routes: &[Route<T>]) -> Self {
        let mut rules: Vec<Rule<T>> = Vec::new();
        for route in routes {
            let path = route.path.as_deref().unwrap_or_default().trim_end_matches('/');
            let rule = |host| Rule { host, path: path.into(), to: route.to.clone() };
            if route.hosts.is_empty() {
                rules.push(rule(None));
            }
            rules.extend(route.hosts.iter().map(|host| rule(Some(host.clone()))));
        }
        rules.sort_by_key(|rule| {
            let host =
                rule.host.as_ref().map_or((0, 0), |host| (2 - u8::from(host.wildcard), host.name.len()));
            Reverse((host, rule.path.len()))
        });
        Self(rules)
    }

    /// Returns true if there is no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns all targets.
    pub fn targets(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|rule| &rule.to)
    }

    /// Returns the target of a host (with or without a port) and a path, or `None` if no route matches.
    #[must_use]
    pub fn find(&self, authority: &[u8], path: &[u8]) -> Option<&T> {
        let host = without_port(authority);
        let leads = |rule: &&Rule<T>| {
            rule.host.as_ref().is_none_or(|pattern| pattern.matches(host))
                && is_below(path, rule.path.as_bytes())
        };
        self.0.iter().find(leads).map(|rule| &rule.to)
    }
}

/// Returns the host of `host:port`, without brackets and without a trailing dot.
fn without_port(authority: &[u8]) -> &[u8] {
    let host = match authority.iter().rposition(|&byte| byte == b':') {
        Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
        _ => authority,
    };
    let inside = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]"));
    let host = inside.unwrap_or(host);
    host.strip_suffix(b".").unwrap_or(host)
}

/// Returns true if a path is `prefix` or below it: for the prefix `/api` these are `/api`, `/api/x` and
/// `/api?x`, but not `/apis`.
fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || matches!(rest[0], b'/' | b'?'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(text: &str) -> Routes<String> {
        let route = |line: &str| {
            let (pattern, to) = line.split_once(" > ").unwrap();
            let (host, path) =
                pattern.split_once('/').map_or((pattern, None), |(h, p)| (h, Some(format!("/{p}"))));
            let hosts = if host.is_empty() { Vec::new() } else { vec![host.parse().unwrap()] };
            Route { hosts, path, to: to.to_owned() }
        };
        Routes::new(&text.split("; ").map(route).collect::<Vec<_>>())
    }

    #[test]
    fn the_most_specific_route_wins_in_any_order() {
        let text = "/ > rest; *.example.org > wild; a.example.org > a; a.example.org/api > api; \
            *.b.example.org > longer; /static/ > static";
        let reversed = text.split("; ").collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("; ");
        for routes in [routes(text), routes(&reversed)] {
            let check = |host: &str, path: &str, to: &str| {
                let found = routes.find(host.as_bytes(), path.as_bytes()).map(String::as_str);
                assert_eq!(found, Some(to), "{host}{path}");
            };
            check("a.example.org", "/", "a");
            check("A.Example.ORG:8080", "/x", "a");
            check("a.example.org.", "/api", "api");
            check("a.example.org", "/api/x", "api");
            check("a.example.org", "/api?x", "api");
            check("a.example.org", "/apis", "a");
            check("c.example.org", "/api", "wild");
            check("x.b.example.org", "/", "longer");
            check("example.org", "/", "rest");
            check("", "/static/x", "static");
            check("[::1]:80", "/static", "static");
        }
    }

    #[test]
    fn without_a_match_there_is_no_target() {
        assert_eq!(routes("a.example > a").find(b"b.example", b"/"), None);
        assert_eq!(Routes::<()>::default().find(b"b.example", b"/"), None);
    }

    #[test]
    fn invalid_hosts_are_refused() {
        for wrong in ["", "*", "*.", "a..b", "a b", "*a.example", "http://a"] {
            assert!(wrong.parse::<HostPattern>().is_err(), "{wrong}");
        }
        for right in ["a", "*.a", "a-b.example", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(right.parse::<HostPattern>().unwrap().to_string(), right);
        }
    }
}
