//! System calls that rustix does not wrap, other than those for batches and rings.

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// First descriptor that a service manager passes (sd_listen_fds(3)).
const PASSED_FIRST: RawFd = 3;

/// Takes descriptors that a service manager passed, with their numbers. Only the first call returns any. They are
/// closed in programs that this process starts. Numbers that are not open are left out.
pub(crate) fn take_passed(count: usize) -> Vec<(RawFd, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let numbers = (PASSED_FIRST..).take(count);
    // SAFETY: fcntl with F_SETFD changes a flag of the number if it is an open descriptor, and no memory.
    let is_open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: the number is an open descriptor. The environment says that it was passed to this process, so no other
    // part of the process owns it; `TAKEN` makes sure that it gets one owner only.
    let owned = |number: RawFd| (number, unsafe { OwnedFd::from_raw_fd(number) });
    numbers.filter(is_open).map(owned).collect()
}

/// Sets a socket option to 1.
pub(crate) fn set_flag(socket: BorrowedFd<'_>, option: (i32, i32)) -> io::Result<()> {
    set_int(socket, option, 1)
}

/// Sets a socket option, given by its level and name.
pub(crate) fn set_int(socket: BorrowedFd<'_>, (level, name): (i32, i32), value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call, and the option points to an i32 that outlives it.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns whether the peer has acknowledged all sent bytes (tcp(7), SIOCOUTQ).
pub(crate) fn is_all_delivered(socket: BorrowedFd<'_>) -> bool {
    count(socket, libc::TIOCOUTQ) == Some(0)
}

/// Returns the number of bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ).
pub(crate) fn undelivered(socket: BorrowedFd<'_>) -> usize {
    count(socket, libc::TIOCOUTQ).map_or(0, |bytes| bytes.max(0) as usize)
}

/// Returns whether a socket has nothing to read now (tcp(7), SIOCINQ).
pub(crate) fn is_all_read(socket: BorrowedFd<'_>) -> bool {
    count(socket, libc::FIONREAD) == Some(0)
}

/// Returns the headers of the first packet of a connection, if its listener stores them (tcp(7),
/// TCP_SAVED_SYN). The headers can be read only once.
pub(crate) fn saved_syn<'a>(socket: BorrowedFd<'_>, room: &'a mut [u8; 128]) -> io::Result<&'a [u8]> {
    const TCP_SAVED_SYN: i32 = 28;
    let mut size = room.len() as libc::socklen_t;
    let (level, at) = (libc::IPPROTO_TCP, room.as_mut_ptr().cast());
    // SAFETY: the descriptor is borrowed for the call, which writes at most `size` bytes to `room`, and their
    // number.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), level, TCP_SAVED_SYN, at, &raw mut size) };
    if done == 0 { Ok(&room[..(size as usize).min(room.len())]) } else { Err(io::Error::last_os_error()) }
}

fn count(socket: BorrowedFd<'_>, request: libc::Ioctl) -> Option<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed for the call, which writes one int to a variable that outlives it.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) };
    (done == 0).then_some(bytes)
}
