//! `pen`: runs an instance from its command line. Steps that need root come first, then the rights are given
//! up, then the other steps follow.

use super::advice::advice;
use super::command::Step;
use super::control::Control;
use super::facts::Numbers;
use super::front::{Front, Gate, INPUTS_MAX, Signals, level, read_again};
use super::line::{HELP, Line, Wanted, parse};
use super::spec::{self, Whole};
use super::state::{Listen, ListenTo};
use crate::compat::daemon::{Daemon, Directory, PidFile, Process, Stdout, User, change_root};
use crate::compat::open_admin;
use crate::config::{Config, failure};
use crate::inputs::gather;
use crate::instance::{Instance, Prebound};
use crate::observe::{Log, LogFormat};
use crate::signals;
use crate::supervisor::{ConfigSource, ListenerKey, Setting};
use anyhow::Context;
use evener_core::event::Event;
use evener_proxy::{Driver, Sharing, bind};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use time::UtcOffset;
use tokio::sync::mpsc;

/// Time that connections have to finish.
const DRAIN: Duration = Duration::from_secs(30);
/// Datagrams get responses soon or never, and a restarted program needs the port.
const DRAIN_UDP: Duration = Duration::from_secs(1);

/// Runs the program.
pub(in crate::compat) fn main(arguments: Vec<OsString>) -> ExitCode {
    let heading = comment(&arguments);
    let mut line = match parse(arguments) {
        Ok(Wanted::Run(line)) => *line,
        Ok(Wanted::Help) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(Wanted::Version) => {
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
            format!("{error:#}").lines().for_each(|line| eprintln!("pen: {line}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns the command line as a comment for `write`.
fn comment(arguments: &[OsString]) -> Vec<String> {
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().replace('\n', " ")).collect();
    vec![format!("pen {}", words.join(" "))]
}

fn begin(line: &mut Line, heading: Vec<String>) -> anyhow::Result<ExitCode> {
    if let Some(file) = line.state.config_file.clone() {
        let steps =
            read_again(&mut line.state, &file).map_err(|problems| anyhow::anyhow!(problems.join("\n")))?;
        line.steps.extend(steps);
    }
    line.state.make_tables();
    if line.jail.is_some() {
        make_absolute(line)?;
    }
    let whole = spec::whole(&line.state).map_err(|problems| failure(&problems))?;
    line.steps.extend(advice(&line.state).into_iter().map(Step::Warn));
    if line.check_only {
        warn(line);
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
                warn(line);
                return Ok(code);
            }
            Process::Background(daemon) => Some(daemon),
        }
    };
    if daemon.is_none() {
        // Responses of commands in the file are printed, as pen does.
        let outputs =
            line.steps.iter().filter_map(|step| if let Step::Say(text) = step { Some(text) } else { None });
        // A failed write does not prevent serving.
        outputs.for_each(|text| drop(std::io::stdout().write_all(text.as_bytes())));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(line, whole, heading, daemon));
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Prints warnings about settings without an effect. The running program logs them.
fn warn(line: &Line) {
    for step in &line.steps {
        if let Step::Warn(text) = step {
            eprintln!("pen: {text}");
        }
    }
}

/// Makes paths absolute. In a changed root, paths that are opened before are relative to the old one; the
/// request log, the status page and the pid file are in the new root.
fn make_absolute(line: &mut Line) -> anyhow::Result<()> {
    let here = std::env::current_dir()?;
    let state = &mut line.state;
    let tls = &mut state.tls;
    let paths = [
        &mut state.config_file,
        &mut state.geoip,
        &mut tls.certificate,
        &mut tls.key,
        &mut tls.ca_file,
        &mut tls.ca_directory,
        &mut tls.sni_path,
        &mut tls.ocsp,
        &mut line.jail,
        &mut line.admin,
    ];
    for path in paths.into_iter().flatten() {
        *path = here.join(&*path);
    }
    if let Some(control) = state.control.as_mut().filter(|control| control.contains('/')) {
        *control = here.join(&*control).display().to_string();
    }
    if let Some(Listen { to: ListenTo::Path(path), .. }) = &mut state.listen {
        *path = here.join(&*path);
    }
    Ok(())
}

async fn serve(
    line: &mut Line,
    Whole { config, control: control_list }: Whole,
    heading: Vec<String>,
    daemon: Option<Daemon>,
) -> anyhow::Result<()> {
    let offset = UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC);
    let (signals, front_signals) = (signals::Signals::catch()?, Signals::catch()?);
    signals::unblock();
    let format = if daemon.is_some() { LogFormat::Syslog } else { LogFormat::Text };
    let log = Log::named("pen", format, level(line.state.debug));
    let control = open_control(line, &log)?;
    let admin = open_admin(line.admin.as_deref(), &log)?;
    let resolved = gather(&config, crate::certificates::TlsSettings::default())
        .await
        .map_err(|problems| failure(&problems))?;
    let bound = bind_all(&config, workers(line))?;
    let pid_file = leave_rights(line)?;
    let (ask_reload, reloads) = mpsc::channel(1);
    let setting = setting(line, log.clone(), ConfigSource::Front(ask_reload));
    let mut instance = Instance::start_with(config.clone(), resolved, bound, setting)?;
    let (inputs, commands) = mpsc::channel(INPUTS_MAX);
    let gate = Gate::default();
    gate.set(control_list);
    let front = Front {
        state: line.state.clone(),
        config,
        handle: instance.handle(),
        log: log.clone(),
        heading,
        numbers: Numbers::default(),
        gate: gate.clone(),
        offset,
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(front.run(std::mem::take(&mut line.steps), commands, reloads, front_signals));
    let mut hearing = tokio::task::JoinSet::new();
    if let Some(control) = control {
        hearing.spawn(async move { drop(control.serve(inputs, gate, log).await) });
    }
    admin.into_iter().for_each(|admin| instance.serve_admin(admin));
    let pid_file = pid_file.map(PidFile::write).transpose()?;
    daemon.map(|daemon| daemon.ready(Stdout::Closed)).transpose()?;
    let draining = instance.draining();
    // A restart may start the next instance while this one drains, so its addresses are released first.
    let make_room = async move {
        let _ = draining.await;
        drop(pid_file);
        hearing.shutdown().await;
    };
    tokio::join!(instance.run(signals), make_room);
    tasks.shutdown().await;
    Ok(())
}

/// Opens the control port. pen refuses to serve it as root unless `-u root` is given.
fn open_control(line: &Line, log: &Log) -> anyhow::Result<Option<Control>> {
    let Some(address) = &line.state.control else { return Ok(None) };
    if rustix::process::geteuid().is_root() && line.user.is_none() {
        let text = "Won't open control port running as root; use -u to run as different user (or -u root)";
        log.event(&Event::Notice { text: text.into() });
        return Ok(None);
    }
    Control::open(address).map(Some)
}

/// Changes root and user. The rights to listen below port 1024 and to use clients' addresses stay. With `-u
/// root` all rights stay, because the files of other users may have to be read and written.
fn leave_rights(line: &Line) -> anyhow::Result<Option<PidFile>> {
    let user = line.user.as_deref().map(User::find).transpose()?;
    line.jail.as_deref().map(change_root).transpose()?;
    let pid_file = line.pid_file.as_deref().map(PidFile::open).transpose()?;
    let Some(user) = user else { return Ok(pid_file) };
    if user.is_root() {
        user.become_it()?;
        return Ok(pid_file);
    }
    let retained = CapabilitySet::NET_BIND_SERVICE
        | if line.state.transparent { CapabilitySet::NET_ADMIN } else { CapabilitySet::empty() };
    let had = rustix::thread::capabilities(None)?.permitted;
    // Later threads inherit the rights of this one; present ones lose all.
    rustix::thread::set_keep_capabilities(true)?;
    user.become_it()?;
    let retained = retained & had;
    let sets =
        CapabilitySets { effective: retained, permitted: retained, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).context("capabilities")?;
    Ok(pid_file)
}

/// Binds all listen addresses while the rights allow it.
fn bind_all(config: &Config, workers: usize) -> anyhow::Result<Prebound> {
    let mut bound = Prebound::new();
    for service in &config.spec.services {
        for address in &service.listen {
            for &transport in service.protocol.transports() {
                let opened = bind(address, transport, &service.options, workers, Sharing::None)?;
                bound.push((ListenerKey::new(transport, address, &service.name), opened));
            }
        }
    }
    Ok(bound)
}

fn workers(line: &Line) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    line.workers.map_or(cores, usize::from)
}

fn setting(line: &Line, log: Log, source: ConfigSource) -> Setting {
    let driver = if line.io_uring { Driver::IoUring } else { Driver::Epoll };
    let drain_timeout = line.drain_timeout.unwrap_or(if line.state.udp { DRAIN_UDP } else { DRAIN });
    Setting::new(workers(line), source, log).driven_by(driver).drain_for(drain_timeout)
}
