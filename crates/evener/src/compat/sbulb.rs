//! `sbulb`: a NAT balancer for UDP on one interface, in the XDP plane. Its command line, and the file with the
//! servers, become configurations, which run like configurations from a file.

mod arguments;
mod command_line;
mod front;
mod servers;
mod spec;

use super::open_admin;
use crate::config::{self, Config};
use crate::events::Events;
use crate::instance::Instance;
use crate::observe::{Log, LogFormat, LogLevel};
use crate::output::printable;
use crate::signals::{self, Signals};
use crate::supervisor::{ConfigSource, Setting};
use anyhow::anyhow;
use command_line::{HELP, parse};
use evener_core::spec::XdpEventLevel;
use evener_xdp::installation;
use front::Front;
use servers::{ServerFile, checked};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::sync::mpsc;

/// Name of the program in its messages, and of its service and pool.
const NAME: &str = "sbulb";

/// A parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CommandLine {
    interface: String,
    virtual_server: IpAddr,
    servers: Source,
    ports: Vec<u16>,
    level: XdpEventLevel,
    servers_max: usize,
    associations: u32,
    admin: Option<PathBuf>,
    print: bool,
}

/// Source of the real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Addresses(Vec<IpAddr>),
    File(PathBuf),
}

/// The action that the command line selects.
#[derive(Debug, PartialEq, Eq)]
enum SbulbAction {
    Run(CommandLine),
    Help,
    Version,
}

/// Runs the program.
pub(super) fn main(arguments: Vec<OsString>) -> ExitCode {
    let line = match parse(arguments) {
        Ok(SbulbAction::Run(line)) => line,
        Ok(SbulbAction::Help) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(SbulbAction::Version) => {
            println!("{NAME} (evener {})", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // The layout of Python's argparse.
            eprintln!("{}\n{NAME}: error: {}", command_line::USAGE, printable(&error));
            return ExitCode::from(2);
        }
    };
    match begin(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            format!("{error:#}").lines().for_each(|line| eprintln!("{NAME}: {}", printable(line)));
            ExitCode::FAILURE
        }
    }
}

fn begin(line: &CommandLine) -> anyhow::Result<()> {
    let mut file = None;
    let servers = match &line.servers {
        Source::Addresses(servers) => servers.clone(),
        Source::File(path) => {
            let file = file.insert(ServerFile::new(path.clone()));
            let listed = file.read().expect("the first reading has a result");
            let listed = listed.and_then(|servers| checked(servers, line));
            listed.map_err(|problem| anyhow!("{}: {problem}", path.display()))?
        }
    };
    if line.print {
        print!("{}", config::print(&spec::spec(line, &servers), &|_| None));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(line, servers, file));
    runtime.shutdown_background();
    outcome
}

async fn serve(line: &CommandLine, servers: Vec<IpAddr>, file: Option<ServerFile>) -> anyhow::Result<()> {
    let (signals, hang_ups) = (Signals::catch()?, front::hang_ups()?);
    signals::unblock();
    let events = Events::new(Log::named(NAME, LogFormat::Text, log_level(line.level)));
    let admin = open_admin(line.admin.as_deref(), &events)?;
    let (reload_requests, reloads) = mpsc::channel(1);
    // The kernel forwards the packets, so one worker is enough.
    let setting = Setting::new(1, ConfigSource::Front(reload_requests), events.clone());
    let config = Config::without_file(spec::spec(line, &servers));
    let pin = config.spec.xdp.pin.clone();
    let mut instance = Instance::start(config, setting).await?;
    let front = Front::new(line.clone(), servers, file, instance.handle(), events);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(front.run(reloads, hang_ups));
    admin.into_iter().for_each(|admin| instance.serve_admin(admin));
    instance.run(signals).await;
    tasks.shutdown().await;
    detach(line, &pin);
    Ok(())
}

/// Takes the program away from the interface, as sbulb does at its end. The associations stay pinned, so that another
/// start continues with them.
fn detach(line: &CommandLine, pin: &Path) {
    if let Err(error) = installation::detach(pin, Some(&line.interface)) {
        eprintln!("{NAME}: the program is still attached to {}: {error}", line.interface);
    }
}

/// Returns the level of the log. Evener has no level above error.
const fn log_level(level: XdpEventLevel) -> LogLevel {
    match level {
        XdpEventLevel::Critical | XdpEventLevel::Error => LogLevel::Error,
        XdpEventLevel::Warning => LogLevel::Warn,
        XdpEventLevel::Info => LogLevel::Info,
        XdpEventLevel::Debug | XdpEventLevel::Trace => LogLevel::Debug,
    }
}
