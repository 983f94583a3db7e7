//! What a program does that leaves its terminal: goes to the background, writes its pid, changes its root and its user.
//!
//! It does not fork, which no safe code can do once there are threads: the program is started again, with the same words,
//! and the one that was called waits until the other says that it is ready. So a daemon that cannot start is still told
//! of by the exit status, and by what it said on stderr.

use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Set for the process that becomes the daemon, to the pid of the one that started it: with no other value does it mean
/// anything, so that what the daemon starts in its turn is not taken for it.
const VARIABLE: &str = "EVENER_DAEMON";

const READY: &[u8] = b"ready\n";

/// Which of the two processes this is.
#[derive(Debug)]
pub(crate) enum Process {
    /// The one that was called. It has nothing left to do but to end so.
    Called(ExitCode),
    /// The one that does the work. Until it is ready it still has the terminal's stdout and stderr.
    Background(Daemon),
}

/// A process in the background, which somebody still waits for.
#[derive(Debug)]
pub(crate) struct Daemon {
    null: OwnedFd,
}

/// Where a daemon works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Directory {
    /// `/`, so that it keeps no file system busy; make paths absolute before.
    Root,
    /// Where it was called.
    Kept,
}

/// What becomes of stdout once a daemon is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// It is where the work goes.
    Kept,
    Closed,
}

impl Daemon {
    /// Goes to the background: after the command line was understood, before anything is opened or a thread started.
    /// The daemon has a session of its own.
    pub(crate) fn begin(directory: Directory) -> anyhow::Result<Process> {
        if is_started_for_it() {
            Self::enter(directory).map(Process::Background)
        } else {
            call().map(Process::Called)
        }
    }

    fn enter(directory: Directory) -> anyhow::Result<Self> {
        // It fails for the leader of a group of processes, which one that was just started is not.
        let _ = rustix::process::setsid();
        if directory == Directory::Root {
            std::env::set_current_dir("/").context("cannot go to /")?;
        }
        // Behind a changed root there may be none.
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { null: null.context("cannot open /dev/null")? })
    }

    /// Lets the process that was called end well, and lets go of the terminal.
    pub(crate) fn ready(self, stdout: Stdout) -> anyhow::Result<()> {
        // Nobody reads it when the other was killed meanwhile.
        let _ = rustix::io::write(rustix::stdio::stdin(), READY);
        rustix::stdio::dup2_stdin(&self.null)?;
        rustix::stdio::dup2_stderr(&self.null)?;
        if stdout == Stdout::Closed {
            rustix::stdio::dup2_stdout(&self.null)?;
        }
        Ok(())
    }
}

fn is_started_for_it() -> bool {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    parent.is_some_and(|parent| std::env::var(VARIABLE).is_ok_and(|value| value == parent))
}

