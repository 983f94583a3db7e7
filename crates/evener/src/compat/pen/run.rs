//! `pen`: runs an instance from its command line. Steps that need root come first, then the rights are given
//! up, then the other steps follow.

mod command_line;

pub(super) use command_line::parse;

use super::control::Control;
use super::front::{Front, INPUTS_MAX, Signals};
use super::settings::{Compiled, PenSettings, Step};
use crate::activation::Prebound;
use crate::compat::daemon::{Daemon, Directory, PidFile, Process, Stdout, User, change_root};
use crate::compat::open_admin;
use crate::config::{Config, failure};
use crate::events::Events;
use crate::inherited::ListenerKey;
use crate::inputs::gather;
use crate::instance::Instance;
use crate::observe::{Log, LogFormat};
use crate::output::printable;
use crate::signals;
use crate::supervisor::{ConfigSource, Setting};
use anyhow::Context;
use command_line::HELP;
use evener_core::event::Event;
use evener_core::spec::Plane;
use evener_proxy::{Driver, Sharing, bind};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use time::UtcOffset;
use tokio::sync::mpsc;

/// Time that connections have to finish.
const DRAIN: Duration = Duration::from_secs(30);
/// Time that clients of UDP have to finish. Later responses are useless, and a restarted program needs the
/// port.
const DRAIN_UDP: Duration = Duration::from_secs(1);

/// A parsed command line.
#[derive(Clone, Debug)]
pub(super) struct CommandLine {
    settings: PenSettings,
    foreground: bool,
    jail: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    user: Option<String>,
    workers: Option<u16>,
    driver: Driver,
    admin: Option<PathBuf>,
    drain_timeout: Option<Duration>,
    check_only: bool,
    /// Effects of commands in options, other than changes of settings.
    steps: Vec<Step>,
}

/// The action that the command line selects.
#[derive(Debug)]
pub(super) enum PenAction {
    Run(Box<CommandLine>),
    Help,
    Version,
}

/// Runs the program.
pub(in crate::compat) fn main(arguments: Vec<OsString>) -> ExitCode {
    let heading = comment(&arguments);
    let mut line = match parse(arguments) {
        Ok(PenAction::Run(line)) => *line,
        Ok(PenAction::Help) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(PenAction::Version) => {
            println!("pen (evener {})", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("pen: {error}");
            return ExitCode::from(2);
        }
    };
    match begin(&mut line, heading) {
        Ok(code) => code,
        Err(error) => {
            format!("{error:#}").lines().for_each(|line| eprintln!("pen: {}", printable(line)));
            ExitCode::FAILURE
        }
    }
}

/// Returns the command line as a comment for `write`.
fn comment(arguments: &[OsString]) -> Vec<String> {
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().replace('\n', " ")).collect();
    vec![format!("pen {}", words.join(" "))]
}

impl CommandLine {
    pub(super) fn settings(&self) -> &PenSettings {
        &self.settings
    }

    /// Executes the commands of a file.
    pub(super) fn read_file(&mut self, file: &Path) -> anyhow::Result<()> {
        let steps = self.settings.read_file(file).map_err(|problems| anyhow::anyhow!(problems.join("\n")))?;
        self.steps.extend(steps);
        Ok(())
    }

    /// Returns the warnings, about settings without an effect and about probable mistakes.
    pub(super) fn warnings(&self) -> impl Iterator<Item = &str> {
        self.steps
            .iter()
            .filter_map(|step| if let Step::Warn(text) = step { Some(text.as_str()) } else { None })
    }

    /// Returns true if an option should be replaced by the service manager, such as systemd.
    pub(super) fn needs_service_manager(&self) -> bool {
        self.user.is_some() || self.jail.is_some() || self.pid_file.is_some() || !self.foreground
    }

    /// Prints the warnings. The running program logs them, too.
    fn print_warnings(&self) {
        self.warnings().for_each(|text| eprintln!("pen: {text}"));
    }

    /// Makes paths absolute. If the root changes, paths that are opened before the change are in the old root;
    /// the request log, the status page and the pid file are in the new root.
    fn make_absolute(&mut self) -> anyhow::Result<()> {
        let directory = std::env::current_dir()?;
        self.settings.make_absolute(&directory);
        for path in [&mut self.jail, &mut self.admin].into_iter().flatten() {
            *path = directory.join(&*path);
        }
        Ok(())
    }
}

