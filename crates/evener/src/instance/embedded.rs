//! An instance inside another program: on its own thread, without a command line, signals or an admin socket.

use super::Instance;
use crate::config;
use crate::events::Events;
use crate::observe::{Log, LogFormat, LogLevel};
use crate::signals::Signals;
use crate::state::ViewScope;
use crate::supervisor::{ConfigSource, Handle, Setting};
use anyhow::Context;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Options of an embedded instance.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of worker threads.
    pub workers: usize,
    /// Time that clients have to finish after the instance is stopped.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 1, drain_timeout: Duration::ZERO }
    }
}

/// An instance on its own thread. It ends when this value is dropped. Warnings and errors are logged to
/// standard error.
pub struct Embedded {
    handle: Handle,
    runtime: tokio::runtime::Handle,
    thread: Option<JoinHandle<()>>,
}

type Started = anyhow::Result<(Handle, tokio::runtime::Handle)>;

impl Embedded {
    /// Starts an instance with the configuration of a file. When this returns, the instance accepts clients.
    ///
    /// # Errors
    /// Every problem of the configuration, or the reason why the instance cannot start.
    pub fn start(file: &Path, options: Options) -> anyhow::Result<Self> {
        let (done, started) = sync_channel(1);
        let file = file.to_owned();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || run(&file, options, &done))
            .context("cannot start the thread of the instance")?;
        let (handle, runtime) = started.recv().context("the instance ended before it started")??;
        Ok(Self { handle, runtime, thread: Some(thread) })
    }

    /// Returns the IP addresses that a service listens on, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self, service: &str) -> Vec<SocketAddr> {
        let view = self.runtime.block_on(self.handle.view(ViewScope::Service(service.to_owned())));
        view.map(|view| view.listen_addresses(service)).unwrap_or_default()
    }

    /// Reads the file again and applies it. Returns the changes.
    ///
    /// # Errors
    /// Every problem of the configuration. With any problem nothing is applied.
    pub fn reload(&self) -> anyhow::Result<Vec<String>> {
        let outcome = self.runtime.block_on(self.handle.reload()).context("the instance has ended")?;
        outcome.map_err(|problems| anyhow::Error::msg(problems.join("\n")))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.runtime.block_on(self.handle.stop());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(file: &Path, options: Options, done: &SyncSender<Started>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(done.send(Err(error.into()))),
    };
    runtime.block_on(async {
        match start(file.to_owned(), options).await {
            Ok(instance) => {
                let _ = done.send(Ok((instance.handle(), runtime.handle().clone())));
                instance.run(Signals::none()).await;
            }
            Err(error) => drop(done.send(Err(error))),
        }
    });
}

async fn start(file: PathBuf, options: Options) -> anyhow::Result<Instance> {
    let path = file.clone();
    let config = tokio::task::spawn_blocking(move || config::load(&path)).await?;
    let config = config.map_err(|problems| config::failure(&problems))?;
    let events = Events::new(Log::new(LogFormat::Text, LogLevel::Warn));
    let setting = Setting::new(options.workers, ConfigSource::File(file), events);
    Instance::start(config, setting.drain_for(options.drain_timeout)).await
}
