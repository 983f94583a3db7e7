//! The running front end: one task that executes commands in sequence, changes the settings and lets the
//! supervisor apply the resulting configuration. A command that fails changes nothing.

use super::command::{Act, FileProblem, Query, Step, UNKNOWN, execute, read};
use super::facts::{Facts, Numbers, server_name};
use super::spec::NAME;
use super::state::State;
use super::{page, spec, write};
use crate::config::{Config, Problem};
use crate::observe::{Log, LogLevel};
use crate::supervisor::{Files, Handle, Outcome, StateChange};
use arc_swap::ArcSwapOption;
use evener_core::acl::{Access, Acl};
use evener_core::event::Event;
use evener_core::spec::AdminState;
use evener_proxy::Open;
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

/// Access list of the control port, with the present settings.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<ArcSwapOption<Acl>>);

impl Gate {
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
    pub(super) state: State,
    /// The running configuration.
    pub(super) config: Config,
    pub(super) handle: Handle,
    pub(super) log: Log,
    /// The command line as comments, for `write`.
    pub(super) heading: Vec<String>,
    pub(super) numbers: Numbers,
    pub(super) gate: Gate,
    /// Local UTC offset, read before there were threads, because it is not available later.
    pub(super) offset: UtcOffset,
}

impl Front {
    /// Runs forever.
    pub(super) async fn run(
        mut self,
        first: Vec<Step>,
        mut inputs: mpsc::Receiver<Input>,
        mut reloads: mpsc::Receiver<oneshot::Sender<Outcome>>,
        mut signals: Signals,
    ) {
        // Effects of files and options other than settings. Their responses are discarded.
        self.follow(first).await;
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
            .change(Files::KeepUnchanged, move |state| execute(state, &line).map_err(|error| vec![error]))
            .await;
        // Errors that scripts may know are in pen's words.
        let reworded = |problem: &String| match problem.strip_prefix(UNKNOWN) {
            Some(rest) => format!("do_cmd: ignoring command starting with {rest}\n"),
            None => format!("{problem}\n"),
        };
        match done {
            Ok(steps) => self.follow(steps).await,
            Err(refused) => refused.problems.iter().map(reworded).collect(),
        }
    }

    /// Reads the file of commands again, and opens the log again.
    async fn reload(&mut self) -> Outcome {
        let file = self.state.config_file.clone();
        let read_file = move |state: &mut State| {
            // Countries that cannot be looked up any more stay as they are.
            let _ = state.countries.renew(state.geoip.as_deref());
            file.as_ref().map_or(Ok(Vec::new()), |file| read_again(state, file))
        };
        let before = self.config.spec.clone();
        match self.change(Files::ReadAll, read_file).await {
            Ok(steps) => {
                self.follow(steps).await;
                Ok(evener_core::diff::diff(&before, &self.config.spec)
                    .iter()
                    .map(ToString::to_string)
                    .collect())
            }
            Err(refused) => {
                let failed = |problem: &String| Event::ReloadFailed { problem: problem.clone() };
                if !refused.is_logged {
                    refused.problems.iter().for_each(|problem| self.log.event(&failed(problem)));
                }
                Err(refused.problems)
            }
        }
    }

    /// Changes the settings, if the resulting configuration can be applied.
    async fn change(
        &mut self,
        files: Files,
        act: impl FnOnce(&mut State) -> Result<Vec<Step>, Vec<String>> + Send + 'static,
    ) -> Result<Vec<Step>, Refused> {
        let mut state = self.state.clone();
        // Names are resolved and files read on another thread. The next command waits, but the supervisor
        // does not.
        let work = tokio::task::spawn_blocking(move || {
            let before = state.clone();
            let steps = act(&mut state)?;
            let whole = (state != before || files == Files::ReadAll).then(|| spec::whole(&state)).transpose();
            let whole =
                whole.map_err(|problems| problems.iter().map(Problem::to_string).collect::<Vec<_>>())?;
            Ok::<_, Vec<String>>((state, steps, whole))
        });
        let done = work.await.unwrap_or_else(|error| Err(vec![error.to_string()]));
        let (state, steps, whole) = done.map_err(|problems| Refused { problems, is_logged: false })?;
        if let Some(whole) = whole {
            if whole.config.spec != self.config.spec || files == Files::ReadAll {
                let gone = || Err(vec!["the program is shutting down".to_owned()]);
                let taken_on = self.handle.apply(whole.config.clone(), files).await.unwrap_or_else(gone);
                taken_on.map_err(|problems| Refused { problems, is_logged: true })?;
                self.config = whole.config;
            }
            self.gate.set(whole.control);
        }
        if state.debug != self.state.debug {
            self.log.set_level(level(state.debug));
        }
        self.state = state;
        Ok(steps)
    }

    /// Executes the effects of a command other than settings. Returns the whole response.
    pub(super) async fn follow(&mut self, steps: Vec<Step>) -> String {
        let mut response = String::new();
        for step in steps {
            match step {
                Step::Say(text) => response += &text,
                Step::Warn(text) => self.notice(text),
                Step::Ask(query) => response += &self.respond(query).await,
                Step::Do(act) => response += &self.act(act).await,
            }
        }
        response
    }

