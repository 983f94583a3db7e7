//! The state file: the changes of operators as JSON, written as a whole and in place of the old file in one step.

use super::Changes;
use crate::config::server_of_json;
use crate::events::Events;
use evener_core::event::Event;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Version of the format.
const VERSION: u32 = 1;
const BYTES_MAX: u64 = 64 << 20;

#[derive(Serialize)]
struct Contents<'a> {
    version: u32,
    pools: &'a Changes,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Loaded {
    pools: Changes,
}

/// Reads a state file. A file that does not exist has no changes.
pub(super) fn load(path: &Path) -> Result<Changes, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Changes::new()),
        Err(error) => return Err(error.to_string()),
        Ok(_) if bytes.len() as u64 > BYTES_MAX => return Err(format!("it has more than {BYTES_MAX} bytes")),
        Ok(_) => {}
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Changes, String> {
    let damaged = |error: serde_json::Error| format!("it is damaged: {error}");
    let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if version != VERSION {
        return Err(format!("it has the version {version} of another evener, not {VERSION}"));
    }
    let Loaded { mut pools } = serde_json::from_slice(bytes).map_err(damaged)?;
    for (name, added) in pools.values_mut().flat_map(|changes| &mut changes.added) {
        let server = server_of_json(&added.address, &added.settings);
        let server = server.map_err(|problems| format!("it is damaged: {}", problems.join("; ")))?;
        if *server.name != **name {
            return Err(format!("it is damaged: server `{}` has the name `{name}`", server.name));
        }
        added.server = Some(server);
    }
    Ok(pools)
}

/// Work of the thread.
enum Work {
    /// Replaces the file by these bytes.
    Write(Vec<u8>),
    /// Drops the sender when everything before is written.
    Tell(Sender<()>),
}

/// Writes the file on a thread of its own, so that a slow disk delays nothing. Everything is written when it is
/// dropped.
pub(super) struct Writer {
    path: PathBuf,
    written: Vec<u8>,
    sender: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

fn bytes_of(pools: &Changes) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(&Contents { version: VERSION, pools }).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

impl Writer {
    /// Starts the thread. `written` are the changes that the file has; without them the next write is made in any case.
    pub(super) fn start(path: PathBuf, written: Option<&Changes>, events: Events) -> Self {
        let (sender, queue) = channel::<Work>();
        let at = path.clone();
        let thread = std::thread::Builder::new().name("state file".into()).spawn(move || {
            while let Ok(work) = queue.recv() {
                let (mut newest, mut requests) = (None, Vec::new());
                for work in std::iter::once(work).chain(queue.try_iter()) {
                    match work {
                        // Only the newest state counts.
                        Work::Write(bytes) => newest = Some(bytes),
                        Work::Tell(sender) => requests.push(sender),
                    }
                }
                if let Some(Err(error)) = newest.map(|bytes| write(&at, &bytes)) {
                    let text = format!(
                        "{}: the changes of operators cannot be saved, and will be lost at a restart: {error}",
                        at.display()
                    );
                    events.emit(&Event::Notice { text });
                }
            }
        });
        Self {
            path,
            written: written.map(bytes_of).unwrap_or_default(),
            sender: Some(sender),
            thread: thread.ok(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the changes, unless they are the same as before.
    pub(super) fn write(&mut self, pools: &Changes) {
        let bytes = bytes_of(pools);
        if bytes != self.written {
            self.written.clone_from(&bytes);
            self.sender.iter().for_each(|sender| drop(sender.send(Work::Write(bytes.clone()))));
        }
    }

    /// Returns a receiver that is closed when all changes so far are in the file, or could not be written.
    pub(super) fn written(&self) -> Receiver<()> {
        let (open, written) = channel();
        self.sender.iter().for_each(|sender| drop(sender.send(Work::Tell(open.clone()))));
        written
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.sender = None;
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// Replaces a file in one step: after a crash it has the old or the new contents.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = directory.join(name);
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written_and_a_damaged_one_is_refused() {
        let text = r#"{"version": 1, "pools": {"web": {
            "added": {"a": {"address": "10.0.0.1:80", "settings": {"name": "a", "weight": 3}}},
            "removed": {"b": "10.0.0.2:80"}, "weights": {"c": {"weight": 2, "file": 1}},
            "states": {"c": {"state": "drain", "file": "ready", "until": 1}}}}}"#;
        let changes = parse(text.as_bytes()).unwrap();
        assert_eq!(parse(&bytes_of(&changes)).unwrap(), changes);
        for cut in 0..text.len() {
            assert!(parse(&text.as_bytes()[..cut]).is_err(), "the first {cut} bytes");
        }
        let check = |text: &str, expected: &str| {
            let why = parse(text.as_bytes()).unwrap_err();
            assert!(why.contains(expected), "{why}");
        };
        check(&text.replace("\"version\": 1", "\"version\": 2"), "version 2");
        check(&text.replace("10.0.0.1:80", "example.org:80"), "host name");
        check(&text.replace("\"name\": \"a\"", "\"name\": \"x\""), "has the name");
        check("[]", "damaged");
    }
}
