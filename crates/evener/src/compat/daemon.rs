//! Daemons: go to the background, write a pid file, change root and user.
//!
//! There is no fork, which is not safe once there are threads. The program is started again with the same
//! words, and the first process waits until the second one is ready. So the exit status and stderr report a
//! daemon that cannot start.

use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Variable in the environment of the background process, set to the pid of the process that started it.
/// Other values are ignored, so that children of the daemon are not taken for it.
const VARIABLE: &str = "EVENER_DAEMON";

const READY: &[u8] = b"ready\n";

/// Role of this process.
#[derive(Debug)]
pub(crate) enum Process {
    /// The process that was called. It only exits with this code.
    Called(ExitCode),
    /// The process that does the work. It has the terminal's stdout and stderr until it is ready.
    Background(Daemon),
}

/// A background process for which the first process still waits.
#[derive(Debug)]
pub(crate) struct Daemon {
    null: OwnedFd,
}

/// Working directory of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    /// `/`, so that no file system stays busy. Relative paths must be made absolute before the change.
    Root,
    /// The directory of the call.
    Unchanged,
}

/// Treatment of stdout once a daemon is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// Stays open for output.
    Unchanged,
    Closed,
}

impl Daemon {
    /// Goes to the background, in a new session. Must be called after the command line was parsed, and before
    /// anything is opened or a thread is started.
    pub(crate) fn begin(directory: Directory) -> anyhow::Result<Process> {
        if is_background_process() {
            Self::enter(directory).map(Process::Background)
        } else {
            call().map(Process::Called)
        }
    }

    fn enter(directory: Directory) -> anyhow::Result<Self> {
        // setsid fails only for the leader of a process group, which a new child is not.
        let _ = rustix::process::setsid();
        if directory == Directory::Root {
            std::env::set_current_dir("/").context("cannot go to /")?;
        }
        // A changed root may have no /dev/null.
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { null: null.context("cannot open /dev/null")? })
    }

    /// Lets the first process exit successfully, and releases the terminal.
    pub(crate) fn ready(self, stdout: Stdout) -> anyhow::Result<()> {
        // The write fails if the first process was killed.
        let _ = rustix::io::write(rustix::stdio::stdin(), READY);
        rustix::stdio::dup2_stdin(&self.null)?;
        rustix::stdio::dup2_stderr(&self.null)?;
        if stdout == Stdout::Closed {
            rustix::stdio::dup2_stdout(&self.null)?;
        }
        Ok(())
    }
}

fn is_background_process() -> bool {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    parent.is_some_and(|parent| std::env::var(VARIABLE).is_ok_and(|value| value == parent))
}

