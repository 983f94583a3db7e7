//! The command line of sbulb. Options that only Evener has are long ones.

use super::arguments::{Argument, ArgumentOption, Values, divide};
use super::servers::{family, one_family};
use super::{CommandLine, SbulbAction, Source};
use evener_core::spec::{XdpEventLevel, XdpServiceSpec, XdpSpec};
use std::ffi::OsString;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

pub(super) const USAGE: &str = "\
usage: sbulb [-h] -vs VIRTUAL_SERVER
             (-rs REAL_SERVER [REAL_SERVER ...] | -cfg CONFIG_FILE) -p PORT
             [PORT ...] [-d {0,1,2,3,4}]
             [-l {CRITICAL,ERROR,WARNING,INFO,DEBUG,TRACE}] [-mp MAX_PORTS]
             [-mrs MAX_REALSERVERS] [-ma MAX_ASSOCIATIONS]
             ifnet";

pub(super) const HELP: &str = "\
Balance UDP across servers in the kernel, as sbulb does

usage: evener sbulb [options] ifnet
       sbulb ...                   by a link of this name

  ifnet                            network interface, such as eth0
  -vs, --virtual_server ADDR       address to which clients send
  -rs, --real_server ADDR...       addresses of the servers
  -cfg, --config_file FILE         file with the addresses of the servers, which is read every second:
                                       [Real Servers]
                                       10.0.0.4
                                       10.0.0.2
  -p, --port PORT...               UDP ports to balance
  -l, --loglevel LEVEL             CRITICAL, ERROR, WARNING, INFO, DEBUG or TRACE [ERROR]
  -mp, --max_ports N               maximum number of ports [16]
  -mrs, --max_realservers N        maximum number of servers [32]
  -ma, --max_associations N        maximum number of clients that are remembered [1048576]
  -d, --debug {0,1,2,3,4}          accepted, and without effect
  -h, --help

Options that sbulb does not have:
  --admin PATH  admin socket, for `evener status` and other commands
  --print       print the equivalent configuration and exit
  --version";

static OPTIONS: [ArgumentOption; 13] = [
    HELP_OPTION,
    VIRTUAL_SERVER,
    REAL_SERVER,
    CONFIG_FILE,
    PORT,
    DEBUG,
    LOG_LEVEL,
    MAX_PORTS,
    MAX_SERVERS,
    MAX_ASSOCIATIONS,
    ADMIN,
    PRINT,
    VERSION,
];
const HELP_OPTION: ArgumentOption = ArgumentOption::new("-h", "--help", Values::None);
const VIRTUAL_SERVER: ArgumentOption = ArgumentOption::new("-vs", "--virtual_server", Values::One);
const REAL_SERVER: ArgumentOption = ArgumentOption::new("-rs", "--real_server", Values::Many);
const CONFIG_FILE: ArgumentOption = ArgumentOption::new("-cfg", "--config_file", Values::One);
const PORT: ArgumentOption = ArgumentOption::new("-p", "--port", Values::Many);
const DEBUG: ArgumentOption = ArgumentOption::new("-d", "--debug", Values::One);
const LOG_LEVEL: ArgumentOption = ArgumentOption::new("-l", "--loglevel", Values::One);
const MAX_PORTS: ArgumentOption = ArgumentOption::new("-mp", "--max_ports", Values::One);
const MAX_SERVERS: ArgumentOption = ArgumentOption::new("-mrs", "--max_realservers", Values::One);
const MAX_ASSOCIATIONS: ArgumentOption = ArgumentOption::new("-ma", "--max_associations", Values::One);
const ADMIN: ArgumentOption = ArgumentOption::new("", "--admin", Values::One);
const PRINT: ArgumentOption = ArgumentOption::new("", "--print", Values::None);
const VERSION: ArgumentOption = ArgumentOption::new("", "--version", Values::None);

/// The options that were given so far.
struct Given {
    interface: Option<String>,
    virtual_server: Option<IpAddr>,
    servers: Option<Source>,
    ports: Vec<u16>,
    level: XdpEventLevel,
    ports_max: usize,
    servers_max: usize,
    associations: u32,
    admin: Option<String>,
    print: bool,
    unknown: Vec<String>,
}

