//! Corrections of values: words of other programs, numbers with suffixes, and words for true and false.

use crate::config::raw::{Value, shown};
use evener_core::spec::Policy;
use std::time::Duration;

/// Returns the policy for a word of another program.
pub(crate) fn policy(word: &str) -> Option<&'static str> {
    let letters: String = word.chars().filter(char::is_ascii_alphanumeric).collect();
    let policy = match letters.to_lowercase().as_str() {
        "roundrobin" | "rr" | "default" => "round_robin",
        "wrr" | "staticrr" | "weightedroundrobin" | "wroundrobin" | "smooth" => "weighted",
        "leastconn" | "leastconnections" | "leastconnection" | "leastrequest" | "lc" | "wlc" | "least" => {
            "least_conn"
        }
        "source" | "iphash" | "sourceip" | "clientip" | "ringhash" | "consistent" | "consistenthash"
        | "sh" | "uri" | "urihash" | "sticky" => "hash",
        "random" | "randomchoose" | "poweroftwo" | "twochoices" => "p2c",
        "leasttime" | "peakewma" | "fastest" | "latency" => "ewma",
        "priority" | "prio" | "failover" | "backup" | "activepassive" => "first",
        _ => return None,
    };
    debug_assert!(Policy::named(policy).is_some(), "{policy} is a policy");
    Some(policy)
}

/// Returns the advice about an unknown key that depends on its value.
pub(crate) fn of_unknown_key(table: &str, key: &str, value: &Value) -> Option<String> {
    let is_status = |value: &Value| {
        value.number().is_some_and(|number| number.len() == 3 && number.parse::<u16>().is_ok())
    };
    match (table, key, value) {
        ("check.http" | "check.https", "expect" | "match" | "response", value) if is_status(value) => {
            Some(format!("write status = {}", value.number()?))
        }
        ("service", "cache", Value::Bool(true)) => Some("write dns = { cache = true }".into()),
        ("service.routes", key, Value::Text(pool)) if key.starts_with('/') => {
            let (path, pool) = (shown(key), shown(pool));
            Some(format!("write routes = {{ {{ path = {path}, pool = {pool} }} }}"))
        }
        ("service.routes", key, Value::Text(pool)) if key.contains('.') => {
            let (host, pool) = (shown(key), shown(pool));
            Some(format!("write routes = {{ {{ host = {host}, pool = {pool} }} }}"))
        }
        _ => None,
    }
}

/// Returns the correction of an unknown protocol.
pub(crate) fn protocol(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "https" => "use \"http\" with `tls`",
        "h2" | "http2" | "http/2" => "use \"http\" with `tls`: HTTP/2 is negotiated by default",
        "grpc" => "use \"http\" with `tls`, which negotiates HTTP/2, or pass it through with \"tcp\"",
        "h3" | "http3" | "http/3" | "quic" => {
            "HTTP/3 is not available: use \"http\" with `tls` for HTTP/2, or pass QUIC through with \"udp\""
        }
        "h2c" => "use \"tcp\", which passes it through: HTTP/2 without TLS is not available",
        "ws" | "websocket" => "use \"http\", which includes WebSocket",
        "wss" => "use \"http\" with `tls`, which includes WebSocket",
        "http1" | "http/1.1" | "http1.1" | "web" => "use \"http\"",
        "tls" | "ssl" => "use \"tcp\" with `tls` to terminate TLS, or without `tls` to pass it through",
        "dot" | "doh" => "it is not available: use \"dns\" for DNS over UDP and TCP",
        "tcp4" | "tcp6" | "stream" | "smtp" | "mysql" | "redis" | "ssh" | "postgres" => "use \"tcp\"",
        "udp4" | "udp6" | "syslog" | "datagram" => "use \"udp\"",
        _ => return None,
    })
}

