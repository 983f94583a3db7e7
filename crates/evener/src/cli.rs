//! The command line.

mod admin_args;
mod balstat;
mod capture;
mod check;
mod client;
mod connections;
mod demo;
mod events;
mod explain;
mod expunge;
mod help;
mod init;
mod ipvs;
mod manual;
mod metrics;
mod one_liner;
mod plan;
mod run;
mod server_state;
mod servers;
mod shell;
mod status;
mod top;
mod upgrade;
mod usage;
mod xdp;

use crate::admin::{MetricsListener, Permissions};
use crate::events::Events;
use crate::observe::{Log, LogFormat, LogLevel};
use crate::output::printable;
use crate::signals;
use crate::supervisor::{ConfigSource, Setting};
use crate::upgrade::predecessor::Predecessor;
use admin_args::{AdminArgs, InstanceArgs};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use evener_proxy::Driver;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  evener demo                                         see it work, on loopback
  evener tcp 127.0.0.1:8080 10.0.0.1:80 10.0.0.2:80   balance TCP without a file
  evener udp 127.0.0.1:5353 10.0.0.1:53 10.0.0.2:53   balance UDP
  evener dns 127.0.0.1:5353 8.8.8.8:53 1.1.1.1:53     balance DNS queries
  evener http 127.0.0.1:8080 10.0.0.1:80 10.0.0.2:80  balance HTTP requests
  evener init a.lua --server 10.0.0.1:80              write a first configuration
  evener check a.lua && evener run a.lua              run a configuration
  evener plan a.lua                                   show what applying it changes
  evener apply a.lua --confirm 5m                     apply it, go back unless confirmed
  evener status                                       show the running instance
  evener top                                          watch it on the terminal
  evener drain web/10.0.0.1:80 --wait                 wait until no client is left
  evener clients --sort rate                          show the busiest clients
  evener deny www 192.0.2.0/24 --for 10m              refuse clients for a while
  evener xdp check eth0                               examine an interface for XDP
  evener ipvs list                                    show the kernel's IPVS table
  evener import pen -r 80 10.0.0.1 10.0.0.2           translate a command of pen
  evener import keepalived keepalived.conf            translate a file of keepalived
  ipvsadm -Sn | evener import ipvsadm                 translate the kernel's table of IPVS

Exit status: 0 done, 1 failed, 2 wrong usage (`evener plan`: 2 also for changes).";