/// Parses the command line. An error is one line.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<SbulbAction, String> {
    let mut given = Given {
        interface: None,
        virtual_server: None,
        servers: None,
        ports: Vec::new(),
        level: XdpEventLevel::Error,
        ports_max: 16,
        servers_max: 32,
        associations: XdpSpec::FLOWS,
        admin: None,
        print: false,
        unknown: Vec::new(),
    };
    for argument in divide(arguments, &OPTIONS)? {
        match argument {
            Argument::Option(option, _) if *option == HELP_OPTION => return Ok(SbulbAction::Help),
            Argument::Option(option, _) if *option == VERSION => return Ok(SbulbAction::Version),
            Argument::Option(option, values) => given
                .take(option, &values)
                .map_err(|problem| format!("argument {}: {problem}", option.text()))?,
            Argument::Positional(word) if given.interface.is_none() => {
                given.interface = Some(interface(word)?);
            }
            Argument::Positional(word) | Argument::Unknown(word) => given.unknown.push(word),
        }
    }
    given.finish().map(SbulbAction::Run)
}

impl Given {
    /// Takes the values of an option. The last one counts if an option is repeated, as in argparse.
    fn take(&mut self, option: &ArgumentOption, values: &[String]) -> Result<(), String> {
        let first = || values[0].as_str();
        if *option == VIRTUAL_SERVER {
            self.virtual_server = Some(address(first())?);
        } else if *option == REAL_SERVER {
            if let Some(Source::File(_)) = self.servers {
                return Err(format!("not allowed with argument {}", CONFIG_FILE.text()));
            }
            let servers = values.iter().map(|value| address(value)).collect::<Result<Vec<_>, _>>()?;
            self.servers = Some(Source::Addresses(servers));
        } else if *option == CONFIG_FILE {
            if let Some(Source::Addresses(_)) = self.servers {
                return Err(format!("not allowed with argument {}", REAL_SERVER.text()));
            }
            self.servers = Some(Source::File(first().into()));
        } else if *option == PORT {
            self.ports = values.iter().map(|value| port(value)).collect::<Result<_, _>>()?;
        } else if *option == DEBUG {
            choice(first(), &["0", "1", "2", "3", "4"])?;
        } else if *option == LOG_LEVEL {
            let names = XdpEventLevel::ALL.map(|level| level.name().to_ascii_uppercase());
            self.level = XdpEventLevel::ALL[choice(first(), &names.each_ref().map(String::as_str))?];
        } else if *option == MAX_PORTS {
            self.ports_max = number(first(), XdpServiceSpec::PORTS_MAX)?;
        } else if *option == MAX_SERVERS {
            self.servers_max = number(first(), CommandLine::SERVERS_MAX)?;
        } else if *option == MAX_ASSOCIATIONS {
            self.associations = number(first(), XdpSpec::FLOWS_MAX)?;
        } else if *option == ADMIN {
            self.admin = Some(first().to_owned());
        } else {
            self.print = true;
        }
        Ok(())
    }

    fn finish(self) -> Result<CommandLine, String> {
        let missing: Vec<String> = [
            (self.interface.is_none(), "ifnet".to_owned()),
            (self.virtual_server.is_none(), VIRTUAL_SERVER.text()),
            (self.ports.is_empty(), PORT.text()),
        ]
        .into_iter()
        .filter_map(|(is_missing, name)| is_missing.then_some(name))
        .collect();
        let (Some(interface), Some(virtual_server), true) =
            (self.interface, self.virtual_server, missing.is_empty())
        else {
            return Err(format!("the following arguments are required: {}", missing.join(", ")));
        };
        let Some(mut servers) = self.servers else {
            let (addresses, file) = (REAL_SERVER.text(), CONFIG_FILE.text());
            return Err(format!("one of the arguments {addresses} {file} is required"));
        };
        if !self.unknown.is_empty() {
            return Err(format!("unrecognized arguments: {}", self.unknown.join(" ")));
        }
        let ports = distinct(self.ports);
        at_most(ports.len(), self.ports_max, "ports", &MAX_PORTS)
            .map_err(|problem| format!("argument {}: {problem}", PORT.text()))?;
        if let Source::Addresses(addresses) = &mut servers {
            *addresses = distinct(std::mem::take(addresses));
            one_family(addresses, virtual_server)
                .and_then(|()| at_most(addresses.len(), self.servers_max, "servers", &MAX_SERVERS))
                .map_err(|problem| format!("argument {}: {problem}", REAL_SERVER.text()))?;
        }
        Ok(CommandLine {
            interface,
            virtual_server,
            servers,
            ports,
            level: self.level,
            servers_max: self.servers_max,
            associations: self.associations,
            admin: self.admin.map(Into::into),
            print: self.print,
        })
    }
}

