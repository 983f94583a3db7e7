//! The running front end: one task that executes commands in sequence, changes the settings and lets the
//! supervisor apply the resulting configuration. A command that fails changes nothing.

use super::settings::{Compiled, InstanceAction, NAME, PenSettings, Query, Step, UNKNOWN};
use super::view::{self, ConnectionNumbers, InstanceView, server_name};
use crate::config::{Config, Problem};
use crate::events::Events;
use crate::state::{ClientsQuery, ConnectionView, ConnectionsQuery, ViewScope};
use crate::supervisor::{Files, Handle, Outcome, StateChange};
use arc_swap::ArcSwapOption;
use evener_core::acl::{Access, Acl};
use evener_core::event::Event;
use evener_core::spec::AdminState;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use time::UtcOffset;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Maximum length of a line.
pub(super) const LINE_BYTES_MAX: usize = 4096;
/// Maximum number of queued commands.
pub(super) const INPUTS_MAX: usize = 64;

/// Access list of the control port. It is replaced when the settings change.
#[derive(Clone, Debug, Default)]
pub(super) struct ControlAccess(Arc<ArcSwapOption<Acl>>);

impl ControlAccess {
    pub(super) fn set(&self, list: Option<Arc<Acl>>) {
        self.0.store(list);
    }

    pub(super) fn permits(&self, client: IpAddr) -> bool {
        self.0.load().as_ref().is_none_or(|list| list.access(client) == Access::Permit)
    }
}

/// Messages to the front end.
#[derive(Debug)]
pub(super) enum Input {
    Command { line: String, response: oneshot::Sender<String> },
}

/// Signals that the front end handles.
pub(super) struct Signals {
    hang_up: Signal,
    statistics: Signal,
    abort: Signal,
}

impl Signals {
    pub(super) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            statistics: signal(SignalKind::user_defined1())?,
            abort: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Reason why the settings did not change.
struct Refused {
    problems: Vec<String>,
    /// True if the supervisor has logged the problems.
    is_logged: bool,
}

/// The running front end.
pub(super) struct Front {
    settings: PenSettings,
    /// The running configuration.
    config: Config,
    handle: Handle,
    events: Events,
    /// The command line as comments, for `write`.
    heading: Vec<String>,
    numbers: ConnectionNumbers,
    access: ControlAccess,
    /// Local UTC offset, read before there were threads, because it is not available later.
    offset: UtcOffset,
}

impl Front {
    /// Creates the front end of an instance that runs with the compiled settings.
    pub(super) fn new(
        settings: PenSettings,
        compiled: Compiled,
        handle: Handle,
        events: Events,
        heading: Vec<String>,
        offset: UtcOffset,
    ) -> Self {
        let access = ControlAccess::default();
        access.set(compiled.control);
        let numbers = ConnectionNumbers::default();
        Self { settings, config: compiled.config, handle, events, heading, numbers, access, offset }
    }

    /// Returns the access list of the control port, which follows the settings.
    pub(super) fn control_access(&self) -> ControlAccess {
        self.access.clone()
    }

    /// Runs forever.
    pub(super) async fn run(
        mut self,
        first: Vec<Step>,
        mut inputs: mpsc::Receiver<Input>,
        mut reloads: mpsc::Receiver<oneshot::Sender<Outcome>>,
        mut signals: Signals,
    ) {
        // Effects of files and options other than changes of settings. Their responses are discarded.
        self.execute_steps(first).await;
        loop {
            tokio::select! {
                Some(Input::Command { line, response }) = inputs.recv() => {
                    let _ = response.send(self.on_command(line).await);
                }
                Some(done) = reloads.recv() => drop(done.send(self.reload().await)),
                _ = signals.hang_up.recv() => drop(self.reload().await),
                _ = signals.statistics.recv() => self.statistics().await,
                _ = signals.abort.recv() => std::process::abort(),
            }
        }
    }

    /// Executes a line and returns the response.
    async fn on_command(&mut self, line: String) -> String {
        let done = self
            .change(Files::KeepUnchanged, move |settings| {
                settings.execute(&line).map_err(|error| vec![error])
            })
            .await;
        // Scripts may expect this error in pen's words.
        let reworded = |problem: &String| match problem.strip_prefix(UNKNOWN) {
            Some(rest) => format!("do_cmd: ignoring command starting with {rest}\n"),
            None => format!("{problem}\n"),
        };
        match done {
            Ok((steps, _)) => self.execute_steps(steps).await,
            Err(refused) => refused.problems.iter().map(reworded).collect(),
        }
    }

