//! pen's command line, getopt style: options may be joined (`-Ur`), repeated, or have their value in the same
//! word or the next one, and may be between other words. Options that only Evener has are long ones.

use super::command::{self, Step};
use super::state::{Listen, Log, Slot, State};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const HELP: &str = "\
Balance connections as pen does

Usage: evener pen [OPTIONS] [HOST:]PORT|/PATH/TO/SOCKET SERVER...
       pen ...                     by a link of this name

A server is HOST[:PORT[:SOFT[:HARD[:WEIGHT[:PRIO]]]]]; an IPv6 address stands in brackets.

Choosing a server (without -r a client gets the server that it had):
  -r            round robin, without looking up the server that a client had
  -h            by a hash of the client's address
  -N            by hash, and without remembering
  -W            by weight: the least connections for the weight
  -s            stubborn: a client whose server is not there is closed
  -e SERVER     emergency server, when no other one is there
  -B SERVER     abuse server, for clients that the access list refuses
  -T SECONDS    how long clients are tracked (0: while there is room) [0]
  -c N          how many clients are tracked [2048]
  -b SECONDS    how long a server that fails is left out [30]
  -t SECONDS    how long a connect may take [3]
  -x N          how many connections at once [500]
  -q N          how many connections wait to be accepted [500]

What is balanced:
  -U            UDP
  -H            HTTP: servers get X-Forwarded-For and X-Forwarded-Proto
  -E FILE       TLS: the certificate, and what leads from it to an authority
  -K FILE       its key, when it is not in the same file
  -G FILE       certificates of authorities
  -A DIRECTORY  the same, a directory
  -R            clients have to show a certificate of one of them

Running:
  -f            stay in the foreground
  -F FILE       commands to read at the start, and again on SIGHUP
  -C [HOST:]PORT|PATH   the control port, for penctl
  -X            penctl may end the program
  -O COMMAND, -o COMMAND   a command of penctl
  -p FILE       where the process id is written
  -u USER       whom to run as
  -j DIRECTORY  where to change the root to
  -l FILE|HOST:PORT   log requests to a file, or to penlogd
  -w FILE       where SIGUSR1 writes the status page
  -d            say more; again for still more

More than pen has:
  --workers N           worker threads (one a core)
  --driver epoll|io_uring   how workers hear of traffic
  --admin PATH          the admin socket, for `evener status` and others
  --drain-timeout TIME  how long connections may finish after SIGTERM [30s, with -U 1s]
  --check               list every problem, and run nothing
  --help, --version

Accepted, and of no use any more: -a -D -L -m -n -P -Q -S -Z.
`evener import pen ...` prints the configuration that does the same.";

/// A parsed command line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) state: State,
    pub(super) foreground: bool,
    pub(super) jail: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) workers: Option<u16>,
    pub(super) io_uring: bool,
    pub(super) admin: Option<PathBuf>,
    pub(super) drain_timeout: Option<Duration>,
    pub(super) check_only: bool,
    /// Effects of commands in options other than settings.
    pub(super) steps: Vec<Step>,
}

/// The action that the command line selects.
#[derive(Debug)]
pub(super) enum Wanted {
    Run(Box<Line>),
    Help,
    Version,
}

impl Line {
    fn new() -> Self {
        Self {
            state: State::default(),
            foreground: false,
            jail: None,
            pid_file: None,
            user: None,
            workers: None,
            io_uring: false,
            admin: None,
            drain_timeout: None,
            check_only: false,
            steps: Vec::new(),
        }
    }
}

