//! Commands of penctl and of the configuration file. Each line changes the settings, or is a query or an
//! action. A line with an error changes nothing.

mod file;
mod more;

pub(in crate::compat::pen) use more::UNKNOWN;

use super::access_lists::LISTS;
use super::address::{Listen, PenLog, resolve};
use super::{FastClose, PenSettings};
use std::path::PathBuf;

/// An effect of a line other than a change of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::compat::pen) enum Step {
    /// The response.
    Respond(String),
    /// A query to the running instance, whose result is the response.
    Query(Query),
    /// An action on the running instance.
    Do(InstanceAction),
    /// A warning for the log: the command was accepted, but has no effect or another effect than in pen.
    Warn(String),
}

/// Queries to the running instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::compat::pen) enum Query {
    Servers,
    /// Clients of the last seconds.
    Recent(u64),
    Status,
    Connection(i64),
    Socket(i64),
    Idlers,
}

/// Actions on the running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::compat::pen) enum InstanceAction {
    /// Excludes a server for so many seconds; 0 includes it again.
    Blacklist(usize, u32),
    Close(i64),
    Write(PathBuf),
    Exit,
}

/// Name of a switch, and its field.
type Switch = (&'static str, fn(&mut PenSettings) -> &mut bool);

/// `WORD` turns the switch on, `no WORD` turns it off.
const SWITCHES: [Switch; 13] = [
    ("abort_on_error", |settings| &mut settings.abort_on_error),
    ("ascii", |settings| &mut settings.ascii),
    ("dummy", |settings| &mut settings.dummy),
    ("hash", |settings| &mut settings.hash),
    ("http", |settings| &mut settings.http),
    ("keepalive", |settings| &mut settings.keepalive),
    ("peek", |settings| &mut settings.peek),
    ("prio", |settings| &mut settings.prio),
    ("roundrobin", |settings| &mut settings.roundrobin),
    ("stubborn", |settings| &mut settings.stubborn),
    ("tcp_nodelay", |settings| &mut settings.tcp_nodelay),
    ("transparent", |settings| &mut settings.transparent),
    ("weight", |settings| &mut settings.weight),
];

/// Commands of pen without an effect, with the warnings about them.
const OBSOLETE: [(&str, &str); 11] = [
    ("abort_on_error", "errors do not call abort(): they are logged, and SIGUSR2 writes a core file"),
    ("ascii", "communication is not dumped: `log` writes requests, and tcpdump(8) captures the rest"),
    ("block", "sockets never block"),
    ("delayed_forward", "data is forwarded immediately"),
    ("dsr_ip", "the virtual address is the one to listen on"),
    ("epoll", "epoll is always used"),
    ("kqueue", "Linux has no kqueue; epoll is used"),
    ("peek", "a server is chosen without inspection of the request"),
    ("poll", "epoll is used"),
    ("select", "epoll is used"),
    ("ssl_client_renegotiation_interval", "renegotiation is not supported"),
];

/// A line split into words.
pub(super) struct Words<'a> {
    verb: &'a str,
    arguments: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(super) fn verb(&self) -> &'a str {
        self.verb
    }

    pub(super) fn arguments(&self) -> &[&'a str] {
        &self.arguments
    }

    /// Returns the argument, if any. More arguments are an error.
    pub(super) fn optional(&self) -> Result<Option<&'a str>, String> {
        match self.arguments[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [_, more, ..] => Err(format!("{}: `{more}` is one word too many", self.verb)),
        }
    }

    /// Returns the only argument.
    pub(super) fn one(&self, name: &str) -> Result<&'a str, String> {
        self.optional()?.ok_or_else(|| format!("{}: {name} is missing", self.verb))
    }

    /// Reports an error if there is an argument.
    pub(super) fn none(&self) -> Result<(), String> {
        match self.arguments.first() {
            None => Ok(()),
            Some(word) => Err(format!("{} takes no argument such as `{word}`", self.verb)),
        }
    }

    /// Returns the argument as a number, if any.
    pub(super) fn number<N: std::str::FromStr>(&self) -> Result<Option<N>, String> {
        let parse = |text: &str| text.parse().map_err(|_| format!("{}: `{text}` is not a number", self.verb));
        self.optional()?.map(parse).transpose()
    }
}

impl PenSettings {
    /// Executes a line. On failure some settings may have changed, so callers pass a copy and discard it.
    pub(in crate::compat::pen) fn execute(&mut self, line: &str) -> Result<Vec<Step>, String> {
        let words = split(line)?;
        let Some((&verb, arguments)) = words.split_first() else { return Ok(Vec::new()) };
        run(self, &Words { verb, arguments: arguments.to_vec() })
    }
}