    /// Reads the file of commands again, and opens the log again.
    async fn reload(&mut self) -> Outcome {
        match self.change(Files::ReadAll, PenSettings::reload).await {
            Ok((steps, changes)) => {
                self.execute_steps(steps).await;
                Ok(changes)
            }
            Err(refused) => {
                let failed = |problem: &String| Event::ReloadFailed { problem: problem.clone() };
                if !refused.is_logged {
                    refused.problems.iter().for_each(|problem| self.events.emit(&failed(problem)));
                }
                Err(refused.problems)
            }
        }
    }

    /// Changes the settings, if the resulting configuration can be applied. Returns the steps that remain, and
    /// the changes that were applied.
    async fn change(
        &mut self,
        files: Files,
        change_settings: impl FnOnce(&mut PenSettings) -> Result<Vec<Step>, Vec<String>> + Send + 'static,
    ) -> Result<(Vec<Step>, Vec<String>), Refused> {
        let mut settings = self.settings.clone();
        // Names are resolved and files read on another thread. The next command waits, but the supervisor
        // does not.
        let work = tokio::task::spawn_blocking(move || {
            let before = settings.clone();
            let steps = change_settings(&mut settings)?;
            settings.check_interface(&before).map_err(|problem| vec![problem])?;
            let is_changed = settings != before || files == Files::ReadAll;
            let compiled = is_changed.then(|| settings.compile()).transpose();
            let compiled =
                compiled.map_err(|problems| problems.iter().map(Problem::to_string).collect::<Vec<_>>())?;
            Ok::<_, Vec<String>>((settings, steps, compiled))
        });
        let done = work.await.unwrap_or_else(|error| Err(vec![error.to_string()]));
        let (settings, steps, compiled) = done.map_err(|problems| Refused { problems, is_logged: false })?;
        let mut changes = Vec::new();
        if let Some(compiled) = compiled {
            if compiled.config.spec != self.config.spec || files == Files::ReadAll {
                let stopping = || Err(vec!["the program is shutting down".to_owned()]);
                let applied = self.handle.apply(compiled.config.clone(), files).await;
                let applied = applied.unwrap_or_else(stopping);
                changes = applied.map_err(|problems| Refused { problems, is_logged: true })?;
                self.config = compiled.config;
            }
            self.access.set(compiled.control);
        }
        if settings.log_level() != self.settings.log_level() {
            self.events.set_log_level(settings.log_level());
        }
        self.settings = settings;
        Ok((steps, changes))
    }

    /// Executes the effects of a command other than changes of settings. Returns the whole response.
    async fn execute_steps(&mut self, steps: Vec<Step>) -> String {
        let mut response = String::new();
        for step in steps {
            match step {
                Step::Respond(text) => response += &text,
                Step::Warn(text) => self.notice(text),
                Step::Query(query) => response += &self.respond(query).await,
                Step::Do(action) => response += &self.execute_action(action).await,
            }
        }
        response
    }

    async fn respond(&mut self, query: Query) -> String {
        let instance = self.inspect().await;
        match query {
            Query::Servers => instance.servers(&self.settings),
            Query::Recent(seconds) => instance.recent(seconds),
            Query::Idlers => instance.idlers(&self.settings),
            Query::Status => self.status(&instance).await,
            Query::Socket(socket) => view::socket(socket, &self.open().await),
            Query::Connection(number) => {
                let open = self.open().await;
                instance.connection(number, &self.settings, &open)
            }
        }
    }

    async fn inspect(&self) -> InstanceView {
        let view = self.handle.view(ViewScope::ServiceWithPool(NAME.into())).await;
        // pen shows all clients of its table, whose size is a setting.
        let clients = self.handle.clients(ClientsQuery::all_of(NAME)).await;
        let clients = clients.and_then(Result::ok).unwrap_or_default();
        view.map(|view| InstanceView::new(&view, &clients, &self.settings)).unwrap_or_default()
    }