/// Load balancer for TCP, TLS, HTTP, UDP and DNS, configured in Lua
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 80, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a configuration
    ///
    /// SIGHUP reloads the file: services and pools that stay keep their connections, flows, verdicts and
    /// counters. If the file has a problem, nothing changes. SIGUSR2 starts the installed program, which takes over
    /// (`evener upgrade`). After SIGTERM, clients may finish; a second
    /// SIGTERM closes their connections.
    Run {
        /// File of the configuration
        #[arg(default_value = run::DEFAULT_FILE)]
        file: PathBuf,
        #[command(flatten)]
        options: RunOptions,
    },
    /// Check a configuration and list its problems with their lines
    ///
    /// Certificates are read and names are resolved. Warnings are about settings that probably do not do as
    /// intended, and about certificates that expire soon. The exit status is 1 if there are problems, or warnings
    /// with --strict.
    Check(check::CheckCommand),
    /// Show balancing and failover with three embedded servers on loopback
    Demo {
        /// End after this number of seconds
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        seconds: Option<u64>,
    },
    /// Balance TCP connections across servers without a file
    Tcp(one_liner::TcpLine),
    /// Balance HTTP requests across servers without a file
    Http(one_liner::HttpLine),
    /// Balance UDP datagrams across servers without a file
    Udp(one_liner::UdpLine),
    /// Balance DNS queries across servers without a file (UDP and TCP)
    Dns(one_liner::DnsLine),
    /// Show services, pools and servers of the running instance
    ///
    /// /S is requests, connections or flows a second; P50 and P95 are the times within which about half and 95 % of
    /// the responses began (TCP: connections to servers). These figures and shares in brackets are of the last 10 to 20
    /// seconds, or since the start if that is less; other figures count since the start.
    Status(status::StatusCommand),
    /// List servers with their states, and the reasons for them
    Servers(status::ServersCommand),
    /// Watch services, pools and servers of the running instance on the terminal; keys drain servers
    ///
    /// The keys are shown by `?`. NO_COLOR turns colours off.
    Top(top::TopCommand),
    /// Reload the configuration of the running instance (as SIGHUP does) and print the changes
    Reload(AdminArgs),
    /// Start the program anew without losing a client, for example after a new version was installed
    ///
    /// The new process takes the listening sockets of the running instance, which then drains. If the new process
    /// cannot start, the running instance goes on, and the reason is printed. SIGUSR2 does the same.
    Upgrade(upgrade::UpgradeCommand),
    /// Add a server to a pool of the running instance
    Add(servers::AddCommand),
    /// Remove a server from its pool; its connections continue
    Remove(servers::RemoveCommand),
    /// Set the weight of a server: its share of the new clients
    Weight(servers::WeightCommand),
    /// Write the running configuration as a file, with the changes made by commands
    Save(servers::SaveCommand),
    /// Show what a configuration would change in the running instance, and which clients it would move
    ///
    /// Nothing changes. The exit status is 0 if the configuration is the running one, 2 if there are changes, and 1 if
    /// the file has problems.
    Plan(plan::PlanCommand),
    /// Apply a configuration to the running instance, as a whole or not at all
    ///
    /// A later reload or start reads the file of the start again, which need not be this one.
    Apply(plan::ApplyCommand),
    /// Keep a configuration that was applied with --confirm
    Confirm(plan::ConfirmCommand),
    /// Drain a server: it gets no new clients, and keeps its connections and its sticky clients
    Drain(server_state::LeaveCommand),
    /// Make a server ready again and clear failures of its traffic
    Ready(server_state::ReadyCommand),
    /// Take a server out of service: it gets no clients and no checks, and open connections continue
    Maintenance(server_state::LeaveCommand),
    /// Explain which server a client gets, and the reasons against the other servers
    Explain(explain::ExplainCommand),
    /// Show the clients of services that record them, refused clients included
    Clients(connections::ClientsCommand),
    /// Show the servers of sticky pools and their clients, as mname-balancer's balstat does
    Balstat {
        /// The pool (default: all pools that are sticky by address)
        pool: Option<String>,
        /// Maximum number of clients to show (default: 1000)
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        admin_args: AdminArgs,
    },
    /// Show the UDP flows of clients, and the associations of clients in the XDP plane
    Flows(connections::FlowsCommand),
    /// Show open connections and flows of clients, with the numbers that `close` takes
    Connections(connections::ConnectionsCommand),
    /// Print the metrics of the running instance in the text format of Prometheus
    ///
    /// Prometheus gets them with `--metrics ADDRESS` of `evener run`.
    Metrics(metrics::MetricsCommand),
    /// Show the recent events of the running instance: the last 1000 above the debug level
    Events(events::EventsCommand),
    /// Write sampled packets of an XDP service into a file, before and after rewriting (as root)
    ///
    /// Without --count and --for the capture ends with SIGINT. The kernel ends a capture soon after its process has
    /// ended. The interfaces of the file are `before` and `after`; a comment at each packet has the decision and its
    /// reason. Example: `evener capture web -w web.pcapng --for 10s && tshark -r web.pcapng`.
    Capture(capture::CaptureCommand),
    /// Close both sides of a connection or flow, or all connections and flows of a server or client
    Close(connections::CloseCommand),
    /// Remove responses from the cache of a DNS service
    #[command(
        override_usage = "evener expunge <SERVICE> <NAME> [--below]\n       evener expunge <SERVICE> --all"
    )]
    Expunge(expunge::Expunge),
    /// Refuse clients of a prefix
    Deny {
        #[command(flatten)]
        command: AccessCommand,
        /// Time after which the rule expires, such as 10m (default: never)
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        time: Option<Duration>,
    },
    /// Permit clients of a prefix, overriding the configuration
    Permit {
        #[command(flatten)]
        command: AccessCommand,
        /// Time after which the rule expires, such as 10m (default: never)
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        time: Option<Duration>,
    },
    /// Remove the rule of a prefix that `deny` or `permit` added
    Forget(AccessCommand),
    /// List the rules that `deny` and `permit` added
    Access(AdminArgs),
    /// Run with the command line of pen: `evener pen --help`. Also available through a link named `pen`
    #[command(disable_help_flag = true)]
    Pen(ForeignArguments),
    /// Send a command to the control port of `evener pen` or pen. Also available through a link named `penctl`
    #[command(disable_help_flag = true)]
    Penctl(ForeignArguments),
    /// Send a web server's log from standard input to penlogd
    #[command(disable_help_flag = true)]
    Penlog(ForeignArguments),
    /// Merge the logs of web servers behind pen as they arrive
    #[command(disable_help_flag = true)]
    Penlogd(ForeignArguments),
    /// Merge the log files of web servers behind pen
    #[command(disable_help_flag = true)]
    Mergelogs(ForeignArguments),
    /// Balance DNS across the processes of a directory, with the command line of mname-balancer. Also available
    /// through a link named `mname-balancer` or `bbal`
    #[command(disable_help_flag = true)]
    MnameBalancer(ForeignArguments),
    /// Balance UDP across servers in the kernel (XDP), with the command line of sbulb. Also available through a
    /// link named `sbulb`
    #[command(disable_help_flag = true)]
    Sbulb(ForeignArguments),
    /// Print the configuration that is equivalent to the command line or file of another program
    ///
    /// Examples: `evener import pen -r 80 10.0.0.1 10.0.0.2`, `evener import pen FILE` with a file of commands of
    /// pen, `evener import keepalived /etc/keepalived/keepalived.conf`, or `ipvsadm -Sn | evener import ipvsadm`.
    // -h is an option of pen, so only --help prints the help of Evener.
    #[command(disable_help_flag = true)]
    Import {
        /// Print help
        #[arg(long, action = clap::ArgAction::Help)]
        help: Option<bool>,
        /// The program
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(["pen", "keepalived", "ipvsadm"]))]
        program: String,
        #[command(flatten)]
        arguments: ForeignArguments,
    },
    /// Show the services of the kernel's IP Virtual Server (IPVS)
    #[command(subcommand)]
    Ipvs(ipvs::IpvsCommand),
    /// Examine interfaces for the XDP plane, show what is pinned in the kernel, take it away
    #[command(subcommand)]
    Xdp(xdp::XdpCommand),
    /// Explain a command, or a key of the configuration: `evener help drain`, `evener help pool.sticky`
    Help(help::HelpCommand),
    /// Write a first configuration with comments
    Init(init::InitCommand),
    /// Print annotations of the configuration language for editors with the Lua language server (LuaLS)
    Annotations,
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory, which must exist
        directory: PathBuf,
    },
    /// Print completions for a shell: `evener completions bash > /etc/bash_completion.d/evener`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Returns true if the command runs until it is stopped, and so catches signals.
    fn serves(&self) -> bool {
        matches!(
            self,
            Self::Run { .. } | Self::Demo { .. } | Self::Tcp(_) | Self::Http(_) | Self::Udp(_) | Self::Dns(_)
        )
    }
}

