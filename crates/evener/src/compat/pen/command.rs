//! Commands of penctl and of the configuration file. Each line changes the settings or requests something. A
//! line with an error changes nothing.

mod file;
mod more;

pub(super) use file::{FileProblem, read};
pub(super) use more::UNKNOWN;

use super::lists::{Entry, LISTS, Who};
use super::state::{FastClose, Listen, Log, State, resolve};
use evener_core::acl::Access;
use std::path::PathBuf;

/// An effect of a line other than a change of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The response.
    Say(String),
    /// A query to the running instance, whose result is the response.
    Ask(Query),
    /// An action on the running instance.
    Do(Act),
    /// A warning for the log: the command was accepted, but does nothing or something else.
    Warn(String),
}

/// Queries to the running instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    Servers,
    /// Clients that were seen in the last seconds.
    Recent(u64),
    Status,
    Connection(i64),
    Socket(i64),
    Idlers,
}

/// Actions on the running instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Excludes a server for so many seconds; 0 includes it again.
    Blacklist(usize, u32),
    Close(i64),
    Write(PathBuf),
    Exit,
}

/// A switch: its name and its field.
type Switch = (&'static str, fn(&mut State) -> &mut bool);

/// `WORD` turns the switch on, `no WORD` turns it off.
const SWITCHES: [Switch; 13] = [
    ("abort_on_error", |state| &mut state.abort_on_error),
    ("ascii", |state| &mut state.ascii),
    ("dummy", |state| &mut state.dummy),
    ("hash", |state| &mut state.hash),
    ("http", |state| &mut state.http),
    ("keepalive", |state| &mut state.keepalive),
    ("peek", |state| &mut state.peek),
    ("prio", |state| &mut state.prio),
    ("roundrobin", |state| &mut state.roundrobin),
    ("stubborn", |state| &mut state.stubborn),
    ("tcp_nodelay", |state| &mut state.tcp_nodelay),
    ("transparent", |state| &mut state.transparent),
    ("weight", |state| &mut state.weight),
];

/// Commands of pen without an effect, with the warnings about them.
const OBSOLETE: [(&str, &str); 11] = [
    (
        "abort_on_error",
        "nothing here calls abort() on an error: errors are logged, and SIGUSR2 makes a core file",
    ),
    ("ascii", "communication is not dumped: `log` keeps requests, tcpdump(8) the rest"),
    ("block", "sockets never block"),
    ("delayed_forward", "data is forwarded at once"),
    ("dsr_ip", "there is no direct server return"),
    ("epoll", "epoll is used anyway"),
    ("kqueue", "kqueue is not there on Linux; epoll is used"),
    ("peek", "nothing is looked at before a server is chosen"),
    ("poll", "epoll is used"),
    ("select", "epoll is used"),
    ("ssl_client_renegotiation_interval", "renegotiation is never done"),
];

/// A line split into words.
pub(super) struct Words<'a> {
    pub(super) verb: &'a str,
    pub(super) rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    /// Returns the argument, if any. More than one is an error.
    fn optional(&self) -> Result<Option<&'a str>, String> {
        match self.rest[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [_, more, ..] => Err(format!("{}: `{more}` is one word too many", self.verb)),
        }
    }

    fn one(&self, what: &str) -> Result<&'a str, String> {
        self.optional()?.ok_or_else(|| format!("{}: {what} is missing", self.verb))
    }

    fn none(&self) -> Result<(), String> {
        match self.rest.first() {
            None => Ok(()),
            Some(word) => Err(format!("{} takes no argument such as `{word}`", self.verb)),
        }
    }

    fn number<N: std::str::FromStr>(&self) -> Result<Option<N>, String> {
        let parse = |text: &str| text.parse().map_err(|_| format!("{}: `{text}` is not a number", self.verb));
        self.optional()?.map(parse).transpose()
    }
}

/// Executes a line. On failure a part may have changed, so callers pass a copy and discard it.
pub(super) fn execute(state: &mut State, line: &str) -> Result<Vec<Step>, String> {
    let words = split(line)?;
    let Some((&verb, rest)) = words.split_first() else { return Ok(Vec::new()) };
    run(state, &Words { verb, rest: rest.to_vec() })
}