/// Parses the command line. An error is one line.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<Wanted, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut line = Line::new();
    let mut words = Vec::new();
    // The default port of servers is the listen port, which can be anywhere on the line.
    let (mut emergency, mut abuse) = (None, None);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Value(word) => words.push(text(word)?),
            Long("help") => return Ok(Wanted::Help),
            Long("version") => return Ok(Wanted::Version),
            Long(name) => {
                let name = name.to_owned();
                long(&name, &mut parser, &mut line)?;
            }
            Short('e') => emergency = Some(value(&mut parser)?),
            Short('B') => abuse = Some(value(&mut parser)?),
            Short(letter) => short(letter, &mut parser, &mut line)?,
        }
    }
    let mut words = words.iter();
    if let Some(listen) = words.next() {
        line.state.listen = Some(Listen::parse(listen)?);
    }
    let port = line.state.listen.as_ref().and_then(Listen::port);
    let slot = |server: &String| Slot::parse(server, port);
    for (number, server) in words.enumerate() {
        *line.state.slot(number) = slot(server)?;
    }
    line.state.emergency = emergency.as_ref().map(slot).transpose()?.or(line.state.emergency);
    line.state.abuse = abuse.as_ref().map(slot).transpose()?.or(line.state.abuse);
    Ok(Wanted::Run(Box::new(line)))
}

fn text(word: OsString) -> Result<String, String> {
    word.into_string().map_err(|word| format!("{} is not UTF-8", word.display()))
}

fn value(parser: &mut lexopt::Parser) -> Result<String, String> {
    text(parser.value().map_err(|error| error.to_string())?)
}

fn number(letter: char, parser: &mut lexopt::Parser) -> Result<u32, String> {
    let given = value(parser)?;
    given.parse().map_err(|_| format!("-{letter}: `{given}` is not a number"))
}

fn long(name: &str, parser: &mut lexopt::Parser, line: &mut Line) -> Result<(), String> {
    match name {
        "workers" => {
            let given = value(parser)?;
            let workers = given.parse().ok().filter(|workers| (1..=1024).contains(workers));
            line.workers =
                Some(workers.ok_or_else(|| format!("--workers: `{given}` is not between 1 and 1024"))?);
        }
        "driver" => match value(parser)?.as_str() {
            "epoll" => line.io_uring = false,
            "io_uring" => line.io_uring = true,
            other => return Err(format!("--driver: `{other}` is not epoll or io_uring")),
        },
        "admin" => line.admin = Some(value(parser)?.into()),
        "drain-timeout" => {
            let given = value(parser)?;
            let time = humantime::parse_duration(&given);
            line.drain_timeout = Some(time.map_err(|error| format!("--drain-timeout: `{given}`: {error}"))?);
        }
        "check" => line.check_only = true,
        other => return Err(format!("there is no option --{other}; `pen --help` lists the options")),
    }
    Ok(())
}

fn short(letter: char, parser: &mut lexopt::Parser, line: &mut Line) -> Result<(), String> {
    let state = &mut line.state;
    match letter {
        'C' => state.control = Some(value(parser)?),
        'F' => state.config_file = Some(value(parser)?.into()),
        'H' => state.http = true,
        'N' => (state.hash, state.forget) = (true, true),
        'T' => state.tracking = number(letter, parser)?,
        'U' => state.udp = true,
        'W' => state.weight = true,
        'X' => state.exit_enabled = true,
        'b' => state.blacklist = number(letter, parser)?,
        'd' => state.debug += 1,
        'f' => line.foreground = true,
        'h' => state.hash = true,
        'j' => line.jail = Some(value(parser)?.into()),
        'l' => state.log = Some(Log::parse(&value(parser)?)?),
        'p' => line.pid_file = Some(value(parser)?.into()),
        'r' => state.roundrobin = true,
        's' => state.stubborn = true,
        'u' => line.user = Some(value(parser)?),
        'w' => state.web_stats = Some(value(parser)?.into()),
        'E' => state.tls.certificate = Some(value(parser)?.into()),
        'K' => state.tls.key = Some(value(parser)?.into()),
        'G' => state.tls.ca_file = Some(value(parser)?.into()),
        'A' => state.tls.ca_directory = Some(value(parser)?.into()),
        'R' => state.tls.required = true,
        'L' => {
            let step = protocol(&value(parser)?)?;
            line.steps.extend(step);
        }
        'O' | 'o' => {
            let command = value(parser)?;
            line.steps
                .extend(command::execute(state, &command).map_err(|error| format!("-{letter} {error}"))?);
        }
        'c' => command_of(letter, line, "clients_max", number(letter, parser)?)?,
        'x' => command_of(letter, line, "conn_max", number(letter, parser)?)?,
        't' => command_of(letter, line, "timeout", number(letter, parser)?)?,
        'q' => {
            let given = number(letter, parser)?;
            state.backlog = given.max(State::BACKLOG_MIN);
            if given < State::BACKLOG_MIN {
                line.steps.push(Step::Warn(format!("listen_queue bumped to {}", State::BACKLOG_MIN)));
            }
        }
        _ => obsolete(letter, parser, line)?,
    }
    Ok(())
}

