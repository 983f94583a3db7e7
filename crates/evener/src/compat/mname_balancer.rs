//! `mname-balancer`: DNS for the processes of a directory. Its command line becomes a configuration, which
//! runs like a configuration from a file.

mod command_line;
mod spec;

use super::open_admin;
use crate::config::Config;
use crate::events::Events;
use crate::instance::Instance;
use crate::observe::{Log, LogFormat, LogLevel};
use crate::output::printable;
use crate::signals::{self, Signals};
use crate::supervisor::{ConfigSource, Setting};
use command_line::{HELP, parse};
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Name of the program in its logs.
const NAME: &str = "mname-balancer";
/// Time for outstanding queries at the end. Later responses are useless, and a restarted program needs the
/// port.
const DRAIN: Duration = Duration::from_secs(2);

/// A parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CommandLine {
    address: Ipv4Addr,
    port: u16,
    level: LogLevel,
    sockets: PathBuf,
    workers: u16,
    admin: Option<PathBuf>,
}

/// The action that the command line selects.
#[derive(Debug, PartialEq, Eq)]
enum BalancerAction {
    Run(CommandLine),
    Help,
    Version,
}

/// Runs the program.
pub(super) fn main(arguments: Vec<OsString>) -> ExitCode {
    let line = match parse(arguments, std::env::var("LOG_LEVEL").ok()) {
        Ok(BalancerAction::Run(line)) => line,
        Ok(BalancerAction::Help) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(BalancerAction::Version) => {
            println!("{NAME} (evener {})", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{NAME}: {error}");
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(line));
    runtime.shutdown_background();
    outcome
}

async fn serve(line: &CommandLine) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let events = Events::new(Log::named(NAME, LogFormat::Bunyan, line.level));
    let admin = open_admin(line.admin.as_deref(), &events)?;
    let setting = Setting::new(line.workers.into(), ConfigSource::None, events).drain_for(DRAIN);
    let config = Config::without_file(spec::spec(line));
    let mut instance = Instance::start(config, setting).await?;
    admin.into_iter().for_each(|admin| instance.serve_admin(admin));
    instance.run(signals).await;
    Ok(())
}
