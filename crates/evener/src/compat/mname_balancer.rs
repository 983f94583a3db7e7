//! `mname-balancer`: DNS for the processes of one directory. Its command line becomes a configuration; what runs is the
//! same as with a file.

mod line;
mod spec;

use crate::admin::AdminSocket;
use crate::cli;
use crate::config::Config;
use crate::observe::{Log, LogFormat};
use crate::signals::{self, Signals};
use crate::supervisor::{ConfigSource, Setting};
use evener_core::event::Event;
use evener_proxy::Driver;
use line::{HELP, Line, Wanted, parse};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The name of the program in its logs.
const NAME: &str = "mname-balancer";
/// Questions are answered soon or never, and whoever restarts wants the port.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs it.
pub(super) fn main(arguments: Vec<OsString>) -> ExitCode {
    let line = match parse(arguments, std::env::var("LOG_LEVEL").ok()) {
        Ok(Wanted::Run(line)) => line,
        Ok(Wanted::Help) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(Wanted::Version) => {
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
            format!("{error:#}").lines().for_each(|line| eprintln!("{NAME}: {line}"));
            ExitCode::FAILURE
        }
    }
}

fn begin(line: &Line) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(line));
    runtime.shutdown_background();
    outcome
}

async fn serve(line: &Line) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::let_through();
    let log = Log::named(NAME, LogFormat::Bunyan, line.level);
    let admin = open_admin(line.admin.as_deref(), &log)?;
    let setting = Setting {
        workers: line.workers.into(),
        pin: false,
        driver: Driver::Epoll,
        log,
        drain_timeout: DRAIN,
        source: ConfigSource::None,
    };
    let config = Config { spec: spec::spec(line), ..Config::default() };
    let (mut supervisor, handle) = cli::start(config, setting).await?;
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(admin) = admin {
        supervisor.tell(&Event::AdminListening { socket: admin.path().display().to_string() });
        tasks.spawn(admin.serve(handle, supervisor.draining()));
    }
    supervisor.run(signals).await;
    // Awaited, so that the file of the socket is removed.
    tasks.shutdown().await;
    Ok(())
}

/// Whoever may only bind a port has perhaps no place for an admin socket: then it goes without.
fn open_admin(path: Option<&Path>, log: &Log) -> anyhow::Result<Option<AdminSocket>> {
    match path {
        Some(path) => AdminSocket::open(path).map(Some),
        None => Ok(AdminSocket::open_any()
            .inspect_err(|error| log.event(&Event::Notice { text: format!("no admin socket: {error:#}") }))
            .ok()),
    }
}