fn begin(line: &mut CommandLine, heading: Vec<String>) -> anyhow::Result<ExitCode> {
    let steps = line.settings.read_commands().map_err(|problems| anyhow::anyhow!(problems.join("\n")))?;
    line.steps.extend(steps);
    line.settings.make_tables();
    if line.jail.is_some() {
        line.make_absolute()?;
    }
    let compiled = line.settings.compile().map_err(|problems| failure(&problems))?;
    line.steps.extend(line.settings.advice().into_iter().map(Step::Warn));
    if line.check_only {
        line.print_warnings();
        println!("valid");
        return Ok(ExitCode::SUCCESS);
    }
    let daemon = if line.foreground {
        None
    } else {
        // pen stays in its directory, so that relative paths keep their meaning.
        match Daemon::begin(Directory::Unchanged)? {
            Process::Called(code) => {
                // The background process logs warnings to the system's log, which is easy to miss at the
                // start.
                line.print_warnings();
                return Ok(code);
            }
            Process::Background(daemon) => Some(daemon),
        }
    };
    if daemon.is_none() {
        // Responses of commands in the file are printed, as by pen.
        let outputs = line
            .steps
            .iter()
            .filter_map(|step| if let Step::Respond(text) = step { Some(text) } else { None });
        // A failed write does not prevent serving.
        outputs.for_each(|text| drop(std::io::stdout().write_all(text.as_bytes())));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(line, compiled, heading, daemon));
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn serve(
    line: &mut CommandLine,
    compiled: Compiled,
    heading: Vec<String>,
    daemon: Option<Daemon>,
) -> anyhow::Result<()> {
    let offset = UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC);
    let (signals, front_signals) = (signals::Signals::catch()?, Signals::catch()?);
    signals::unblock();
    let format = if daemon.is_some() { LogFormat::Syslog } else { LogFormat::Text };
    let events = Events::new(Log::named("pen", format, line.settings.log_level()));
    let control = open_control(line, &events)?;
    let admin = open_admin(line.admin.as_deref(), &events)?;
    let resolved = gather(&compiled.config, crate::certificates::TlsSettings::default())
        .await
        .map_err(|problems| failure(&problems))?;
    let bound = bind_all(&compiled.config, workers(line))?;
    let pid_file = drop_rights(line)?;
    let (reload_requests, reloads) = mpsc::channel(1);
    let setting = setting(line, events.clone(), ConfigSource::Front(reload_requests));
    let mut instance = Instance::start_with(compiled.config.clone(), resolved, bound, setting)?;
    let (inputs, commands) = mpsc::channel(INPUTS_MAX);
    let front =
        Front::new(line.settings.clone(), compiled, instance.handle(), events.clone(), heading, offset);
    let access = front.control_access();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(front.run(std::mem::take(&mut line.steps), commands, reloads, front_signals));
    let mut control_tasks = tokio::task::JoinSet::new();
    if let Some(control) = control {
        control_tasks.spawn(async move { drop(control.serve(inputs, access, events).await) });
    }
    admin.into_iter().for_each(|admin| instance.serve_admin(admin));
    let pid_file = pid_file.map(PidFile::write).transpose()?;
    daemon.map(|daemon| daemon.ready(Stdout::Closed)).transpose()?;
    let draining = instance.draining();
    // A restart may start the next instance while this one drains, so its addresses are released first.
    let release_addresses = async move {
        let _ = draining.await;
        drop(pid_file);
        control_tasks.shutdown().await;
    };
    tokio::join!(instance.run(signals), release_addresses);
    tasks.shutdown().await;
    Ok(())
}

/// Opens the control port. pen refuses to serve it as root unless `-u root` is given.
fn open_control(line: &CommandLine, events: &Events) -> anyhow::Result<Option<Control>> {
    let Some(address) = line.settings.control_address() else { return Ok(None) };
    if rustix::process::geteuid().is_root() && line.user.is_none() {
        let text = "Won't open control port running as root; use -u to run as different user (or -u root)";
        events.emit(&Event::Notice { text: text.into() });
        return Ok(None);
    }
    Control::open(address).map(Some)
}

/// Changes root and user. The process keeps the rights to listen below port 1024 and to use clients' addresses.
/// With `-u root` the process keeps all rights, because it may have to read and write files of other users.
fn drop_rights(line: &CommandLine) -> anyhow::Result<Option<PidFile>> {
    let user = line.user.as_deref().map(User::find).transpose()?;
    line.jail.as_deref().map(change_root).transpose()?;
    let pid_file = line.pid_file.as_deref().map(PidFile::open).transpose()?;
    let Some(user) = user else { return Ok(pid_file) };
    if user.is_root() {
        user.assume()?;
        return Ok(pid_file);
    }
    let retained = CapabilitySet::NET_BIND_SERVICE
        | if line.settings.is_transparent() { CapabilitySet::NET_ADMIN } else { CapabilitySet::empty() };
    let had = rustix::thread::capabilities(None)?.permitted;
    // New threads inherit the rights of this thread; existing threads lose all rights.
    rustix::thread::set_keep_capabilities(true)?;
    user.assume()?;
    let retained = retained & had;
    let sets =
        CapabilitySets { effective: retained, permitted: retained, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).context("capabilities")?;
    Ok(pid_file)
}

/// Binds all listen addresses while the rights allow it.
fn bind_all(config: &Config, workers: usize) -> anyhow::Result<Prebound> {
    let mut bound = Prebound::new();
    // Services in the kernel have no sockets.
    for service in config.spec.services.iter().filter(|service| service.plane == Plane::Proxy) {
        for address in &service.listen {
            for &transport in service.protocol.transports() {
                let opened = bind(address, transport, &service.options, workers, Sharing::None)?;
                bound.push((ListenerKey::new(transport, address, &service.name), opened));
            }
        }
    }
    Ok(bound)
}

fn workers(line: &CommandLine) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    line.workers.map_or(cores, usize::from)
}

fn setting(line: &CommandLine, events: Events, source: ConfigSource) -> Setting {
    let drain_timeout = line.drain_timeout.unwrap_or(if line.settings.is_udp() { DRAIN_UDP } else { DRAIN });
    Setting::new(workers(line), source, events).driven_by(line.driver).drain_for(drain_timeout)
}
