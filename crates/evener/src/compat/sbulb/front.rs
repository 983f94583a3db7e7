//! The running front end: one task that reads the file with the servers every second, and lets the supervisor apply
//! the configuration that follows. A file with a problem changes nothing.

use super::CommandLine;
use super::servers::{ServerFile, checked, in_slots};
use super::spec::spec;
use crate::config::Config;
use crate::events::Events;
use crate::service_manager;
use crate::supervisor::{Files, Handle, Outcome};
use evener_core::event::Event;
use std::net::IpAddr;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

/// Interval of reading the file.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Catches SIGHUP, which reads the file immediately.
pub(super) fn hang_ups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// The front end.
pub(super) struct Front {
    line: CommandLine,
    /// The servers of the running configuration.
    servers: Vec<IpAddr>,
    file: Option<ServerFile>,
    handle: Handle,
    events: Events,
}

impl Front {
    /// Creates the front end of an instance that runs with these servers.
    pub(super) fn new(
        line: CommandLine,
        servers: Vec<IpAddr>,
        file: Option<ServerFile>,
        handle: Handle,
        events: Events,
    ) -> Self {
        Self { line, servers, file, handle, events }
    }

    /// Runs forever.
    pub(super) async fn run(
        mut self,
        mut reloads: mpsc::Receiver<oneshot::Sender<Outcome>>,
        mut hang_ups: Signal,
    ) {
        let mut ticks = tokio::time::interval(READ_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => drop(self.follow_file().await),
                Some(done) = reloads.recv() => drop(done.send(self.reload().await)),
                _ = hang_ups.recv() => drop(self.reload().await),
            }
        }
    }

    /// Reads the file as if it had changed.
    async fn reload(&mut self) -> Outcome {
        service_manager::reloading();
        self.file.iter_mut().for_each(ServerFile::forget);
        let outcome = self.follow_file().await;
        service_manager::ready();
        outcome
    }

    /// Applies the file if it changed. Returns the changes, or every problem.
    async fn follow_file(&mut self) -> Outcome {
        let Some(mut file) = self.file.take() else { return Ok(Vec::new()) };
        let path = file.path().display().to_string();
        // A file system that does not respond delays only this task.
        let work = tokio::task::spawn_blocking(move || {
            let listed = file.read();
            (file, listed)
        });
        let (file, listed) = work.await.expect("reading a file does not panic");
        self.file = Some(file);
        let Some(listed) = listed else { return Ok(Vec::new()) };
        match listed.and_then(|servers| checked(servers, &self.line)) {
            Ok(wanted) => self.apply(&wanted).await,
            Err(problem) => {
                let problem = format!("{path}: {problem}; the last servers stay in use");
                self.events.emit(&Event::ReloadFailed { problem: problem.clone() });
                Err(vec![problem])
            }
        }
    }

    async fn apply(&mut self, wanted: &[IpAddr]) -> Outcome {
        let servers = in_slots(&self.servers, wanted);
        if servers == self.servers {
            return Ok(Vec::new());
        }
        let config = Config::without_file(spec(&self.line, &servers));
        let stopping = || Err(vec!["the program is shutting down".to_owned()]);
        // The supervisor logs the changes, or the problems.
        let changes = self.handle.apply(config, Files::KeepUnchanged).await.unwrap_or_else(stopping)?;
        self.servers = servers;
        Ok(changes)
    }
}
