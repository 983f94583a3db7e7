//! Messages about invalid addresses, with the correction of common mistakes.

use super::raw::{Made, Run, Value, shown};
use crate::scope;
use evener_core::Endpoint;
use evener_core::address::AddressError;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The part that an address has in a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Listen,
    Server,
}

/// Names of ports (services(5)) that are often written instead of the number.
const PORT_NAMES: [(&str, u16); 9] = [
    ("http", 80),
    ("https", 443),
    ("dns", 53),
    ("domain", 53),
    ("ssh", 22),
    ("smtp", 25),
    ("syslog", 514),
    ("mysql", 3306),
    ("redis", 6379),
];

/// Parses a listen address. `port` is the usual port of the service.
pub(super) fn parse_listen(text: &str, port: u16) -> Result<Endpoint, String> {
    match scope::parse_listen(text).map_err(|error| problem(text, &error, Part::Listen, port))? {
        Endpoint::Host { name, port } if name == "localhost" => Err(format!(
            "`{name}:{port}` is not a listen address, because host names are not resolved for listening: write \"127.0.0.1:{port}\", \"[::1]:{port}\" or both"
        )),
        Endpoint::Host { name, port } => Err(format!(
            "`{name}:{port}` is not a listen address, because host names are not resolved for listening: write an IP address, such as 0.0.0.0:{port} for all IPv4 addresses"
        )),
        Endpoint::Ip(address) if address.ip().is_multicast() => Err(format!(
            "`{text}` is a multicast address, and evener does not join multicast groups: write an address of this machine, such as 0.0.0.0:{}",
            address.port()
        )),
        Endpoint::Ip(address) if address.ip() == Ipv4Addr::BROADCAST => Err(format!(
            "`{text}` is the broadcast address: write an address of this machine, such as 0.0.0.0:{}",
            address.port()
        )),
        endpoint => Ok(endpoint),
    }
}

/// Returns the usual port of a service, or of the services that use a pool.
pub(super) fn usual_port(run: &Run, made: &Made) -> u16 {
    let uses = |service: &&Made| match service.table().get("pool") {
        Some(Value::Text(name)) => name == made.name(),
        Some(Value::Made(pool)) => pool.name() == made.name(),
        _ => false,
    };
    let user = || run.services().iter().map(AsRef::as_ref).find(uses);
    let service = if made.builder() == "service" { Some(made) } else { user() };
    let has_tls = |made: &Made| !matches!(made.table().get("tls"), None | Some(Value::Bool(false)));
    match service.and_then(|service| service.table().get("protocol")).and_then(Value::text) {
        Some("dns") => 53,
        _ if has_tls(made) => 443,
        _ => 80,
    }
}

/// Returns the message about an invalid address. `usual` is the port to propose if there is none.
pub(super) fn problem(text: &str, error: &AddressError, part: Part, usual: u16) -> String {
    if let Some(message) = surrounded(text, part) {
        return message;
    }
    if let Some((address, port)) = bare_ipv6(text) {
        return format!("`{text}` needs brackets: write an IPv6 address as [{address}]:{port}");
    }
    match error {
        AddressError::NoHost(_) => no_host(text, part),
        AddressError::Url(_) => url(text, usual),
        AddressError::NoPort(_) => no_port(text, usual),
        AddressError::Port { port, .. } => invalid_port(text, port, part),
        AddressError::Brackets(_) if text.parse::<Ipv6Addr>().is_ok() => no_port(text, usual),
        AddressError::Host(host) => invalid_host(host, text),
        error => error.to_string(),
    }
}

/// Returns the message about an invalid address of a server that is not in a file.
pub(crate) fn server_problem(text: &str, error: &AddressError, usual: u16) -> String {
    problem(text, error, Part::Server, usual)
}

/// Returns the message about white space, a list, or a setting behind an address.
fn surrounded(text: &str, part: Part) -> Option<String> {
    let parse = |text: &str| scope::parse_listen(text).is_ok();
    if text != text.trim() && parse(text.trim()) {
        return Some(format!(
            "{} has a space at its {}: write {}",
            shown(text),
            side(text),
            shown(text.trim())
        ));
    }
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';'))
        .filter(|word| !word.is_empty())
        .collect();
    let (first, rest) = words.split_first()?;
    if rest.is_empty() || !parse(first) {
        return None;
    }
    if rest.iter().all(|word| parse(word)) {
        let each: Vec<String> = words.iter().map(|word| shown(word)).collect();
        let each = each.join(", ");
        return Some(match part {
            Part::Listen => format!("{} has several addresses: write listen = {{ {each} }}", shown(text)),
            Part::Server => format!("{} has several addresses: write {each}", shown(text)),
        });
    }
    let number =
        rest.iter().find_map(|word| word.strip_prefix("weight=").or_else(|| word.strip_prefix("weight:")));
    Some(match (part, number) {
        (Part::Server, number) => format!(
            "{} has settings behind the address: write them as keys: {{ {}, weight = {} }}",
            shown(text),
            shown(first),
            number.unwrap_or("2")
        ),
        (Part::Listen, _) if rest.contains(&"ssl") => {
            format!(
                "{} has a word behind the address: write listen = {} and tls = {{ ... }}",
                shown(text),
                shown(first)
            )
        }
        (Part::Listen, _) => {
            format!("{} has words behind the address: write listen = {}", shown(text), shown(first))
        }
    })
}