/// Words of a command line that another parser handles.
#[derive(Args, Debug)]
struct ForeignArguments {
    /// The options of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Options of commands that run an instance.
#[derive(Args, Debug)]
struct RunOptions {
    /// Number of worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Running")]
    workers: Option<u16>,
    /// Pin worker n to core n
    #[arg(long, help_heading = "Running")]
    pin: bool,
    /// System interface of the workers; auto is io_uring if the kernel and the container allow it, else epoll
    #[arg(long, value_enum, default_value_t = DriverName::Auto, help_heading = "Running")]
    driver: DriverName,
    /// Path of the admin socket (default: /run/evener/evener.sock, or evener/evener.sock in XDG_RUNTIME_DIR)
    #[arg(long, value_name = "PATH", help_heading = "Running")]
    admin: Option<PathBuf>,
    /// Mode of the admin socket: who may control the instance (default: 0600, with --admin-group 0660)
    #[arg(long, value_name = "MODE", value_parser = Permissions::parse_mode, help_heading = "Running")]
    admin_mode: Option<u32>,
    /// Group of the admin socket, whose members may control the instance
    #[arg(long, value_name = "GROUP", help_heading = "Running")]
    admin_group: Option<String>,
    /// Time for clients to finish after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "Running")]
    drain_timeout: Duration,
    /// Address with a port at which Prometheus gets the metrics: http://ADDRESS/metrics (default: none)
    #[arg(long, value_name = "ADDRESS", help_heading = "Running")]
    metrics: Option<std::net::SocketAddr>,
    /// Format of log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = "Running")]
    log: LogFormat,
    /// Lowest level of events to log
    #[arg(long, value_enum, default_value_t = LogLevel::Info, help_heading = "Running")]
    log_level: LogLevel,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DriverName {
    Auto,
    Epoll,
    #[value(name = "io_uring")]
    IoUring,
}

impl RunOptions {
    /// Returns the mode and the group of the admin socket.
    fn admin_permissions(&self) -> anyhow::Result<Permissions> {
        Permissions::new(self.admin_mode, self.admin_group.as_deref())
    }