/// Executes the command that is equivalent to an option, without its response.
fn command_of(letter: char, line: &mut Line, verb: &str, number: u32) -> Result<(), String> {
    let done = command::execute(&mut line.state, &format!("{verb} {number}"));
    done.map(drop).map_err(|error| format!("-{letter}: {error}"))
}

/// Handles options without an effect.
fn obsolete(letter: char, parser: &mut lexopt::Parser, line: &mut Line) -> Result<(), String> {
    let why = match letter {
        'a' => {
            line.state.ascii = true;
            line.steps.extend(command::obsolete("ascii"));
            return Ok(());
        }
        'P' => {
            line.steps.extend(command::obsolete("poll"));
            return Ok(());
        }
        'D' => "data is always forwarded at once",
        'Q' => "Linux has no kqueue; epoll is used",
        'n' => "sockets are always non-blocking",
        'Z' => "there is no compatibility mode for TLS 1.2 and 1.3",
        'm' => {
            number(letter, parser)?;
            "connections are always accepted in batches"
        }
        'S' => {
            number(letter, parser)?;
            "the table of servers grows as needed"
        }
        'i' => return Err("-i: services of Windows are not supported".into()),
        other => return Err(format!("there is no option -{other}; `pen --help` lists the options")),
    };
    line.steps.push(Step::Warn(format!("-{letter}: {why}")));
    Ok(())
}

/// Handles `-L`, the version of TLS. As in Debian's pen, each supported name means TLS 1.2 and 1.3.
fn protocol(name: &str) -> Result<Option<Step>, String> {
    match name {
        "ssl23" => Ok(None),
        "ssl2" | "ssl3" | "tls1" => Ok(Some(Step::Warn(format!(
            "-L {name}: it is insecure (RFC 8996, RFC 7568) and not supported; TLS 1.2 and 1.3 are"
        )))),
        other => Err(format!("-L: protocol version {other} not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, String> {
        match parse(text.split_whitespace().map(OsString::from).collect())? {
            Wanted::Run(line) => Ok(*line),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_joined_repeated_and_anywhere() {
        let one = line("-dfU 53 8.8.8.8:53").expect("a line");
        assert!(one.foreground && one.state.udp && one.state.debug == 1);
        assert_eq!(one.state.servers.len(), 1);
        let two = line("80 -w web.html -x 256 -ppid -l log -S 3 -r -H 10.0.0.51:80 10.0.0.52:80 10.0.0.53")
            .expect("a line");
        assert!(two.state.roundrobin && two.state.http);
        assert_eq!((two.state.conn_max(), two.pid_file.as_deref()), (256, Some("pid".as_ref())));
        let ports: Vec<u16> = two.state.servers.iter().map(|slot| slot.port).collect();
        assert_eq!(ports, [80; 3]);
        assert_eq!(
            line("-ddd 80 a.invalid").unwrap_err().split(':').next(),
            Some("`a.invalid` does not resolve")
        );
        let three = line("-o acl -o hash").unwrap_err();
        assert!(three.starts_with("-o write acl N"), "{three}");
    }

    #[test]
    fn mistakes_are_reported() {
        for (text, part) in [
            ("-y 80 10.0.0.1", "no option -y"),
            ("--what 80 10.0.0.1", "no option --what"),
            ("-x many 80 10.0.0.1", "`many` is not a number"),
            ("-t 0 80 10.0.0.1", "at least 1"),
            ("-L ssl4 80 10.0.0.1", "ssl4 not known"),
            ("nonsense 10.0.0.1", "not a port to listen on"),
            ("/run/x 10.0.0.1", "has no port"),
            ("80 10.0.0.1 -b", "missing argument"),
        ] {
            let error = line(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