    async fn respond(&mut self, query: Query) -> String {
        let facts = self.facts().await;
        match query {
            Query::Servers => page::servers(&self.state, &facts),
            Query::Recent(seconds) => page::recent(&facts, seconds),
            Query::Idlers => format!("Idlers: {}/{}\n", facts.idlers, self.state.idlers),
            Query::Status => self.status(&facts).await,
            Query::Socket(socket) => page::socket(socket, &self.open().await),
            Query::Connection(number) => {
                page::connection(number, self.state.conn_max(), &self.open().await, &facts)
            }
        }
    }

    async fn facts(&self) -> Facts {
        let state = self.state.clone();
        self.handle.inspect(move |supervisor| Facts::inspect(supervisor, &state)).await.unwrap_or_default()
    }

    /// Returns the open connections, with pen's numbers.
    async fn open(&mut self) -> Vec<(usize, Open)> {
        let listing = self.handle.connections(Some(NAME.into()), page::ROWS_MAX).await;
        let open = listing.and_then(Result::ok).unwrap_or_default().open;
        self.numbers.number(open)
    }

    /// Returns the status page, and writes it to its file.
    async fn status(&mut self, facts: &Facts) -> String {
        let open = self.open().await;
        let text = page::html(&self.state, facts, &open, self.offset);
        if let Some(file) = self.state.web_stats.clone()
            && let Err(error) = put(&file, text.clone()).await
        {
            self.notice(error);
        }
        text
    }

    /// Handles SIGUSR1: writes the status page to its file, or statistics to the log.
    async fn statistics(&mut self) {
        let facts = self.facts().await;
        if self.state.web_stats.is_some() {
            self.status(&facts).await;
        } else {
            page::text(&self.state, &facts).into_iter().for_each(|text| self.notice(text));
        }
    }

    async fn act(&mut self, act: Act) -> String {
        match act {
            Act::Blacklist(number, seconds) => self.blacklist(number, seconds).await,
            Act::Close(number) => self.close(number).await,
            Act::Exit => {
                self.handle.stop().await;
                String::new()
            }
            Act::Write(file) => {
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                let mut heading = vec![format!("Generated by evener pen {now}")];
                heading.extend(self.heading.iter().cloned());
                let text = match write::write(&self.state, &heading) {
                    Ok(text) => text,
                    Err(error) => return format!("{error}\n"),
                };
                put(&file, text).await.err().map(|error| format!("{error}\n")).unwrap_or_default()
            }
        }
    }

    /// Excludes a server for a time; none includes it again at once.
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
        if !(0..i64::from(self.state.conn_max())).contains(&number) {
            return page::out_of_range(number);
        }
        let open = self.open().await;
        if let Some((_, open)) = open.iter().find(|(listed, _)| *listed as i64 == number) {
            let _ = self.handle.close(open.number).await;
        }
        format!("Forcibly closing connection {number}\n")
    }

    fn notice(&self, text: String) {
        self.log.event(&Event::Notice { text });
    }
}

/// Returns the lowest level of logged events for a number of `-d`.
pub(super) fn level(debug: u32) -> LogLevel {
    if debug == 0 { LogLevel::Info } else { LogLevel::Debug }
}

/// Reads the file of commands. Each problem has its line. A missing file is accepted, because `write` may
/// create it.
pub(super) fn read_again(state: &mut State, file: &Path) -> Result<Vec<Step>, Vec<String>> {
    if file.try_exists().is_ok_and(|exists| !exists) {
        return Ok(vec![Step::Warn(format!("{} does not exist: no commands were read", file.display()))]);
    }
    read(state, file).map_err(|problems| problems.iter().map(FileProblem::to_string).collect())
}

/// Writes a file as a whole, or not at all.
async fn put(file: &Path, text: String) -> Result<(), String> {
    let file: Arc<Path> = file.into();
    let work = move || {
        let failed = |error: std::io::Error| format!("{} cannot be written: {error}", file.display());
        // If the path is a link, its target is written.
        let file = std::fs::canonicalize(&file).unwrap_or_else(|_| file.to_path_buf());
        let known = std::fs::metadata(&file).ok();
        // A pipe or a device cannot be replaced by a file.
        if known.as_ref().is_some_and(|meta| !meta.is_file()) {
            return std::fs::write(&file, text).map_err(failed);
        }
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let beside = file.with_file_name(name);
        let _ = std::fs::remove_file(&beside);
        let mut fresh = match std::fs::File::create_new(&beside) {
            Ok(fresh) => fresh,
            // The file is writable, but its directory is not.
            Err(error) if is_forbidden(&error) => return std::fs::write(&file, text).map_err(failed),
            Err(error) => return Err(failed(error)),
        };
        let written = fresh.write_all(text.as_bytes()).and_then(|()| {
            if let Some(meta) = known {
                let _ = std::os::unix::fs::fchown(&fresh, Some(meta.uid()), Some(meta.gid()));
                fresh.set_permissions(meta.permissions())?;
            }
            std::fs::rename(&beside, &file)
        });
        written.map_err(|error| {
            let _ = std::fs::remove_file(&beside);
            failed(error)
        })
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

fn is_forbidden(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
}
