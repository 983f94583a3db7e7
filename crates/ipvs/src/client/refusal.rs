//! The meaning of the kernel's error numbers, which depends on the command.

use crate::error::{Command, ErrorKind};
use crate::kernel::Change;
use std::io;

/// Returns the meaning for a change.
pub(super) fn of_change(change: &Change, errno: i32) -> ErrorKind {
    match change {
        Change::AddService(service) | Change::SetService(service) if errno == libc::ENOENT => {
            let engine = service.persistence.as_ref().and_then(|persistence| persistence.engine.clone());
            ErrorKind::NoSuchScheduler { scheduler: service.scheduler.clone(), engine }
        }
        _ => of(change.command(), errno),
    }
}

/// Returns the meaning for a command.
pub(super) fn of(command: Command, errno: i32) -> ErrorKind {
    let is_daemon = matches!(command, Command::StartDaemon | Command::StopDaemon);
    match errno {
        libc::EEXIST => ErrorKind::AlreadyExists,
        libc::ESRCH if is_daemon => ErrorKind::NoSuchDaemon,
        libc::ESRCH => ErrorKind::NoSuchService,
        libc::ENOENT => ErrorKind::NoSuchDestination,
        libc::ERANGE => ErrorKind::ThresholdsOutOfOrder,
        libc::EINVAL => ErrorKind::Invalid("see the rules for families, masks, ports and tunnels"),
        libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT => ErrorKind::Unsupported,
        libc::EPERM | libc::EACCES => ErrorKind::NotPermitted,
        libc::ENODEV if is_daemon => ErrorKind::NoSuchInterface,
        errno => io::Error::from_raw_os_error(errno).into(),
    }
}