/// Returns the correction of a text that should be true or false.
pub(crate) fn boolean(key: &str, value: &Value) -> String {
    let word = match value {
        Value::Int(1) => "yes".to_owned(),
        Value::Int(0) => "no".to_owned(),
        // `on` without quotes is a function.
        Value::Other(_) => return "write true or false".to_owned(),
        other => other.text().unwrap_or_default().to_ascii_lowercase(),
    };
    match word.as_str() {
        "true" | "false" => format!("write {key} = {word}, without quotes"),
        "yes" | "on" | "1" | "enable" | "enabled" => format!("write {key} = true"),
        "no" | "off" | "0" | "disable" | "disabled" | "none" => format!("write {key} = false"),
        _ => String::new(),
    }
}

/// Returns an advice such as `write policy = "least_conn"` with the value that another program has for the key.
pub(crate) fn with_value(advice: &str, given: &str) -> String {
    let Some((before, example)) = advice.rsplit_once(" = ") else { return advice.to_owned() };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_protocol = ["tcp", "udp", "http", "dns"].contains(&given);
    match policy(given) {
        Some(policy) if before.ends_with("policy") => format!("{before} = \"{policy}\""),
        _ if before.ends_with("protocol") && is_protocol => format!("{before} = \"{given}\""),
        _ if is_number(given) && is_number(example) => format!("{before} = {given}"),
        _ => advice.to_owned(),
    }
}

/// Returns a message with `number` in place of the one number that its proposals give to a key.
pub(crate) fn with_number(message: &str, number: i64) -> String {
    let Some((before, proposal)) = message.split_once("write ") else { return message.to_owned() };
    let digits_at = |at: usize| {
        let rest = &proposal[at + 3..];
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        (at + 3, length, rest[length..].bytes().next())
    };
    let numbers: Vec<(usize, usize, Option<u8>)> = proposal
        .match_indices(" = ")
        .map(|(at, _)| digits_at(at))
        .filter(|(_, length, next)| *length > 0 && matches!(next, None | Some(b' ' | b',' | b';')))
        .collect();
    let [(at, length, _)] = numbers[..] else { return message.to_owned() };
    format!("{before}write {}{number}{}", &proposal[..at], &proposal[at + length..])
}

/// Returns the number that a text such as `100k`, `1,000` or `5 MB` means.
pub(crate) fn number(text: &str) -> Option<u64> {
    let digits: String = text.chars().filter(|c| !matches!(c, ',' | '_' | ' ' | '\'')).collect();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let scale = match suffix.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1000,
        "m" => 1_000_000,
        "kib" | "kb" | "ki" => 1 << 10,
        "mib" | "mb" | "mi" => 1 << 20,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// Returns true for a word that means that there is no limit.
pub(crate) fn is_endless(text: &str) -> bool {
    let words =
        ["never", "forever", "none", "off", "no", "infinite", "infinity", "unlimited", "inf", "0", "-1"];
    words.contains(&text.trim().to_ascii_lowercase().as_str())
}

/// Returns the correction of a duration, such as `1.5s` or `30S`.
pub(crate) fn duration(text: &str) -> Option<String> {
    let lower = text.trim().to_lowercase().replace(',', ".");
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = lower.split_at(end);
    let unit_ms = match unit.trim() {
        "ms" | "msec" | "msecs" | "millis" => 1.0,
        "s" | "sec" | "secs" | "second" | "seconds" => 1000.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000.0,
        "d" | "day" | "days" => 86_400_000.0,
        _ => return None,
    };
    let ms = number.parse::<f64>().ok()? * unit_ms;
    if !(1.0..1e12).contains(&ms) {
        return None;
    }
    let duration = Duration::from_millis(ms.round() as u64);
    Some(humantime::format_duration(duration).to_string().replace("m ", "min "))
}

/// Returns the correction of a size, such as `64MB` or `1g`.
pub(crate) fn size(text: &str) -> Option<String> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" | "ki" => "KiB",
        "m" | "mb" | "mib" | "mi" => "MiB",
        "g" | "gb" | "gib" | "gi" => "GiB",
        "t" | "tb" | "tib" | "ti" => "TiB",
        "b" | "bytes" | "byte" => "B",
        _ => return None,
    };
    (!number.is_empty()).then(|| format!("{number}{unit}"))
}