/// Splits a line into words; a quoted word may have spaces. A word that begins with `#` begins a comment: pen
/// ignores words after the arguments of a command, so files have comments there.
pub(super) fn split(line: &str) -> Result<Vec<&str>, String> {
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

/// Quotes a text for [`split`] as one word; `None` when that is not possible.
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

fn run(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    if let Some((_, reach)) = SWITCHES.iter().find(|(name, _)| *name == words.verb) {
        words.none()?;
        *reach(state) = true;
        return Ok(obsolete(words.verb));
    }
    match words.verb {
        "no" => no(state, words),
        "acl" => acl(state, words),
        "server" => server(state, words),
        "servers" | "status" | "connection" | "socket" | "close" | "recent" | "idlers" => ask(state, words),
        "mode" => words.none().map(|()| say(mode(state))),
        "blacklist" | "timeout" | "tracking" | "debug" | "idle_timeout" | "pending_max" | "backlog" => {
            setting(state, words)
        }
        "clients_max" | "conn_max" => table_size(state, words),
        "client_acl" | "control_acl" => list_number(state, words),
        "listen" | "log" | "web_stats" | "control" | "pid" => set_location(state, words),
        "tcp_fastclose" => fast_close(state, words),
        "source" => {
            let host = words.one("an address")?;
            let wrong = |error| format!("unable to set source address to '{host}': {error}");
            state.source = Some(resolve(host).map_err(wrong)?);
            Ok(Vec::new())
        }
        "exit" => exit(state, words),
        "write" => write(state, words),
        "include" => file::include(state, words.one("a file")?.as_ref()),
        verb if OBSOLETE.iter().any(|(name, _)| *name == verb) => Ok(obsolete(verb)),
        _ => more::run(state, words),
    }
}

fn say(text: impl Into<String>) -> Vec<Step> {
    vec![Step::Say(text.into())]
}

/// Returns the warning about a command without an effect.
pub(super) fn obsolete(verb: &str) -> Vec<Step> {
    let known = OBSOLETE.iter().find(|(name, _)| *name == verb);
    known.map(|(name, why)| Step::Warn(format!("{name}: {why}"))).into_iter().collect()
}

/// Executes `no WORD`.
fn no(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let Some((&verb, rest)) = words.rest.split_first() else { return Err("no: what?".into()) };
    let inner = Words { verb, rest: rest.to_vec() };
    if let Some((_, reach)) = SWITCHES.iter().find(|(name, _)| *name == verb) {
        inner.none()?;
        *reach(state) = false;
        return Ok(Vec::new());
    }
    match verb {
        "acl" => {
            let number = parse_list(inner.one("its number")?)?;
            state.lists[number] = super::lists::List::default();
        }
        "log" => inner.none().map(|()| state.log = None)?,
        "web_stats" => inner.none().map(|()| state.web_stats = None)?,
        "source" => inner.none().map(|()| state.source = None)?,
        "block" | "delayed_forward" => inner.none()?,
        _ => return more::no(state, &inner),
    }
    Ok(Vec::new())
}

/// Parses the number of an access list.
fn parse_list(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number: &usize| *number < LISTS);
    number.ok_or_else(|| format!("`{text}` is not an access list between 0 and {}", LISTS - 1))
}

/// Executes `acl N permit|deny ...`.
fn acl(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let [number, access, who @ ..] = &words.rest[..] else {
        return Err("write acl N permit|deny ADDRESS [MASK], ADDRESS6[/LENGTH] or country NN".into());
    };
    let access = match *access {
        "permit" => Access::Permit,
        "deny" => Access::Deny,
        other => return Err(format!("acl: `{other}` is not permit or deny")),
    };
    let number = parse_list(number)?;
    let who = Who::parse(who).map_err(|error| format!("acl: {error}"))?;
    if let Who::Country(code) = &who {
        state.countries.know(code, state.geoip.as_deref()).map_err(|error| format!("acl: {error}"))?;
    }
    state.lists[number].add(Entry { access, who })?;
    Ok(Vec::new())
}

/// Executes `server N [acl A] [address A] [port P] [max M] [hard H] [blacklist T] [weight W] [prio P]`.
fn server(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    const WANTED: &str = "acl, address, port, max, hard, blacklist, weight or prio";
    let Some((number, settings)) = words.rest.split_first() else {
        return Err(format!("server: its number is missing, then {WANTED}"));
    };
    let number = number.parse().ok().filter(|number| *number <= State::SERVER_MAX).ok_or_else(|| {
        format!("server: `{number}` is not a number of a server between 0 and {}", State::SERVER_MAX)
    })?;
    let mut steps = Vec::new();
    let slot = state.slot(number);
    for pair in settings.chunks(2) {
        let [what, value] = *pair else { return Err(format!("server: `{}` lacks its value", pair[0])) };
        let whole = |value: &str| -> Result<u32, String> {
            value.parse().map_err(|_| format!("server: {what} is not a number: `{value}`"))
        };
        match what {
            "acl" => slot.acl = parse_list(value)?,
            "address" => slot.address = Some(resolve(value)?),
            "port" => {
                let port = super::state::port_number(value);
                slot.port = port.ok_or_else(|| format!("server: `{value}` is not a port"))?;
            }
            "max" => slot.max = whole(value)?,
            "hard" => slot.hard = whole(value)?,
            "weight" => slot.weight = whole(value)?,
            "prio" => {
                slot.prio = value.parse().map_err(|_| format!("server: prio is not a number: `{value}`"))?;
            }
            "blacklist" => steps.push(Step::Do(Act::Blacklist(number, whole(value)?))),
            other => return Err(format!("server: `{other}` is not one of {WANTED}")),
        }
    }
    if !steps.is_empty() && !slot.is_used() {
        return Err(format!("server {number} has no address and port yet"));
    }
    Ok(steps)
}