fn side(text: &str) -> &'static str {
    if text.starts_with(char::is_whitespace) { "beginning" } else { "end" }
}

fn no_host(text: &str, part: Part) -> String {
    let port = text.trim_start_matches(['*', ':']);
    match part {
        _ if port.parse::<u16>().is_err() => {
            format!("`{text}` has no host: write an address such as 0.0.0.0:80")
        }
        Part::Listen => {
            format!(
                "`{text}` has no host: write 0.0.0.0:{port} for all IPv4 addresses, [::]:{port} for all IPv6 addresses, or both"
            )
        }
        Part::Server => format!("`{text}` has no host: write the server's host, such as 10.0.0.1:{port}"),
    }
}

/// Returns the message about a URL, with its host and port.
fn url(text: &str, usual: u16) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let address = rest.split(['/', '?']).next().unwrap_or_default();
    let address = address.rsplit('@').next().unwrap_or_default();
    let port = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => 80,
        "https" | "wss" => 443,
        _ => usual,
    };
    let with_port = format!("{address}:{port}");
    let right = [address, &with_port].into_iter().find(|text| scope::parse(text).is_ok());
    let right = right.map_or_else(|| "such as 10.0.0.1:80".into(), str::to_owned);
    format!("`{text}` is a URL; write only its host and port, {right}")
}

fn no_port(text: &str, usual: u16) -> String {
    if let Some((host, port)) = text.split_once(']')
        && text.starts_with('[')
        && port.parse::<u16>().is_ok()
    {
        return format!("`{text}` lacks a colon: write {host}]:{port}");
    }
    match text.trim_matches(['[', ']']).parse::<Ipv6Addr>() {
        Ok(address) => format!("`{text}` has no port: write it as [{address}]:{usual}"),
        Err(_) if !text.starts_with('[') && scope::parse(&format!("{text}:{usual}")).is_err() => {
            invalid_host(text, text)
        }
        Err(_) => format!("`{text}` has no port: write it as {text}:{usual}"),
    }
}

fn invalid_port(text: &str, port: &str, part: Part) -> String {
    let host = text.strip_suffix(port).unwrap_or_default();
    if let Some((_, number)) = PORT_NAMES.iter().find(|(name, _)| *name == port.to_ascii_lowercase()) {
        return format!("the port of `{text}` must be a number: write {host}{number}");
    }
    if let Some((first, last)) = port.split_once('-')
        && let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>())
    {
        return match part {
            Part::Listen => format!(
                "`{text}` has a range of ports: declare a service for each, such as for port = {first}, {last} do service(\"s\" .. port) {{ listen = \"{host}\" .. port, pool = \"web\" }} end"
            ),
            Part::Server => format!("`{text}` has a range of ports: write a server for each port"),
        };
    }
    if let Some((number, _)) = port.split_once('/')
        && number.parse::<u16>().is_ok()
    {
        return format!("`{text}` has a path: an address is only a host and a port: write {host}{number}");
    }
    format!("invalid port `{port}` in `{text}`: a port is a number from 1 to 65535")
}

/// Returns the message about a host that is neither an IPv4 address nor a host name.
fn invalid_host(host: &str, text: &str) -> String {
    let parts: Vec<&str> = host.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !parts.iter().all(is_number) {
        return format!("`{host}` is neither an IPv4 address nor a host name");
    }
    if parts.len() != 4 {
        return format!("`{host}` is not an IPv4 address: it has {} numbers instead of 4", parts.len());
    }
    if parts.iter().any(|part| part.parse::<u32>().map_or(true, |number| number > 255)) {
        return format!("`{host}` is not an IPv4 address: its numbers are at most 255");
    }
    let decimal: Vec<String> =
        parts.iter().map(|part| part.parse::<u32>().unwrap_or_default().to_string()).collect();
    let right = text.replacen(host, &decimal.join("."), 1);
    match right.parse::<Endpoint>().is_ok() || decimal.join(".").parse::<Ipv4Addr>().is_ok() {
        true => format!(
            "`{host}` has a number with a leading zero, which other programs read as octal: write {right}"
        ),
        false => format!("`{host}` is neither an IPv4 address nor a host name"),
    }
}

