//! Notifications of changes in directories (inotify).

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::task::AbortHandle;

/// Changes within this time count as one. A socket exists a moment before its process listens, and a file is
/// written in several steps.
const SETTLE: Duration = Duration::from_millis(50);

/// Changes that are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interest {
    /// Entries that appear and disappear.
    Entries,
    /// Also the contents of the files.
    Contents,
}

/// Watches directories for changes until this value is dropped. If the system has no more watches, reads at
/// intervals still find changes.
#[derive(Debug)]
pub(crate) struct Watcher {
    descriptor: Arc<OwnedFd>,
    task: AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    /// Starts a watcher that calls `changed` after changes, until `changed` returns `false`.
    pub(crate) fn start<F>(changed: impl Fn() -> F + Send + 'static) -> io::Result<Self>
    where
        F: Future<Output = bool> + Send,
    {
        let descriptor = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        // The descriptor can be read like a pipe, and tokio requires nothing else.
        let events = Receiver::from_owned_fd_unchecked(descriptor.try_clone()?)?;
        let task = tokio::spawn(async move { drop(receive_events(&events, changed).await) });
        Ok(Self { descriptor, task: task.abort_handle() })
    }

    /// Returns a function that adds a directory to the watch, and returns false if that is not possible, for
    /// example because the directory does not exist.
    pub(super) fn watch(&self, directory: PathBuf, interest: Interest) -> impl Fn() -> bool + Send + use<> {
        let descriptor = Arc::clone(&self.descriptor);
        let entries = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            // A directory can have sockets and lists of servers.
            | WatchFlags::MASK_ADD;
        let wanted = match interest {
            Interest::Entries => entries,
            Interest::Contents => entries | WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB,
        };
        move || inotify::add_watch(&descriptor, &directory, wanted).is_ok()
    }
}

async fn receive_events<F>(events: &Receiver, changed: impl Fn() -> F) -> io::Result<()>
where
    F: Future<Output = bool>,
{
    let mut buffer = [0; 4096];
    loop {
        events.readable().await?;
        tokio::time::sleep(SETTLE).await;
        // The kind of change does not matter, so all events are read and ignored.
        while events.try_read(&mut buffer).is_ok_and(|read| read > 0) {}
        if !changed().await {
            return Ok(());
        }
    }
}