/// Starts the daemon and waits until it is ready or gone. It says so by its stdin, for the other two are in use.
fn call() -> anyhow::Result<ExitCode> {
    let (from_daemon, to_us) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = again()?;
    command.env(VARIABLE, std::process::id().to_string()).stdin(Stdio::from(to_us));
    // Not waited for: this process ends before it.
    let _child = command.spawn().context("cannot start in the background")?;
    // This process only waits: a signal may end it.
    crate::signals::let_through();
    // The command holds our copy of the other end; without it the pipe ends with the daemon.
    drop(command);
    let mut said = Vec::new();
    File::from(from_daemon).take(READY.len() as u64).read_to_end(&mut said)?;
    Ok(if said == READY { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// This program, as it was called.
fn again() -> anyhow::Result<Command> {
    let mut words = std::env::args_os();
    let own = words.next().context("the program was called without a name")?;
    // A name without a slash was found by PATH, which need not find the same again.
    let named = PathBuf::from(&own);
    let program = if named.parent().is_some_and(|parent| parent != Path::new("")) {
        named
    } else {
        std::env::current_exe().context("cannot find the program itself")?
    };
    let mut command = Command::new(program);
    command.arg0(own).args(words);
    Ok(command)
}

/// Makes a directory the root of all paths from here on.
pub(crate) fn change_root(path: &Path) -> anyhow::Result<()> {
    nix::unistd::chroot(path).with_context(|| format!("cannot make {} the root", path.display()))?;
    // Else the directory we are in would still lead out of it.
    std::env::set_current_dir("/").context("cannot go to the new root")
}

/// A user to go on as.
#[derive(Debug)]
pub(crate) struct User {
    name: CString,
    uid: nix::unistd::Uid,
    gid: nix::unistd::Gid,
}

impl User {
    /// Looks a user up by name; before a change of the root, behind which there may be no list of users.
    pub(crate) fn find(name: &str) -> anyhow::Result<Self> {
        let found =
            nix::unistd::User::from_name(name).with_context(|| format!("cannot look up user {name}"))?;
        let Some(found) = found else { bail!("there is no user {name}") };
        Ok(Self { name: CString::new(found.name)?, uid: found.uid, gid: found.gid })
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// Gives up the rights of this process, all of its threads, for those of the user. There is no way back.
    pub(crate) fn become_it(&self) -> anyhow::Result<()> {
        // In this order: each of them needs the rights that the last one gives up.
        nix::unistd::initgroups(&self.name, self.gid)
            .and_then(|()| nix::unistd::setgid(self.gid))
            .and_then(|()| nix::unistd::setuid(self.uid))
            .with_context(|| format!("cannot become user {}", self.name.to_string_lossy()))
    }
}

/// A file with our pid, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
    state: PidState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PidState {
    /// Open, and as it was: another one's, perhaps, that runs.
    Found,
    /// Open, and nobody's before.
    Made,
    Written,
}

impl PidFile {
    /// Opens it, as long as there is the right to, and leaves it as it is.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let made = File::create_new(path).map(|file| (file, PidState::Made));
        let found = || fs::OpenOptions::new().write(true).open(path).map(|file| (file, PidState::Found));
        let (file, state) = made
            .or_else(|error| if error.kind() == ErrorKind::AlreadyExists { found() } else { Err(error) })
            .with_context(|| format!("cannot write the pid file {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, state })
    }

    /// Writes our pid into it: the number, without a newline. By then nothing else can keep us from serving.
    pub(crate) fn write(mut self) -> anyhow::Result<Self> {
        let written = self.file.set_len(0).and_then(|()| self.file.write_all(own_pid().as_bytes()));
        written.with_context(|| format!("cannot write the pid file {}", self.path.display()))?;
        self.state = PidState::Written;
        Ok(self)
    }

    /// Whether the file is still ours: another instance may have put its own in this place.
    fn is_ours(&self) -> bool {
        let mut held = String::new();
        // One byte more than any pid: a longer file is not ours.
        let read = File::open(&self.path).and_then(|file| file.take(21).read_to_string(&mut held));
        let expected = if self.state == PidState::Made { String::new() } else { own_pid() };
        self.state != PidState::Found && read.is_ok() && held == expected
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // The user that we became may not be allowed to remove it: empty, it names nobody.
        if self.is_ours() && fs::remove_file(&self.path).is_err() {
            let _ = self.file.set_len(0);
        }
    }
}

fn own_pid() -> String {
    std::process::id().to_string()
}

#[cfg(test)]
mod tests {
    use super::PidFile;
    use std::fs;

    #[test]
    fn a_pid_file_goes_with_its_process_unless_another_has_taken_its_place() {
        let path = std::env::temp_dir().join(format!("evener-pid-file-{}", std::process::id()));
        let file = PidFile::open(&path).and_then(PidFile::write).expect("it can be written");
        assert_eq!(fs::read_to_string(&path).ok(), Some(std::process::id().to_string()));
        drop(file);
        assert!(!path.exists());
        let file = PidFile::open(&path).and_then(PidFile::write).expect("it can be written");
        fs::write(&path, "1").expect("it can be written");
        drop(file);
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("1"));
        // One that could not serve leaves the file of the one that does.
        drop(PidFile::open(&path).expect("it can be opened"));
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("1"));
        fs::remove_file(&path).expect("it is there");
        drop(PidFile::open(&path).expect("it can be opened"));
        assert!(!path.exists());
    }
}