impl CommandLine {
    /// Maximum of `-mrs`.
    const SERVERS_MAX: usize = 16_000;

    /// Checks the number of servers of a file.
    pub(super) fn check_count(&self, servers: usize) -> Result<(), String> {
        at_most(servers, self.servers_max, "servers", &MAX_SERVERS)
    }
}

/// Returns the values without repetitions, in their order.
pub(super) fn distinct<T: PartialEq>(values: Vec<T>) -> Vec<T> {
    let mut distinct = Vec::with_capacity(values.len());
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}

fn at_most(count: usize, max: usize, what: &str, option: &ArgumentOption) -> Result<(), String> {
    if count <= max {
        return Ok(());
    }
    Err(format!("{count} {what} are more than the maximum of {max}, which {} changes", option.text()))
}

fn interface(word: String) -> Result<String, String> {
    let is_name = !word.is_empty()
        && word.len() <= XdpServiceSpec::INTERFACE_BYTES_MAX
        && !word.contains(|one: char| one == '/' || one == ':' || one.is_whitespace());
    if is_name { Ok(word) } else { Err(format!("argument ifnet: '{word}' is not the name of an interface")) }
}

fn address(word: &str) -> Result<IpAddr, String> {
    let address: IpAddr = word.parse().map_err(|_| format!("'{word}' is not an IP address"))?;
    let is_usable = !address.is_unspecified() && !address.is_multicast();
    if is_usable {
        return Ok(address);
    }
    Err(format!("{word} is not the {} address of one host", family(address)))
}

fn port(word: &str) -> Result<u16, String> {
    let port = word.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("'{word}' is not a port between 1 and 65535"))
}

/// Returns the position of a word among the choices, in any case.
fn choice(word: &str, choices: &[&str]) -> Result<usize, String> {
    let position = choices.iter().position(|choice| choice.eq_ignore_ascii_case(word));
    position.ok_or_else(|| format!("invalid choice: '{word}' (choose from {})", choices.join(", ")))
}