/// Splits a line into words; a quoted word may have spaces. A word that begins with `#` begins a comment: pen
/// ignores words after the arguments of a command, so files have comments there.
pub(in crate::compat::pen) fn split(line: &str) -> Result<Vec<&str>, String> {
    let (mut words, mut rest) = (Vec::new(), line.trim());
    while let Some(first) = rest.chars().next().filter(|first| *first != '#') {
        let (word, after) = if matches!(first, '\'' | '"') {
            rest[1..].split_once(first).ok_or_else(|| format!("{rest}: the second {first} is missing"))?
        } else {
            rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

/// Quotes a text for [`split`] as one word; `None` if that is not possible.
pub(super) fn quote(text: &str) -> Option<String> {
    let plain = !text.is_empty() && !text.starts_with(['#', '\'', '"']);
    if text.chars().any(char::is_control) {
        None
    } else if plain && !text.contains(char::is_whitespace) {
        Some(text.to_owned())
    } else {
        let quote = ['\'', '"'].into_iter().find(|quote| !text.contains(*quote))?;
        Some(format!("{quote}{text}{quote}"))
    }
}

fn run(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    if let Some((_, switch)) = SWITCHES.iter().find(|(name, _)| *name == words.verb) {
        words.none()?;
        *switch(settings) = true;
        return Ok(obsolete(words.verb));
    }
    match words.verb {
        "no" => no(settings, words),
        "acl" => settings.access.execute(words).map(|()| Vec::new()),
        "server" => server(settings, words),
        "servers" | "status" | "connection" | "socket" | "close" | "recent" | "idlers" => {
            query(settings, words)
        }
        "mode" => words.none().map(|()| respond(mode(settings))),
        "blacklist" | "timeout" | "tracking" | "debug" | "idle_timeout" | "pending_max" | "backlog" => {
            set_number(settings, words)
        }
        "clients_max" | "conn_max" => table_size(settings, words),
        "client_acl" | "control_acl" => list_number(settings, words),
        "listen" | "log" | "web_stats" | "control" | "pid" => set_location(settings, words),
        "tcp_fastclose" => fast_close(settings, words),
        "source" => {
            let host = words.one("an address")?;
            let wrong = |error| format!("unable to set source address to '{host}': {error}");
            settings.source = Some(resolve(host).map_err(wrong)?);
            Ok(Vec::new())
        }
        "exit" => exit(settings, words),
        "write" => write(settings, words),
        "include" => file::include(settings, words.one("a file")?.as_ref()),
        verb if OBSOLETE.iter().any(|(name, _)| *name == verb) => Ok(obsolete(verb)),
        _ => more::run(settings, words),
    }
}

fn respond(text: impl Into<String>) -> Vec<Step> {
    vec![Step::Respond(text.into())]
}

/// Returns the warning about a command without an effect.
pub(super) fn obsolete(verb: &str) -> Vec<Step> {
    let known = OBSOLETE.iter().find(|(name, _)| *name == verb);
    known.map(|(name, why)| Step::Warn(format!("{name}: {why}"))).into_iter().collect()
}

/// Executes `no WORD`, which turns a setting off.
fn no(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let Some((&verb, arguments)) = words.arguments.split_first() else { return Err("no: what?".into()) };
    let inner = Words { verb, arguments: arguments.to_vec() };
    if let Some((_, switch)) = SWITCHES.iter().find(|(name, _)| *name == verb) {
        inner.none()?;
        *switch(settings) = false;
        return Ok(Vec::new());
    }
    match verb {
        "acl" => {
            settings.access.clear(parse_list_number(inner.one("its number")?)?);
        }
        "log" => inner.none().map(|()| settings.log = None)?,
        "web_stats" => inner.none().map(|()| settings.web_stats = None)?,
        "source" => inner.none().map(|()| settings.source = None)?,
        "block" | "delayed_forward" => inner.none()?,
        _ => more::no(settings, &inner)?,
    }
    Ok(Vec::new())
}

/// Parses the number of an access list.
pub(super) fn parse_list_number(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number: &usize| *number < LISTS);
    number.ok_or_else(|| format!("`{text}` is not an access list between 0 and {}", LISTS - 1))
}

/// Executes `server N [acl A] [address A] [port P] [max M] [hard H] [blacklist T] [weight W] [prio P]`.
fn server(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    const WANTED: &str = "acl, address, port, max, hard, blacklist, weight or prio";
    let Some((number, parameters)) = words.arguments.split_first() else {
        return Err(format!("server: its number is missing, then {WANTED}"));
    };
    let max = PenSettings::SERVER_MAX;
    let number = number.parse().ok().filter(|number| *number <= max);
    let number = number.ok_or_else(|| {
        format!("server: `{}` is not a number of a server between 0 and {max}", words.arguments[0])
    })?;
    let mut steps = Vec::new();
    let slot = settings.slot(number);
    for pair in parameters.chunks(2) {
        let [name, value] = *pair else { return Err(format!("server: `{}` lacks its value", pair[0])) };
        if name == "blacklist" {
            let seconds = value.parse().map_err(|_| format!("server: {name} is not a number: `{value}`"))?;
            steps.push(Step::Do(InstanceAction::Blacklist(number, seconds)));
        } else if !slot.set(name, value)? {
            return Err(format!("server: `{name}` is not one of {WANTED}"));
        }
    }
    if !steps.is_empty() && !slot.is_used() {
        return Err(format!("server {number} has no address and port yet"));
    }
    Ok(steps)
}

/// Executes a command that queries the running instance.
fn query(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let number = |words: &Words<'_>| words.number().map(|number: Option<i64>| number.unwrap_or(0));
    let query = match words.verb {
        "servers" => words.none().map(|()| Query::Servers)?,
        "status" => words.none().map(|()| Query::Status)?,
        "connection" => Query::Connection(number(words)?),
        "socket" => Query::Socket(number(words)?),
        "recent" => Query::Recent(words.number()?.unwrap_or(300)),
        "close" => return Ok(vec![Step::Do(InstanceAction::Close(number(words)?))]),
        _ => {
            if let Some(number) = words.number()? {
                settings.idlers = number;
            }
            Query::Idlers
        }
    };
    Ok(vec![Step::Query(query)])
}

fn mode(settings: &PenSettings) -> String {
    let modes = [
        ("hash", settings.hash),
        ("roundrobin", settings.roundrobin),
        ("stubborn", settings.stubborn),
        ("weight", settings.weight),
        ("prio", settings.prio),
    ];
    let word = |(name, on): (&str, bool)| if on { name.to_owned() } else { format!("no {name}") };
    format!("{}\n", modes.map(word).join(" "))
}

/// Sets a number, and responds with it.
fn set_number(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let given: Option<u32> = words.number()?;
    let (value, least) = match words.verb {
        "blacklist" => (&mut settings.blacklist, 0),
        "timeout" => (&mut settings.timeout, 1),
        "tracking" => (&mut settings.tracking, 0),
        "idle_timeout" => (&mut settings.idle_timeout, 0),
        "pending_max" => (&mut settings.pending_max, 1),
        "backlog" => (&mut settings.backlog, PenSettings::BACKLOG_MIN),
        _ => (&mut settings.debug, 0),
    };
    if let Some(given) = given {
        if given < least {
            return Err(format!("{}: at least {least}", words.verb));
        }
        *value = given;
    }
    Ok(match words.verb {
        "idle_timeout" => respond(format!("Idle timeout: {value} seconds\n")),
        "pending_max" => Vec::new(),
        _ => respond(format!("{value}\n")),
    })
}

/// Sets the size of a table. Tables never shrink.
fn table_size(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let given: Option<u32> = words.number()?;
    let (value, default) = match words.verb {
        "clients_max" => (&mut settings.clients_max, PenSettings::CLIENTS_MAX),
        _ => (&mut settings.conn_max, PenSettings::CONN_MAX),
    };
    if let Some(given) = given {
        const MAX: u32 = 16_000_000;
        if !(1..=MAX).contains(&given) {
            return Err(format!("{}: from 1 to {MAX}", words.verb));
        }
        *value = Some(value.unwrap_or(0).max(given));
    }
    Ok(respond(format!("{}\n", value.unwrap_or(default))))
}

fn list_number(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let value = if words.verb == "client_acl" { &mut settings.client_acl } else { &mut settings.control_acl };
    if let Some(given) = words.optional()? {
        *value = parse_list_number(given)?;
    }
    Ok(respond(format!("{value}\n")))
}

/// Sets or shows an address or a path.
fn set_location(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let given = words.optional()?;
    let shown = match (words.verb, given) {
        ("pid", None) => Some(std::process::id().to_string()),
        ("control", None) => settings.control.clone(),
        ("pid" | "control", Some(_)) => return words.none().map(|()| Vec::new()),
        ("listen", Some(address)) => {
            settings.listen = Some(Listen::parse(address)?);
            Some(address.to_owned())
        }
        ("listen", None) => settings.listen.as_ref().map(ToString::to_string),
        ("log", given) => {
            if let Some(given) = given {
                settings.log = Some(PenLog::parse(given)?);
            }
            settings.log.as_ref().map(ToString::to_string)
        }
        (_, given) => {
            settings.web_stats = given.map(PathBuf::from).or(settings.web_stats.take());
            settings.web_stats.as_ref().map(|path| path.display().to_string())
        }
    };
    Ok(shown.map(|shown| respond(format!("{shown}\n"))).unwrap_or_default())
}

fn fast_close(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let Some(word) = words.optional()? else {
        return Ok(respond("do_cmd: ignoring tcp_fastclose without argument\n"));
    };
    let known = FastClose::ALL.into_iter().find(|(name, _)| *name == word);
    settings.fast_close =
        known.ok_or_else(|| format!("tcp_fastclose: `{word}` is not up, down, both or off"))?.1;
    Ok(Vec::new())
}

fn exit(settings: &PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    words.none()?;
    if settings.exit_enabled {
        Ok(vec![Step::Do(InstanceAction::Exit)])
    } else {
        Ok(respond("Exit is not enabled; restart with -X flag\n"))
    }
}

fn write(settings: &PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let file = words.optional()?.map(PathBuf::from).or(settings.config_file.clone());
    let file = file.ok_or("write: to which file? There is no -F")?;
    Ok(vec![Step::Do(InstanceAction::Write(file))])
}

#[cfg(test)]
mod tests;