    /// Opens the listener of the metrics, if there is one. At an upgrade it is the one of the running instance.
    async fn open_metrics(
        &self,
        before: Option<&mut Predecessor>,
    ) -> anyhow::Result<Option<MetricsListener>> {
        if let Some(socket) = before.and_then(Predecessor::take_metrics) {
            return MetricsListener::adopt(socket).map(Some);
        }
        match self.metrics {
            Some(address) => Ok(Some(MetricsListener::open(address).await?)),
            None => Ok(None),
        }
    }

    /// Returns the options that differ from their defaults, as words of a shell.
    fn words(&self) -> String {
        let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
            value().map(|value| value.get_name().to_owned())
        };
        let path = self.admin.as_ref().map(|path| path.display().to_string());
        let mode = self.admin_mode.map(|mode| format!("{mode:04o}"));
        let drain = Some(humantime::format_duration(self.drain_timeout).to_string().replace(' ', ""));
        let options = [
            ("--workers", self.workers.map(|workers| workers.to_string())),
            ("--driver", name(&|| self.driver.to_possible_value()).filter(|name| name != "auto")),
            ("--admin", path),
            ("--admin-mode", mode),
            ("--admin-group", self.admin_group.clone()),
            ("--metrics", self.metrics.map(|address| address.to_string())),
            ("--drain-timeout", drain.filter(|time| time != "30s")),
            ("--log", name(&|| self.log.to_possible_value()).filter(|name| name != "text")),
            ("--log-level", name(&|| self.log_level.to_possible_value()).filter(|name| name != "info")),
        ];
        let given = options.into_iter().filter_map(|(option, value)| Some((option, value?)));
        let pin = if self.pin { " --pin" } else { "" };
        given.map(|(option, value)| format!(" {option} {}", shell::word(&value))).collect::<String>() + pin
    }

    fn setting(&self, source: ConfigSource) -> Setting {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let driver = match self.driver {
            DriverName::Auto => Driver::Auto,
            DriverName::Epoll => Driver::Epoll,
            DriverName::IoUring => Driver::IoUring,
        };
        let workers = self.workers.map_or(cores, usize::from);
        let setting = Setting::new(workers, source, Events::new(Log::new(self.log, self.log_level)));
        setting.driven_by(driver).pinned(self.pin).drain_for(self.drain_timeout)
    }
}

#[derive(Args, Debug)]
struct AccessCommand {
    /// The service
    service: String,
    /// The clients, such as 192.0.2.7 or 2001:db8::/32
    prefix: String,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// Parses a time such as 30s or 10m.
fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("the unit is missing: write {text}s, {text}m or {text}h"));
    }
    humantime::parse_duration(text).map_err(|_| "write a time such as 30s, 10m or 1h30m".into())
}

