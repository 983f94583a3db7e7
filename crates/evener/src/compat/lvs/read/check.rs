//! Checks of real servers.

use super::{Reader, note};
use crate::check::compile;
use crate::compat::lvs::syntax::Statement;
use crate::compat::lvs::{Check, Probe};

/// Names of the blocks that are checks.
pub(super) const KINDS: [&str; 9] = [
    "TCP_CHECK",
    "HTTP_GET",
    "SSL_GET",
    "SMTP_CHECK",
    "DNS_CHECK",
    "MISC_CHECK",
    "UDP_CHECK",
    "PING_CHECK",
    "BFD_CHECK",
];

/// Keys of most checks.
const COMMON: &[&str] = &[
    "connect_ip",
    "connect_port",
    "bindto",
    "bind_port",
    "bind_if",
    "connect_timeout",
    "fwmark",
    "alpha",
    "retry",
    "delay_before_retry",
    "delay_loop",
    "warmup",
    "log_all_failures",
];

/// Keys of some checks.
const OTHERS: &[&str] = &[
    "misc_path",
    "misc_timeout",
    "misc_dynamic",
    "user",
    "helo_name",
    "host",
    "url",
    "type",
    "name",
    "payload",
    "require_reply",
    "min_reply_length",
    "max_reply_length",
    "nb_get_retry",
    "virtualhost",
    "enable_sni",
    "http_protocol",
    "tls_compliant",
];

/// Keys of the page that a check of HTTP requests.
const OF_URL: &[&str] = &[
    "path",
    "status_code",
    "digest",
    "regex",
    "regex_no_match",
    "regex_options",
    "regex_stack",
    "regex_min_offset",
    "regex_max_offset",
];

/// Returns the names of checks and their keys.
#[cfg(test)]
pub(super) fn keywords() -> impl Iterator<Item = &'static str> {
    KINDS.into_iter().chain([COMMON, OTHERS, OF_URL].into_iter().flatten().copied())
}

impl Reader {
    /// Reads a check. Returns `None` if Evener has no such check.
    pub(super) fn check(&mut self, statement: &Statement) -> Option<Check> {
        let keyword = statement.keyword();
        let probe = self.probe(statement)?;
        let mut check = Check {
            probe,
            port: None,
            timeout: None,
            retries: None,
            retry_pause: None,
            every: None,
            warm_up: None,
        };
        for line in statement.block() {
            match line.keyword() {
                "misc_path" if keyword == "MISC_CHECK" => {}
                "misc_timeout" if keyword == "MISC_CHECK" => check.timeout = self.milliseconds(line),
                "misc_dynamic" if keyword == "MISC_CHECK" => {
                    self.notes.push(note(line, "each status but 0 is a failure; a function can set weights"));
                }
                "user" if keyword == "MISC_CHECK" => {
                    self.notes.push(note(line, "the program runs with the rights of Evener"));
                }
                "helo_name" if keyword == "SMTP_CHECK" => match (line.arguments(), &mut check.probe) {
                    ([name], Probe::Smtp { helo }) => *helo = Some(name.clone()),
                    _ => self.wrong(line, "a name"),
                },
                "host" if keyword == "SMTP_CHECK" => self.smtp_host(line, &mut check),
                "connect_port" => check.port = self.number(line),
                "connect_timeout" => check.timeout = self.milliseconds(line),
                "retry" | "nb_get_retry" => check.retries = self.number(line),
                "delay_before_retry" => check.retry_pause = self.milliseconds(line),
                "delay_loop" => check.every = self.milliseconds(line),
                "url" | "virtualhost" | "enable_sni" | "http_protocol" | "tls_compliant"
                    if keyword.ends_with("_GET") => {}
                "warmup" => check.warm_up = self.milliseconds(line),
                "alpha" | "log_all_failures" => {
                    self.notes.push(note(line, "an unchecked server takes clients only while no other can"));
                }
                "type" if keyword == "DNS_CHECK" => self.dns_type(line, &mut check),
                "name" if keyword == "DNS_CHECK" => self.dns_name(line, &mut check),
                "payload" if keyword == "UDP_CHECK" => self.payload(line, &mut check),
                "min_reply_length" | "max_reply_length" | "require_reply" if keyword == "UDP_CHECK" => {
                    self.notes.push(note(line, "any response passes; `expect` compares its first bytes"));
                }
                _ if COMMON.contains(&line.keyword()) => {
                    self.notes.push(note(line, "a check has no such setting"));
                }
                _ => {
                    self.unknown(line, COMMON.iter().chain(OTHERS).copied(), keyword);
                }
            }
        }
        Some(check)
    }

