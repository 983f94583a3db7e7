//! pen's command line, getopt style: options may be joined (`-Ur`), repeated, or have their value in the same
//! word or the next one, and may be between other words. Options that only Evener has are long ones.

use super::{CommandLine, PenAction};
use crate::compat::pen::settings::{PenSettings, Step, number, text, value};
use evener_proxy::Driver;
use lexopt::prelude::*;
use std::ffi::OsString;

pub(super) const HELP: &str = "\
Balance connections as pen does

Usage: evener pen [OPTIONS] [HOST:]PORT|/PATH/TO/SOCKET SERVER...
       pen ...                     by a link of this name

A server is HOST[:PORT[:SOFT[:HARD[:WEIGHT[:PRIO]]]]]; an IPv6 address stands in brackets.

Choosing a server (without -r a client keeps its server):
  -r            round robin for each connection, without tracking clients
  -h            by a hash of the client's address
  -N            by hash, without tracking clients
  -W            by weight: fewest connections relative to the weight
  -s            stubborn: close clients whose server is down
  -e SERVER     emergency server, used while all others are down
  -B SERVER     abuse server, for clients that the access list denies
  -T SECONDS    time for which clients are tracked (0: until the table is full) [0]
  -c N          maximum number of tracked clients [2048]
  -b SECONDS    time for which a failed server is excluded [30]
  -t SECONDS    timeout of connection attempts [3]
  -x N          maximum number of connections [500]
  -q N          maximum number of connections that wait to be accepted [500]

Protocols:
  -U            UDP
  -H            HTTP: servers get X-Forwarded-For and X-Forwarded-Proto
  -E FILE       TLS: the certificate, with intermediate certificates
  -K FILE       its key, if it is not in the same file
  -G FILE       certificates of authorities
  -A DIRECTORY  directory of certificates of authorities
  -R            require client certificates of these authorities

Running:
  -f            stay in the foreground
  -F FILE       commands to read at the start, and again on SIGHUP
  -C [HOST:]PORT|PATH   control port, for penctl
  -X            penctl may end the program
  -O COMMAND, -o COMMAND   execute a command of penctl
  -p FILE       write the process id to this file
  -u USER       run as this user
  -j DIRECTORY  change the root to this directory
  -l FILE|HOST:PORT   log requests to a file, or to penlogd
  -w FILE       write the status page to this file on SIGUSR1
  -d            log more; may be repeated

Options that pen does not have:
  --workers N           worker threads [one per core]
  --driver auto|epoll|io_uring   system interface of the workers [auto: io_uring if
                        the kernel and the container allow it, else epoll]
  --admin PATH          admin socket, for `evener status` and other commands
  --drain-timeout TIME  time for connections to finish after SIGTERM [30s, with -U 1s]
  --check               report every problem, and exit without serving
  --help, --version

Accepted without effect: -a -D -L -m -n -P -Q -S -Z.
`evener import pen ...` prints the equivalent configuration.";

impl CommandLine {
    fn new() -> Self {
        Self {
            settings: PenSettings::default(),
            foreground: false,
            jail: None,
            pid_file: None,
            user: None,
            workers: None,
            driver: Driver::Auto,
            admin: None,
            drain_timeout: None,
            check_only: false,
            steps: Vec::new(),
        }
    }
}

/// Parses the command line. An error is one line.
pub(in crate::compat::pen) fn parse(arguments: Vec<OsString>) -> Result<PenAction, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut line = CommandLine::new();
    let mut words = Vec::new();
    // The default port of servers is the listen port, which can be anywhere on the line.
    let (mut emergency, mut abuse) = (None, None);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Value(word) => words.push(text(word)?),
            Long("help") => return Ok(PenAction::Help),
            Long("version") => return Ok(PenAction::Version),
            Long(name) => {
                let name = name.to_owned();
                long(&name, &mut parser, &mut line)?;
            }
            Short('e') => emergency = Some(value(&mut parser)?),
            Short('B') => abuse = Some(value(&mut parser)?),
            Short(letter) => short(letter, &mut parser, &mut line)?,
        }
    }
    let (listen, servers) =
        words.split_first().map_or((None, &[][..]), |(listen, rest)| (Some(listen), rest));
    line.settings.set_servers(listen.map(String::as_str), servers, emergency.as_deref(), abuse.as_deref())?;
    Ok(PenAction::Run(Box::new(line)))
}