fn ask(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let number = |words: &Words<'_>| words.number().map(|number: Option<i64>| number.unwrap_or(0));
    let query = match words.verb {
        "servers" => words.none().map(|()| Query::Servers)?,
        "status" => words.none().map(|()| Query::Status)?,
        "connection" => Query::Connection(number(words)?),
        "socket" => Query::Socket(number(words)?),
        "recent" => Query::Recent(words.number()?.unwrap_or(300)),
        "close" => return Ok(vec![Step::Do(Act::Close(number(words)?))]),
        _ => {
            if let Some(wanted) = words.number()? {
                state.idlers = wanted;
            }
            Query::Idlers
        }
    };
    Ok(vec![Step::Ask(query)])
}

fn mode(state: &State) -> String {
    let modes = [
        ("hash", state.hash),
        ("roundrobin", state.roundrobin),
        ("stubborn", state.stubborn),
        ("weight", state.weight),
        ("prio", state.prio),
    ];
    let word = |(name, on): (&str, bool)| if on { name.to_owned() } else { format!("no {name}") };
    format!("{}\n", modes.map(word).join(" "))
}

/// Sets a number, and responds with it.
fn setting(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let given: Option<u32> = words.number()?;
    let (value, least) = match words.verb {
        "blacklist" => (&mut state.blacklist, 0),
        "timeout" => (&mut state.timeout, 1),
        "tracking" => (&mut state.tracking, 0),
        "idle_timeout" => (&mut state.idle_timeout, 0),
        "pending_max" => (&mut state.pending_max, 1),
        "backlog" => (&mut state.backlog, State::BACKLOG_MIN),
        _ => (&mut state.debug, 0),
    };
    if let Some(given) = given {
        if given < least {
            return Err(format!("{}: at least {least}", words.verb));
        }
        *value = given;
    }
    Ok(match words.verb {
        "idle_timeout" => say(format!("Idle timeout: {value} seconds\n")),
        "pending_max" => Vec::new(),
        _ => say(format!("{value}\n")),
    })
}

/// Sets the size of a table. Tables never shrink.
fn table_size(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let given: Option<u32> = words.number()?;
    let (value, usual) = match words.verb {
        "clients_max" => (&mut state.clients_max, State::CLIENTS_MAX),
        _ => (&mut state.conn_max, State::CONN_MAX),
    };
    if let Some(given) = given {
        const MAX: u32 = 16_000_000;
        if !(1..=MAX).contains(&given) {
            return Err(format!("{}: from 1 to {MAX}", words.verb));
        }
        *value = Some(value.unwrap_or(0).max(given));
    }
    Ok(say(format!("{}\n", value.unwrap_or(usual))))
}

fn list_number(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let value = if words.verb == "client_acl" { &mut state.client_acl } else { &mut state.control_acl };
    if let Some(given) = words.optional()? {
        *value = parse_list(given)?;
    }
    Ok(say(format!("{value}\n")))
}

/// Sets or shows an address or a path.
fn set_location(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let given = words.optional()?;
    let shown = match (words.verb, given) {
        ("pid", None) => Some(std::process::id().to_string()),
        ("control", None) => state.control.clone(),
        ("pid" | "control", Some(_)) => return words.none().map(|()| Vec::new()),
        ("listen", Some(address)) => {
            state.listen = Some(Listen::parse(address)?);
            Some(address.to_owned())
        }
        ("listen", None) => state.listen.as_ref().map(|listen| listen.text.clone()),
        ("log", given) => {
            if let Some(given) = given {
                state.log = Some(Log::parse(given)?);
            }
            state.log.as_ref().map(|log| log.text.clone())
        }
        (_, given) => {
            state.web_stats = given.map(PathBuf::from).or(state.web_stats.take());
            state.web_stats.as_ref().map(|path| path.display().to_string())
        }
    };
    Ok(shown.map(|shown| say(format!("{shown}\n"))).unwrap_or_default())
}

fn fast_close(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let Some(word) = words.optional()? else {
        return Ok(say("do_cmd: ignoring tcp_fastclose without argument\n"));
    };
    let known = FastClose::ALL.into_iter().find(|(name, _)| *name == word);
    state.fast_close =
        known.ok_or_else(|| format!("tcp_fastclose: `{word}` is not up, down, both or off"))?.1;
    Ok(Vec::new())
}

fn exit(state: &State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    words.none()?;
    if state.exit_enabled {
        Ok(vec![Step::Do(Act::Exit)])
    } else {
        Ok(say("Exit is not enabled; restart with -X flag\n"))
    }
}

fn write(state: &State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let file = words.optional()?.map(PathBuf::from).or(state.config_file.clone());
    let file = file.ok_or("write: to which file? There is no -F")?;
    Ok(vec![Step::Do(Act::Write(file))])
}

#[cfg(test)]
mod tests;