/// Returns the correction of a version of TLS.
pub(crate) fn tls_version(text: &str) -> String {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    match digits.as_str() {
        "12" => "write \"1.2\"".into(),
        "13" => "write \"1.3\"".into(),
        "1" | "10" | "11" | "2" | "3" | "30" => "older versions are not available: write \"1.2\"".into(),
        _ => String::new(),
    }
}

/// Returns how stickiness by a word is written.
pub(crate) fn sticky(text: &str) -> String {
    match text.to_ascii_lowercase().replace('-', "_").as_str() {
        "client_ip" | "ip" | "source" | "source_ip" | "src" | "client" | "ip_hash" | "address" | "yes"
        | "on" | "true" => "write sticky = { by = \"client_ip\" }".into(),
        "cookie" | "insert" | "session" => "write sticky = { by = \"cookie\" }".into(),
        "false" | "off" | "no" | "none" => "write sticky = false".into(),
        _ => String::new(),
    }
}

/// Returns the way a client is recognized that a word of another program means.
pub(crate) fn sticky_by(text: &str) -> String {
    match text.to_ascii_lowercase().replace('-', "_").as_str() {
        "ip" | "source" | "source_ip" | "src" | "client" | "address" | "ip_hash" | "remote_addr" => {
            "write by = \"client_ip\"".into()
        }
        "cookies" | "session" | "insert" => "write by = \"cookie\"".into(),
        "header" | "url" | "uri" | "path" | "query" => {
            "only the client's address and a cookie are available".into()
        }
        _ => String::new(),
    }
}

/// Returns how a check is written that a value of the key `check` means.
pub(crate) fn check(value: &Value) -> String {
    match value {
        Value::Bool(true) => "write check = \"tcp\", or check = \"http\" for a request".into(),
        Value::Text(text) if text.starts_with('/') => {
            format!("write check = check.http {{ path = {} }}", shown(text))
        }
        Value::Text(text) if text.contains("://") => {
            let scheme = if text.starts_with("https") { "https" } else { "http" };
            let path = text.splitn(4, '/').nth(3).unwrap_or_default();
            format!("write check = check.{scheme} {{ path = {} }}", shown(&format!("/{path}")))
        }
        Value::Text(text) if text == "ping" || text == "icmp" => {
            "ping is not available: write check = \"tcp\"".into()
        }
        Value::Table(table) => match table.keys().next() {
            Some("send" | "expect" | "begins") => "write check = check.tcp { ... }".into(),
            _ => "write the kind before the table: check = check.http { ... }".into(),
        },
        Value::Int(_) => "write check = check.tcp { every = \"2s\" }".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_other_programs_are_corrected() {
        assert_eq!(number("100k"), Some(100_000));
        assert_eq!(number("1,000"), Some(1000));
        assert_eq!(number("64KiB"), Some(65_536));
        assert_eq!((number("many"), number("5x"), number("99999999999999999999")), (None, None, None));
        assert_eq!(duration("30S"), Some("30s".into()));
        assert_eq!(duration("1.5h"), Some("1h 30m".into()));
        assert_eq!((duration("soon"), duration("1e400s"), duration("")), (None, None, None));
        assert_eq!((size("64MB"), size("1g"), size("x")), (Some("64MiB".into()), Some("1GiB".into()), None));
        assert_eq!(tls_version("TLSv1.2"), "write \"1.2\"");
        assert_eq!(with_value("write policy = \"least_conn\"", "leastconn"), "write policy = \"least_conn\"");
        assert_eq!(with_value("write policy = \"least_conn\"", "source"), "write policy = \"hash\"");
        assert_eq!(with_value("write connections_max = 20000", "100"), "write connections_max = 100");
        assert_eq!(with_value("write protocol = \"http\"", "tcp"), "write protocol = \"tcp\"");
        assert_eq!(with_value("use `tls`", "x"), "use `tls`");
        assert_eq!(with_number("a; write { \"h:80\", max = 100 }", 7), "a; write { \"h:80\", max = 7 }");
        assert_eq!(with_number("a; write x = 1, y = 2", 7), "a; write x = 1, y = 2");
        assert_eq!(with_number("a; write x = \"1s\"", 7), "a; write x = \"1s\"");
    }
}
