//! `mname-balancer`: DNS for the processes of a directory. Its command line becomes a configuration, which
//! runs as one from a file would.

mod line;
mod spec;

use super::open_admin;
use crate::config::Config;
use crate::instance::Instance;
use crate::observe::{Log, LogFormat};
use crate::signals::{self, Signals};
use crate::supervisor::{ConfigSource, Setting};
use evener_proxy::Driver;
use line::{HELP, Line, Wanted, parse};
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// The name of the program in its logs.
const NAME: &str = "mname-balancer";
/// Responses to queries come soon or never, and a restarted program needs the port.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs the program.
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
    let config = Config::without_file(spec::spec(line));
    let mut instance = Instance::start(config, setting).await?;
    admin.into_iter().for_each(|admin| instance.serve_admin(admin));
    instance.run(signals).await;
    Ok(())
}