/// Runs the command line. Errors are printed to standard error.
pub(crate) fn main(words: &[OsString]) -> ExitCode {
    if let Some(message) = usage::misplaced(words) {
        return usage::wrong(&message);
    }
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let wanted = match Cli::try_parse_from(words) {
                Ok(wanted) => wanted.command,
                Err(error) => return runtime.block_on(usage::report(&error, words)),
            };
            if !wanted.serves() {
                signals::unblock();
            }
            let outcome = runtime.block_on(status_of(wanted));
            // Unlike a drop of the runtime, this does not wait for threads that still read a file or resolve a
            // name.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(status) => status,
        Err(error) => {
            // The error may have several problems, one per line.
            format!("{error:#}").lines().for_each(|line| eprintln!("evener: {}", printable(line)));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command and returns its exit status.
async fn status_of(wanted: Command) -> anyhow::Result<ExitCode> {
    match wanted {
        Command::Plan(plan) => plan.run().await,
        other => command(other).await.map(|()| ExitCode::SUCCESS),
    }
}

/// `evener import PROGRAM`
fn import(program: &str, arguments: ForeignArguments) -> anyhow::Result<()> {
    let imported = match program {
        "keepalived" => crate::compat::import_keepalived(&arguments.words)?,
        "ipvsadm" => crate::compat::import_ipvsadm(&arguments.words)?,
        _ => crate::compat::import_pen(arguments.words)?,
    };
    print!("{imported}");
    Ok(())
}

async fn command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { file, options } => run::file(file, &options).await,
        Command::Check(command) => command.run().await,
        Command::Demo { seconds } => demo::demo(seconds.map(Duration::from_secs)).await,
        Command::Tcp(line) => line.run().await,
        Command::Http(line) => line.run().await,
        Command::Udp(line) => line.run().await,
        Command::Dns(line) => line.run().await,
        Command::Status(command) => command.run().await,
        Command::Servers(command) => command.run().await,
        Command::Top(command) => command.run().await,
        Command::Reload(admin_args) => client::reload(&admin_args).await,
        Command::Upgrade(command) => command.run().await,
        Command::Add(command) => command.run().await,
        Command::Remove(command) => command.run().await,
        Command::Weight(command) => command.run().await,
        Command::Save(command) => command.run().await,
        Command::Plan(command) => command.run().await.map(drop),
        Command::Apply(command) => command.run().await,
        Command::Confirm(command) => command.run().await,
        Command::Drain(command) => command.run("drain").await,
        Command::Ready(command) => command.run().await,
        Command::Maintenance(command) => command.run("maintenance").await,
        Command::Explain(wanted) => wanted.run().await,
        Command::Clients(command) => command.run().await,
        Command::Balstat { pool, limit, admin_args } => {
            balstat::balstat(pool.as_deref(), limit, &admin_args).await
        }
        Command::Flows(command) => command.run().await,
        Command::Connections(command) => command.run().await,
        Command::Metrics(command) => command.run().await,
        Command::Capture(command) => command.run().await,
        Command::Close(command) => command.run().await,
        Command::Events(command) => command.run().await,
        Command::Expunge(command) => expunge::expunge(command).await,
        Command::Deny { command, time } => client::change_access(&command, "deny", time).await,
        Command::Permit { command, time } => client::change_access(&command, "permit", time).await,
        Command::Forget(command) => client::change_access(&command, "forget", None).await,
        Command::Access(admin_args) => client::access(&admin_args).await,
        Command::Import { program, arguments, .. } => import(&program, arguments),
        // These programs are started before this command line is parsed, if their name is the first word.
        Command::Pen(_)
        | Command::Penctl(_)
        | Command::Penlog(_)
        | Command::Penlogd(_)
        | Command::Mergelogs(_)
        | Command::MnameBalancer(_)
        | Command::Sbulb(_) => anyhow::bail!("give the name of the program first"),
        Command::Ipvs(command) => command.run(),
        Command::Xdp(command) => command.run(),
        Command::Help(wanted) => help::help(&wanted),
        Command::Init(wanted) => wanted.run(),
        Command::Annotations => {
            print!("{}", crate::config::annotations());
            Ok(())
        }
        Command::Man { directory } => manual::write(&directory),
        Command::Completions { shell } => {
            // clap_complete panics when a write fails, so it writes to memory.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "evener", &mut script);
            print!("{}", String::from_utf8_lossy(&script));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the words of a shell command without redirections. Only single quotes are known.
    fn words_of(command: &str) -> Vec<String> {
        let parts = command.split('\'').enumerate();
        let words = parts.flat_map(|(number, part)| match number % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        words.take_while(|word| !matches!(word.as_str(), ">" | "&" | "|" | "2>&1")).collect()
    }

    #[test]
    fn the_command_lines_of_the_documents_are_valid() {
        let root = format!("{}/../..", env!("CARGO_MANIFEST_DIR"));
        let folders = ["", "docs", "examples"].map(|name| std::fs::read_dir(format!("{root}/{name}")));
        let files = folders.into_iter().flatten().flatten().flatten().map(|entry| entry.path());
        let is_text = |path: &PathBuf| path.extension().is_some_and(|end| end == "md" || end == "lua");
        let mut seen = 0;
        for path in files.filter(is_text) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for line in text.lines() {
                let line = line.trim_start_matches(['-', ' ', '$']);
                let commands = line.split("  #").next().unwrap_or_default().split(" && ");
                for command in commands.filter(|command| command.starts_with("evener ")) {
                    let words = words_of(command);
                    // A sentence that begins with the name of the program is not a command.
                    let is_command = Cli::command()
                        .get_subcommands()
                        .any(|known| words.get(1).is_some_and(|word| word == known.get_name()));
                    let outcome = Cli::try_parse_from(&words);
                    assert!(!is_command || outcome.is_ok(), "{}: `{command}`: {outcome:?}", path.display());
                    seen += usize::from(is_command);
                }
            }
        }
        assert!(seen > 20, "only {seen} command lines were checked");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