    /// Returns the open connections, with pen's numbers.
    async fn open(&mut self) -> Vec<(usize, ConnectionView)> {
        let open = self
            .handle
            .connections(ConnectionsQuery::new(view::ROWS_MAX).of_service(Some(NAME.into())))
            .await;
        let open = open.and_then(Result::ok).unwrap_or_default();
        self.numbers.number(open.into_connections())
    }

    /// Returns the status page, and writes it to its file, if any.
    async fn status(&mut self, instance: &InstanceView) -> String {
        let open = self.open().await;
        let text = instance.html(&self.settings, &open, self.offset);
        if let Some(file) = self.settings.status_page_file()
            && let Err(error) = write_file(file, text.clone()).await
        {
            self.notice(error);
        }
        text
    }

    /// Handles SIGUSR1: writes the status page to its file, or statistics to the log.
    async fn statistics(&mut self) {
        let instance = self.inspect().await;
        if self.settings.status_page_file().is_some() {
            self.status(&instance).await;
        } else {
            instance.statistics(&self.settings).into_iter().for_each(|text| self.notice(text));
        }
    }

    async fn execute_action(&mut self, action: InstanceAction) -> String {
        match action {
            InstanceAction::Blacklist(number, seconds) => self.blacklist(number, seconds).await,
            InstanceAction::Close(number) => self.close(number).await,
            InstanceAction::Exit => {
                self.handle.stop().await;
                String::new()
            }
            InstanceAction::Write(file) => {
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                let mut heading = vec![format!("Generated by evener pen {now}")];
                heading.extend(self.heading.iter().cloned());
                let text = match self.settings.write(&heading) {
                    Ok(text) => text,
                    Err(error) => return format!("{error}\n"),
                };
                write_file(&file, text).await.err().map(|error| format!("{error}\n")).unwrap_or_default()
            }
        }
    }

    /// Excludes a server for a time; 0 seconds includes it again immediately.
    async fn blacklist(&self, number: usize, seconds: u32) -> String {
        let server = server_name(number);
        let change = match seconds {
            0 => StateChange::new(server, AdminState::Ready, None),
            _ => {
                let time = Duration::from_secs(seconds.into());
                StateChange::new(server, AdminState::Maintenance, Some(time))
            }
        };
        match self.handle.set_state(change).await {
            Some(Err(_)) => format!("server {number} has no address and port yet\n"),
            _ => String::new(),
        }
    }

    async fn close(&mut self, number: i64) -> String {
        if !(0..i64::from(self.settings.conn_max())).contains(&number) {
            return view::out_of_range(number);
        }
        let open = self.open().await;
        if let Some((_, open)) = open.iter().find(|(listed, _)| *listed as i64 == number) {
            let _ = self.handle.close(open.number()).await;
        }
        format!("Forcibly closing connection {number}\n")
    }

    fn notice(&self, text: String) {
        self.events.emit(&Event::Notice { text });
    }
}

/// Writes a file as a whole or not at all, if its directory is writable and the file is a regular one.
async fn write_file(file: &Path, text: String) -> Result<(), String> {
    let file: Arc<Path> = file.into();
    let work = move || {
        let failed = |error: std::io::Error| format!("{} cannot be written: {error}", file.display());
        // If the path is a link, its target is written.
        let file = std::fs::canonicalize(&file).unwrap_or_else(|_| file.to_path_buf());
        let existing = std::fs::metadata(&file).ok();
        // A pipe or a device cannot be replaced by a file.
        if existing.as_ref().is_some_and(|meta| !meta.is_file()) {
            return std::fs::write(&file, text).map_err(failed);
        }
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = file.with_file_name(name);
        let _ = std::fs::remove_file(&temporary);
        let mut fresh = match std::fs::File::create_new(&temporary) {
            Ok(fresh) => fresh,
            // The directory is not writable, but the file may be.
            Err(error) if is_not_permitted(&error) => return std::fs::write(&file, text).map_err(failed),
            Err(error) => return Err(failed(error)),
        };
        let written = fresh.write_all(text.as_bytes()).and_then(|()| {
            if let Some(meta) = existing {
                let _ = std::os::unix::fs::fchown(&fresh, Some(meta.uid()), Some(meta.gid()));
                fresh.set_permissions(meta.permissions())?;
            }
            std::fs::rename(&temporary, &file)
        });
        written.map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            failed(error)
        })
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

fn is_not_permitted(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
}
