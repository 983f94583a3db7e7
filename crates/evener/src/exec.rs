//! Programs of the configuration: hooks of `notify`, checks by `check.exec`, and `exec` of functions. They run without a shell, with a
//! small environment, without descriptors of this process and in a process group of their own, which is killed
//! when the time is over.

pub(crate) mod notify;

use evener_core::spec::ProgramSpec;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use tokio::process::{Child, Command};

/// Search path of programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the environment of a program.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// Kills the process and its children when it is dropped.
pub(crate) struct Group(Option<Pid>);

impl Group {
    /// Lets the children live that the program left in the background.
    pub(crate) fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Starts a program. It is killed with its children when the group is dropped. `standard` makes its standard input, output
/// and error output.
///
/// # Errors
/// The program cannot be started.
pub(crate) fn start(
    program: &ProgramSpec,
    environment: &Environment,
    standard: fn() -> Stdio,
) -> io::Result<(Child, Group)> {
    let mut command = std::process::Command::new(&program.path);
    command
        .args(&program.arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(standard())
        .stdout(standard())
        .stderr(standard())
        .process_group(0);
    evener_proxy::descriptors::inherit_none(&mut command);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    let child = command.spawn()?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    Ok((child, group))
}

/// Runs a program to its end. The program is killed if the future is dropped.
///
/// # Errors
/// The program cannot be started.
pub(crate) async fn run(program: &ProgramSpec, environment: &Environment) -> io::Result<ExitStatus> {
    let (mut child, group) = start(program, environment, Stdio::null)?;
    let status = child.wait().await?;
    group.release();
    Ok(status)
}

/// Returns the reason why a program failed; `None` if it ended with the status 0.
pub(crate) fn failure(status: ExitStatus) -> Option<String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("status {code}")),
        (None, Some(signal)) => Some(format!("killed by signal {signal}")),
        (None, None) => Some("ended without a status".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn shell(script: &str) -> ProgramSpec {
        ProgramSpec { path: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] }
    }

    async fn outcome(script: &str, environment: Environment) -> Option<String> {
        failure(run(&shell(script), &environment).await.unwrap())
    }

    #[tokio::test]
    async fn the_status_decides_and_the_environment_is_given() {
        assert_eq!(outcome("exit 0", Vec::new()).await, None);
        assert_eq!(outcome("exit 3", Vec::new()).await, Some("status 3".into()));
        assert_eq!(outcome("kill -9 $$", Vec::new()).await, Some("killed by signal 9".into()));
        assert_eq!(outcome("test \"$A\" = \"1 '2\" -a -z \"$HOME\"", vec![("A", "1 '2".into())]).await, None);
        let missing = ProgramSpec { path: "/nonexistent".into(), arguments: Vec::new() };
        assert!(run(&missing, &Vec::new()).await.is_err());
    }

    #[tokio::test]
    async fn a_program_has_no_descriptors_of_this_process() {
        let _socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _file = std::fs::File::open("/proc/self/status").unwrap();
        // This process may have inherited a descriptor that stays open on exec.
        let inherited = std::fs::File::open("/proc/self/maps").unwrap();
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
        assert_eq!(outcome("! ls -l /proc/self/fd | grep -E 'socket|status|maps'", Vec::new()).await, None);
    }

    #[tokio::test]
    async fn the_children_of_a_program_that_takes_too_long_are_killed() {
        let begun = Instant::now();
        let file = std::env::temp_dir().join(format!("evener-exec-{}", std::process::id()));
        let script = format!("sleep 600 & echo $! > {} ; wait", file.display());
        let killed = async {
            let program = shell(&script);
            let environment = Vec::new();
            let ran = run(&program, &environment);
            tokio::pin!(ran);
            loop {
                let pid = std::fs::read_to_string(&file).unwrap_or_default();
                if pid.ends_with('\n') {
                    return pid.trim().to_owned();
                }
                let _ = tokio::time::timeout(Duration::from_millis(10), &mut ran).await;
            }
        };
        let pid = killed.await;
        let _ = std::fs::remove_file(&file);
        let is_alive = || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(") Z ")
        };
        while is_alive() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the child {pid} is alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