    fn probe(&mut self, statement: &Statement) -> Option<Probe> {
        match statement.keyword() {
            "TCP_CHECK" => Some(Probe::Tcp),
            "HTTP_GET" | "SSL_GET" => self.http(statement),
            "DNS_CHECK" => Some(Probe::Dns { name: ".".into(), kind: "SOA".into() }),
            "UDP_CHECK" => Some(Probe::Udp { send: "\\0".into() }),
            "SMTP_CHECK" => Some(Probe::Smtp { helo: None }),
            "MISC_CHECK" => {
                let path = statement.block().iter().find(|line| line.keyword() == "misc_path");
                match path {
                    Some(line) => self.program(line).map(Probe::Exec),
                    None => {
                        self.problems.push(statement.problem("MISC_CHECK needs a program: add misc_path"));
                        None
                    }
                }
            }
            _ => {
                let advice = "write a check of another kind, or a function: see `evener help check`";
                self.notes.push(note(statement, advice));
                None
            }
        }
    }

    fn http(&mut self, statement: &Statement) -> Option<Probe> {
        let mut urls = statement.block().iter().filter(|line| line.keyword() == "url");
        let first = urls.next();
        for more in urls {
            self.notes.push(note(more, "a check requests one page"));
        }
        let (mut digest, mut regex) = (None, None);
        let (mut path, mut host, mut statuses) = ("/".to_owned(), None, (200..=299).collect());
        for line in statement.block().iter().filter(|line| line.keyword() == "virtualhost") {
            host = line.arguments().first().cloned();
        }
        for line in first.map_or(&[][..], Statement::block) {
            match (line.keyword(), line.arguments()) {
                ("path", [given]) => path.clone_from(given),
                ("virtualhost", [given]) => host = Some(given.clone()),
                ("status_code", codes) if !codes.is_empty() => {
                    match codes.iter().map(|code| statuses_of(code)).collect::<Option<Vec<_>>>() {
                        Some(found) => statuses = found.into_iter().flatten().collect(),
                        None => self.wrong(line, "statuses such as 200 or 200-299"),
                    }
                }
                ("digest", [digits]) => digest = Some(digits.clone()),
                ("regex", [text]) if compile(text).is_ok() => regex = Some(text.clone()),
                (
                    "digest" | "regex" | "regex_no_match" | "regex_options" | "regex_stack"
                    | "regex_min_offset" | "regex_max_offset" | "tls_compliant",
                    _,
                ) => {
                    self.notes.push(note(
                        line,
                        "write regex = \"...\", an expression without backreferences and look-around",
                    ));
                }
                _ => self.unknown(line, OF_URL.iter().copied().chain(["virtualhost"]), "url"),
            }
        }
        // keepalived takes every 2xx status if no status is named.
        Some(Probe::Http { is_tls: statement.keyword() == "SSL_GET", path, host, statuses, digest, regex })
    }

    /// Reads `host { connect_port 25 }` of an SMTP check.
    fn smtp_host(&mut self, statement: &Statement, check: &mut Check) {
        for line in statement.block() {
            match line.keyword() {
                "connect_port" => check.port = self.number(line),
                "connect_timeout" => check.timeout = self.milliseconds(line),
                _ if COMMON.contains(&line.keyword()) => {
                    self.notes.push(note(line, "a check has no such setting"));
                }
                _ => self.unknown(line, COMMON.iter().copied(), "host"),
            }
        }
    }

    fn dns_type(&mut self, line: &Statement, check: &mut Check) {
        match (line.arguments(), &mut check.probe) {
            ([given], Probe::Dns { kind, .. }) => *kind = given.to_ascii_uppercase(),
            _ => self.wrong(line, "a type such as A or SOA"),
        }
    }

    fn dns_name(&mut self, line: &Statement, check: &mut Check) {
        match (line.arguments(), &mut check.probe) {
            ([given], Probe::Dns { name, .. }) => name.clone_from(given),
            _ => self.wrong(line, "a name"),
        }
    }

    /// Reads the bytes of a datagram, in hexadecimal.
    fn payload(&mut self, line: &Statement, check: &mut Check) {
        let digits = line.arguments().concat();
        let bytes: Option<Vec<u8>> = (0..digits.len())
            .step_by(2)
            .map(|index| u8::from_str_radix(digits.get(index..index + 2)?, 16).ok())
            .collect();
        match (bytes, &mut check.probe) {
            (Some(bytes), Probe::Udp { send }) if !bytes.is_empty() => {
                *send = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            }
            _ => self.wrong(line, "bytes in hexadecimal"),
        }
    }
}

/// Returns the statuses of `200` or `200-299`.
fn statuses_of(code: &str) -> Option<Vec<u16>> {
    let (first, last) = code.split_once('-').unwrap_or((code, code));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    let is_valid = (100..=599).contains(&first) && (first..=599).contains(&last);
    is_valid.then(|| (first..=last).collect())
}