fn number<T: Copy + FromStr + PartialOrd + From<u8> + Display>(word: &str, max: T) -> Result<T, String> {
    let number = word.parse().ok().filter(|number| (T::from(1_u8)..=max).contains(number));
    number.ok_or_else(|| format!("'{word}' is not a number between 1 and {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<SbulbAction, String> {
        parse(words.split_whitespace().map(OsString::from).collect())
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn options_of_sbulb_are_accepted() {
        let check = |words: &str, expected: CommandLine| {
            assert_eq!(parsed(words), Ok(SbulbAction::Run(expected)), "{words}");
        };
        let default = CommandLine {
            interface: "eth0".into(),
            virtual_server: "10.188.7.99".parse().unwrap(),
            servers: Source::Addresses(addresses(&["10.188.100.163", "10.188.100.230"])),
            ports: vec![5683, 5684],
            level: XdpEventLevel::Error,
            servers_max: 32,
            associations: 1_048_576,
            admin: None,
            print: false,
        };
        // The example of sbulb's README.
        check("eth0 -vs 10.188.7.99 -rs 10.188.100.163 10.188.100.230 -p 5683 5684", default.clone());
        check(
            "-vs 10.188.7.99 --real_server 10.188.100.163 10.188.100.230 10.188.100.163 --port 5683 5684 5683 \
             --debug 4 eth0 -d 0",
            default.clone(),
        );
        let changed = CommandLine {
            virtual_server: "fd00::1".parse().unwrap(),
            servers: Source::File("/etc/servers.cfg".into()),
            ports: vec![65_535, 1],
            level: XdpEventLevel::Trace,
            servers_max: 4000,
            associations: 16,
            admin: Some("/a".into()),
            print: true,
            ..default
        };
        check(
            "eth0 -vs fd00::1 -cfg /etc/servers.cfg -p 65535 1 -l TRACE -mp 2 -mrs 4000 -ma 16 --admin /a --print",
            changed.clone(),
        );
        check(
            "eth0 --virtual_server fd00::1 --config_file /etc/servers.cfg --port 65535 1 --loglevel trace \
             --max_ports 2 --max_realservers 4000 --max_associations 16 --admin=/a --print",
            changed,
        );
        assert_eq!(parsed("-h -x"), Ok(SbulbAction::Help));
        assert_eq!(parsed("eth0 --version"), Ok(SbulbAction::Version));
    }

    #[test]
    fn mistakes_are_reported() {
        let check = |words: &str, expected: &str| {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(expected), "{words}: {error}");
        };
        check("", "the following arguments are required: ifnet, -vs/--virtual_server, -p/--port");
        check("eth0 -p 1 -rs 10.0.0.1", "are required: -vs/--virtual_server");
        check(
            "eth0 -vs 10.0.0.9 -p 1",
            "one of the arguments -rs/--real_server -cfg/--config_file is required",
        );
        check(
            "eth0 -vs 10.0.0.9 -p 1 -rs 10.0.0.1 -cfg f",
            "argument -cfg/--config_file: not allowed with argument -rs/--real_server",
        );
        check(
            "-cfg f -rs 10.0.0.1",
            "argument -rs/--real_server: not allowed with argument -cfg/--config_file",
        );
        check("eth0 -vs web -p 1", "argument -vs/--virtual_server: 'web' is not an IP address");
        check("eth0 -vs 0.0.0.0 -p 1", "argument -vs/--virtual_server: 0.0.0.0 is not the IPv4 address");
        check("-rs 10.0.0.1 eth0", "argument -rs/--real_server: 'eth0' is not an IP address");
        check(
            "eth0 -vs 10.0.0.9 -rs fd00::1 -p 1",
            "argument -rs/--real_server: fd00::1 is an IPv6 address, but the virtual server 10.0.0.9 is an IPv4",
        );
        check("eth0 -vs 10.0.0.9 -rs 10.0.0.1 -p 0", "argument -p/--port: '0' is not a port");
        check("eth0 -vs 10.0.0.9 -rs 10.0.0.1 -p 65536", "argument -p/--port: '65536' is not a port");
        check("eth0 -d 5", "argument -d/--debug: invalid choice: '5' (choose from 0, 1, 2, 3, 4)");
        check("eth0 -l LOUD", "argument -l/--loglevel: invalid choice: 'LOUD' (choose from CRITICAL, ERROR,");
        check("eth0 -ma 0", "argument -ma/--max_associations: '0' is not a number between 1 and");
        check("eth0 -mp x", "argument -mp/--max_ports: 'x' is not a number");
        check(
            "eth0 -vs 10.0.0.9 -rs 10.0.0.1 -p 1 2 3 -mp 2",
            "argument -p/--port: 3 ports are more than the maximum of 2, which -mp/--max_ports changes",
        );
        check(
            "eth0 -vs 10.0.0.9 -rs 10.0.0.1 10.0.0.2 -p 1 -mrs 1",
            "argument -rs/--real_server: 2 servers are more than the maximum of 1, which -mrs/--max_realservers",
        );
        check("eth0 eth1 -x -vs 10.0.0.9 -rs 10.0.0.1 -p 1", "unrecognized arguments: eth1 -x");
        check("an/interface", "argument ifnet: 'an/interface' is not the name of an interface");
        check("an-interface-with-a-long-name", "is not the name of an interface");
    }

    #[test]
    fn default_maximums_are_those_of_sbulb() {
        let line = |ports: u16, servers: u16| {
            let ports: Vec<String> = (1..=ports).map(|port| port.to_string()).collect();
            let servers: Vec<String> = (1..=servers).map(|number| format!("10.0.0.{number}")).collect();
            format!("eth0 -vs 10.0.1.1 -p {} -rs {}", ports.join(" "), servers.join(" "))
        };
        assert!(parsed(&line(16, 32)).is_ok());
        assert!(parsed(&line(17, 32)).unwrap_err().contains("17 ports"));
        assert!(parsed(&line(16, 33)).unwrap_err().contains("33 servers"));
    }

    #[test]
    fn the_help_lists_every_option() {
        for option in &OPTIONS {
            assert!(HELP.contains(&option.text().replace('/', ", ")), "{}", option.text());
        }
    }
}