/// Starts the daemon and waits until it is ready or has ended. The daemon reports over its stdin that it is
/// ready, because stdout and stderr are in use.
fn call() -> anyhow::Result<ExitCode> {
    let (from_daemon, to_caller) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = restart_command()?;
    command.env(VARIABLE, std::process::id().to_string()).stdin(Stdio::from(to_caller));
    // This process ends before its child, so it does not wait for the child.
    let _child = command.spawn().context("cannot start in the background")?;
    // This process only waits, so signals may end it.
    crate::signals::unblock();
    // The command holds the daemon's end of the pipe. Without the command the pipe is closed when the daemon
    // ends.
    drop(command);
    let mut received = Vec::new();
    File::from(from_daemon).take(READY.len() as u64).read_to_end(&mut received)?;
    Ok(if received == READY { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns a command that starts this program again.
fn restart_command() -> anyhow::Result<Command> {
    let mut words = std::env::args_os();
    let name = words.next().context("the program was called without a name")?;
    // A name without a slash was found in PATH, where another program may have this name by now.
    let named = PathBuf::from(&name);
    let program = if named.parent().is_some_and(|parent| parent != Path::new("")) {
        named
    } else {
        std::env::current_exe().context("cannot find the program itself")?
    };
    let mut command = Command::new(program);
    command.arg0(name).args(words);
    Ok(command)
}

/// Makes a directory the root of all later paths.
pub(crate) fn change_root(path: &Path) -> anyhow::Result<()> {
    nix::unistd::chroot(path).with_context(|| format!("cannot make {} the root", path.display()))?;
    // Otherwise the current directory would be outside the root.
    std::env::set_current_dir("/").context("cannot go to the new root")
}

/// A user to change to.
#[derive(Debug)]
pub(crate) struct User {
    name: CString,
    uid: nix::unistd::Uid,
    gid: nix::unistd::Gid,
}

impl User {
    /// Looks up a user by name. Must be called before a change of the root, in which the list of users may be
    /// missing.
    pub(crate) fn find(name: &str) -> anyhow::Result<Self> {
        let found =
            nix::unistd::User::from_name(name).with_context(|| format!("cannot look up user {name}"))?;
        let Some(found) = found else { bail!("there is no user {name}") };
        Ok(Self { name: CString::new(found.name)?, uid: found.uid, gid: found.gid })
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// Changes all threads of this process to the user. This cannot be undone.
    pub(crate) fn assume(&self) -> anyhow::Result<()> {
        // Each step needs rights that the next step gives up.
        nix::unistd::initgroups(&self.name, self.gid)
            .and_then(|()| nix::unistd::setgid(self.gid))
            .and_then(|()| nix::unistd::setuid(self.uid))
            .with_context(|| format!("cannot become user {}", self.name.to_string_lossy()))
    }
}

/// A file with the pid of this process, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
    state: PidState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PidState {
    /// The file existed. It may have the pid of a running instance.
    Found,
    /// The file was created.
    Made,
    Written,
}

impl PidFile {
    /// Opens the file while the rights allow it, without changing it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let made = File::create_new(path).map(|file| (file, PidState::Made));
        let found = || fs::OpenOptions::new().write(true).open(path).map(|file| (file, PidState::Found));
        let (file, state) = made
            .or_else(|error| if error.kind() == ErrorKind::AlreadyExists { found() } else { Err(error) })
            .with_context(|| format!("cannot write the pid file {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, state })
    }

    /// Writes the pid as a number without a newline. Called once nothing else can prevent serving.
    pub(crate) fn write(mut self) -> anyhow::Result<Self> {
        let written = self.file.set_len(0).and_then(|()| self.file.write_all(pid_text().as_bytes()));
        written.with_context(|| format!("cannot write the pid file {}", self.path.display()))?;
        self.state = PidState::Written;
        Ok(self)
    }

    /// Returns true if the file still has the contents that this process wrote. Another instance may have
    /// replaced it.
    fn is_unchanged(&self) -> bool {
        let mut contents = String::new();
        // One byte more than any pid, so that a longer file does not match.
        let read = File::open(&self.path).and_then(|file| file.take(21).read_to_string(&mut contents));
        let expected = if self.state == PidState::Made { String::new() } else { pid_text() };
        self.state != PidState::Found && read.is_ok() && contents == expected
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // The new user may not be allowed to remove the file. An empty file names no process.
        if self.is_unchanged() && fs::remove_file(&self.path).is_err() {
            let _ = self.file.set_len(0);
        }
    }
}

fn pid_text() -> String {
    std::process::id().to_string()
}

#[cfg(test)]
mod tests {
    use super::PidFile;
    use std::fs;

    #[test]
    fn a_pid_file_is_removed_at_the_end_unless_another_process_replaced_it() {
        let path = std::env::temp_dir().join(format!("evener-pid-file-{}", std::process::id()));
        let file = PidFile::open(&path).and_then(PidFile::write).expect("the file can be written");
        assert_eq!(fs::read_to_string(&path).ok(), Some(std::process::id().to_string()));
        drop(file);
        assert!(!path.exists());
        let file = PidFile::open(&path).and_then(PidFile::write).expect("the file can be written");
        fs::write(&path, "1").expect("the file can be written");
        drop(file);
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("1"));
        // An instance that could not start leaves the file of the running one.
        drop(PidFile::open(&path).expect("the file can be opened"));
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("1"));
        fs::remove_file(&path).expect("the file exists");
        drop(PidFile::open(&path).expect("the file can be opened"));
        assert!(!path.exists());
    }
}
