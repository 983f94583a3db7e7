//! Messages to the service manager, such as systemd (`Type=notify`): sd_notify(3), without its library. Nothing is sent
//! if no service manager waits.

use crate::output::printable;
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Maximum number of characters of a problem in the status.
const PROBLEM_CHARS_MAX: usize = 200;
/// Time for the end of the program after its clients.
const END: Duration = Duration::from_secs(10);

/// Reports that clients are served, or that a reload has ended.
pub(crate) fn ready() {
    send("READY=1\nSTATUS=Serving clients");
}

/// Reports that a reload has ended, with the problem for which the configuration was refused.
pub(crate) fn reload_ended(problem: Option<&str>) {
    match problem {
        Some(problem) => send(&refused(problem)),
        None => ready(),
    }
}

/// Returns the message about a refused configuration. A line break would begin another assignment.
fn refused(problem: &str) -> String {
    let problem: String = printable(problem).chars().take(PROBLEM_CHARS_MAX).collect();
    format!(
        "READY=1\nSTATUS=Serving clients with the configuration before the last reload, which was refused: {problem}"
    )
}

/// Reports that a reload begins, for `Type=notify-reload`. [`ready`] must follow.
pub(crate) fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
}

/// Reports that another process is the main process of the service from now on, and that it serves.
pub(crate) fn main_process(pid: u32) {
    send(&format!("MAINPID={pid}\nREADY=1"));
}

/// Reports that the program ends, and the time that clients have for it, so that the service manager waits.
pub(crate) fn stopping(drain_timeout: Duration) {
    send(&ending(drain_timeout));
}

fn ending(drain_timeout: Duration) -> String {
    let time = humantime::format_duration(drain_timeout);
    let until = drain_timeout.saturating_add(END).as_micros().min(u128::from(u64::MAX));
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={until}\nSTATUS=Draining: clients may finish for {time}")
}

/// Reports regularly that the control thread runs, if the service manager expects it (`WatchdogSec=`).
pub(crate) async fn keep_watchdog() {
    let variable = |name| std::env::var(name).ok();
    let Some(interval) = watchdog_interval(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID")) else {
        return;
    };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        send("WATCHDOG=1");
    }
}

/// Returns half of the time that the service manager allows (sd_watchdog_enabled(3)).
fn watchdog_interval(microseconds: Option<String>, process: Option<String>) -> Option<Duration> {
    let is_for_another = process.is_some_and(|process| process.parse() != Ok(std::process::id()));
    let microseconds: u64 = microseconds?.parse().ok().filter(|time| *time > 1 && !is_for_another)?;
    Some(Duration::from_micros(microseconds / 2))
}

/// Sends a message. A failure cannot be reported in another way.
fn send(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(address) = address(&path) else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    // A full queue must not stop the program.
    let _ = socket.set_nonblocking(true);
    let _ = socket.send_to_addr(message.as_bytes(), &address);
}

/// Returns the address of the socket; the prefix `@` means a name without a file.
fn address(path: &OsStr) -> std::io::Result<SocketAddr> {
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_this_process() {
        let interval = |time: &str, process: Option<String>| watchdog_interval(Some(time.into()), process);
        let local = std::process::id().to_string();
        assert_eq!(interval("3000000", Some(local)), Some(Duration::from_millis(1500)));
        assert_eq!(interval("3000000", None), Some(Duration::from_millis(1500)));
        assert_eq!(interval("3000000", Some("1".into())), None);
        assert_eq!(interval("0", None), None);
        assert_eq!(interval("soon", None), None);
        assert_eq!(watchdog_interval(None, None), None);
    }

    #[test]
    fn a_status_has_one_line_and_is_bounded() {
        let message = refused(&format!("a.lua:3: wrong\nMAINPID=1{}", "x".repeat(1000)));
        assert_eq!(message.lines().count(), 2, "{message}");
        assert!(message.contains("refused: a.lua:3: wrong\\nMAINPID=1x"), "{message}");
        assert!(message.len() < 400, "{}", message.len());
    }

    #[test]
    fn the_service_manager_waits_longer_than_clients_may_take() {
        let message = ending(Duration::from_secs(90));
        assert!(message.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=100000000\n"), "{message}");
        assert!(ending(Duration::MAX).contains(&format!("USEC={}\n", u64::MAX)));
    }

    #[test]
    fn names_without_a_file_begin_with_an_at_sign() {
        assert_eq!(address(OsStr::new("@a/b")).unwrap().as_abstract_name(), Some(&b"a/b"[..]));
        assert_eq!(address(OsStr::new("/run/x")).unwrap().as_pathname(), Some("/run/x".as_ref()));
    }
}