fn long(name: &str, parser: &mut lexopt::Parser, line: &mut CommandLine) -> Result<(), String> {
    match name {
        "workers" => {
            let given = value(parser)?;
            let workers = given.parse().ok().filter(|workers| (1..=1024).contains(workers));
            line.workers =
                Some(workers.ok_or_else(|| format!("--workers: `{given}` is not between 1 and 1024"))?);
        }
        "driver" => match value(parser)?.as_str() {
            "auto" => line.driver = Driver::Auto,
            "epoll" => line.driver = Driver::Epoll,
            "io_uring" => line.driver = Driver::IoUring,
            other => return Err(format!("--driver: `{other}` is not auto, epoll or io_uring")),
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

fn short(letter: char, parser: &mut lexopt::Parser, line: &mut CommandLine) -> Result<(), String> {
    if let Some(steps) = line.settings.apply_option(letter, parser)? {
        line.steps.extend(steps);
        return Ok(());
    }
    match letter {
        'f' => line.foreground = true,
        'j' => line.jail = Some(value(parser)?.into()),
        'p' => line.pid_file = Some(value(parser)?.into()),
        'u' => line.user = Some(value(parser)?),
        'L' => {
            let step = protocol(&value(parser)?)?;
            line.steps.extend(step);
        }
        'O' | 'o' => {
            let command = value(parser)?;
            let steps = line.settings.execute(&command);
            line.steps.extend(steps.map_err(|error| format!("-{letter} {error}"))?);
        }
        _ => obsolete(letter, parser, line)?,
    }
    Ok(())
}

/// Handles options without an effect.
fn obsolete(letter: char, parser: &mut lexopt::Parser, line: &mut CommandLine) -> Result<(), String> {
    let why = match letter {
        'P' => {
            line.steps.extend(line.settings.execute("poll")?);
            return Ok(());
        }
        'D' => "data is always forwarded immediately",
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

    fn line(text: &str) -> Result<CommandLine, String> {
        match parse(text.split_whitespace().map(OsString::from).collect())? {
            PenAction::Run(line) => Ok(*line),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the settings after these commands.
    fn settings(commands: &[&str]) -> PenSettings {
        let mut settings = PenSettings::default();
        for command in commands {
            settings.execute(command).expect(command);
        }
        settings
    }

    #[test]
    fn options_may_be_joined_repeated_and_after_other_words() {
        let joined = line("-dfU 53 8.8.8.8:53").expect("a command line");
        assert!(joined.foreground);
        let commands = ["debug 1", "udp", "listen 53", "server 0 address 8.8.8.8 port 53"];
        assert_eq!(joined.settings, settings(&commands));
        let mixed = line("80 -w web.html -x 256 -ppid -l log -S 3 -r -H 10.0.0.51:80 10.0.0.52:80 10.0.0.53")
            .expect("a command line");
        assert_eq!(mixed.pid_file.as_deref(), Some("pid".as_ref()));
        let commands = [
            "listen 80",
            "web_stats web.html",
            "conn_max 256",
            "log log",
            "roundrobin",
            "http",
            "server 0 address 10.0.0.51 port 80",
            "server 1 address 10.0.0.52 port 80",
            "server 2 address 10.0.0.53 port 80",
        ];
        assert_eq!(mixed.settings, settings(&commands));
        assert_eq!(
            line("-ddd 80 a.invalid").unwrap_err().split(':').next(),
            Some("`a.invalid` does not resolve")
        );
        let error = line("-o acl -o hash").unwrap_err();
        assert!(error.starts_with("-o write acl N"), "{error}");
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