/// Splits an IPv6 address with a port but without brackets, such as `::1:80` or `fe80::1%eth0:80`, into the
/// address and the port.
fn bare_ipv6(text: &str) -> Option<(&str, &str)> {
    let (address, port) = text.rsplit_once(':')?;
    let ip = address.split('%').next()?;
    let is_address = ip.parse::<Ipv6Addr>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_address && !port.is_empty()).then_some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(part: Part, text: &str, expected: &str) {
        let seen = match part {
            Part::Listen => parse_listen(text, 80).expect_err(text),
            Part::Server => problem(text, &scope::parse(text).expect_err(text), part, 53),
        };
        assert_eq!(seen, expected, "{text}");
    }

    #[test]
    fn messages_about_servers_have_the_correction() {
        let check = |text, expected| check(Part::Server, text, expected);
        check("9.9.9.9", "`9.9.9.9` has no port: write it as 9.9.9.9:53");
        check("2001:db8::1", "`2001:db8::1` has no port: write it as [2001:db8::1]:53");
        check("[::1]", "`[::1]` has no port: write it as [::1]:53");
        check("::1:80", "`::1:80` needs brackets: write an IPv6 address as [::1]:80");
        check("fe80::1%lo:80", "`fe80::1%lo:80` needs brackets: write an IPv6 address as [fe80::1%lo]:80");
        check("[::1]80", "`[::1]80` lacks a colon: write [::1]:80");
        check("10.0.0.1:http", "the port of `10.0.0.1:http` must be a number: write 10.0.0.1:80");
        check("10.0.0.1:80 ", "\"10.0.0.1:80 \" has a space at its end: write \"10.0.0.1:80\"");
        check(" 10.0.0.1:80", "\" 10.0.0.1:80\" has a space at its beginning: write \"10.0.0.1:80\"");
        check(
            "10.0.0.1:80, 10.0.0.2:80",
            "\"10.0.0.1:80, 10.0.0.2:80\" has several addresses: write \"10.0.0.1:80\", \"10.0.0.2:80\"",
        );
        check(
            "10.0.0.1:80 weight=5",
            "\"10.0.0.1:80 weight=5\" has settings behind the address: write them as keys: { \"10.0.0.1:80\", weight = 5 }",
        );
        check(
            "010.0.0.1:80",
            "`010.0.0.1` has a number with a leading zero, which other programs read as octal: write 10.0.0.1:80",
        );
        check("10.0.0.256:80", "`10.0.0.256` is not an IPv4 address: its numbers are at most 255");
        check("10.0.1:80", "`10.0.1` is not an IPv4 address: it has 3 numbers instead of 4");
        check("a b:80", "`a b` is neither an IPv4 address nor a host name");
        check("http://10.0.0.1/x", "`http://10.0.0.1/x` is a URL; write only its host and port, 10.0.0.1:80");
        check("tcp://10.0.0.1:90", "`tcp://10.0.0.1:90` is a URL; write only its host and port, 10.0.0.1:90");
        check(":80", "`:80` has no host: write the server's host, such as 10.0.0.1:80");
        check("*:80", "`*:80` has no host: write the server's host, such as 10.0.0.1:80");
        check("10.0.0.1:80-90", "`10.0.0.1:80-90` has a range of ports: write a server for each port");
        check(
            "10.0.0.1:80/x",
            "`10.0.0.1:80/x` has a path: an address is only a host and a port: write 10.0.0.1:80",
        );
        check(
            "10.0.0.1:70000",
            "invalid port `70000` in `10.0.0.1:70000`: a port is a number from 1 to 65535",
        );
    }

    #[test]
    fn messages_about_listen_addresses_have_the_correction() {
        let check = |text, expected| check(Part::Listen, text, expected);
        check(
            "80",
            "`80` has no host: write 0.0.0.0:80 for all IPv4 addresses, [::]:80 for all IPv6 addresses, or both",
        );
        check(
            "*:80",
            "`*:80` has no host: write 0.0.0.0:80 for all IPv4 addresses, [::]:80 for all IPv6 addresses, or both",
        );
        check("0.0.0.0", "`0.0.0.0` has no port: write it as 0.0.0.0:80");
        check(
            "localhost:80",
            "`localhost:80` is not a listen address, because host names are not resolved for listening: write \"127.0.0.1:80\", \"[::1]:80\" or both",
        );
        check("443 ssl", "`443 ssl` is neither an IPv4 address nor a host name");
        check(
            "0.0.0.0:443 ssl",
            "\"0.0.0.0:443 ssl\" has a word behind the address: write listen = \"0.0.0.0:443\" and tls = { ... }",
        );
        check(
            "0.0.0.0:80-81",
            "`0.0.0.0:80-81` has a range of ports: declare a service for each, such as for port = 80, 81 do service(\"s\" .. port) { listen = \"0.0.0.0:\" .. port, pool = \"web\" } end",
        );
    }
}
