//! io_uring(7): one ring of a worker with provided buffers. It queues operations and returns their completions;
//! `ring_relay.rs` handles the completions of connections. Where the kernel or a container forbids io_uring
//! there is no ring, and the worker uses epoll for everything.

mod probe;

use super::keys::{ConnectionKey, GENERATION_MASK, Handle, SendKey};
use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use socket2::SockAddr;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Maximum number of bytes of one receive.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// Number of buffers of a worker, a power of two. A buffer takes memory when it is first used.
const BUFFERS: u16 = 256;
const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 8192;
/// The buffer group of this ring.
const GROUP: u16 = 0;

/// The purpose of an operation. The completion of the operation carries the same mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The epoll instance has events.
    Epoll,
    /// A socket is connected, or failed to connect.
    Connect(ConnectId),
    /// Bytes from the client (side 0) or the server (side 1).
    Receive { connect: ConnectId, side: u8 },
    /// A send.
    Send(SendKey),
    /// The completion is ignored.
    Nothing,
}

/// A connection of a client to one server: the slot of the client's connection, and a generation that differs
/// for each connection attempt, so that a late completion is not attributed to a later connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectId {
    slot: u32,
    generation: u32,
}

impl ConnectId {
    /// Creates the identity for the connection with this key.
    pub(crate) fn new(key: ConnectionKey, generation: u32) -> Self {
        Self { slot: key.slot(), generation }
    }

    /// The slot of the connection.
    pub(crate) fn slot(self) -> u32 {
        self.slot
    }
}

/// Assigns a generation to each connection attempt of a worker.
#[derive(Debug, Default)]
pub(crate) struct Generations(u32);

impl Generations {
    pub(crate) fn next(&mut self) -> u32 {
        let generation = self.0;
        self.0 = generation.wrapping_add(1) & GENERATION_MASK;
        generation
    }
}

impl Mark {
    fn encode(self) -> u64 {
        let pack = |kind: u64, side: u8, generation: u32, low: u32| {
            kind << 60
                | u64::from(side) << 59
                | u64::from(generation & GENERATION_MASK) << 32
                | u64::from(low)
        };
        match self {
            Self::Nothing => pack(0, 0, 0, 0),
            Self::Epoll => pack(1, 0, 0, 0),
            Self::Connect(ConnectId { slot, generation }) => pack(2, 0, generation, slot),
            Self::Receive { connect: ConnectId { slot, generation }, side } => {
                pack(3, side, generation, slot)
            }
            Self::Send(key) => 4 << 60 | key.into_raw(),
        }
    }

    fn decode(mark: u64) -> Self {
        let connect = ConnectId { slot: mark as u32, generation: (mark >> 32) as u32 & GENERATION_MASK };
        match mark >> 60 {
            1 => Self::Epoll,
            2 => Self::Connect(connect),
            3 => Self::Receive { connect, side: (mark >> 59 & 1) as u8 },
            4 => Self::Send(SendKey::from_raw(mark & !(15 << 60))),
            _ => Self::Nothing,
        }
    }
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    mark: Mark,
    /// Bytes or events, or the error.
    result: Result<u32, Errno>,
    /// The buffer that a receive filled.
    buffer: Option<u16>,
    /// The operation continues (multishot).
    more: bool,
}

impl Completion {
    /// The purpose of the operation.
    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }

    /// Bytes or events, or the error.
    pub(crate) fn result(&self) -> Result<u32, Errno> {
        self.result
    }

    /// Returns whether the operation continues after this completion.
    pub(crate) fn continues(&self) -> bool {
        self.more
    }
}

/// Result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes in a buffer, which has to be given back.
    Bytes(Piece),
    /// The peer sends no more bytes.
    End,
    /// No buffer was free.
    NoBuffers,
    /// The receive was cancelled.
    Cancelled,
    /// The receive failed.
    Failed(Errno),
}

/// The ring of a worker.
pub(crate) struct Ring {
    io: IoUring,
    buffers: Buffers,
    addresses: Addresses,
    completed: Vec<Completion>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// Creates a ring, if the system allows it, on the thread that will use it.
    pub(crate) fn new() -> io::Result<Self> {
        let io: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let buffers = Buffers::new()?;
        // SAFETY: the table is page-aligned memory of BUFFERS entries, which is unmapped only after the ring is
        // closed, because fields are dropped in the order of their declaration.
        unsafe { io.submitter().register_buf_ring_with_flags(buffers.table as u64, BUFFERS, GROUP, 0)? };
        Ok(Self { io, buffers, addresses: Addresses::new(), completed: Vec::new() })
    }

    /// Submits the queued operations and waits for a completion, for `wait` at most. [`Ring::next`] then
    /// returns the completions.
    pub(crate) fn wait(&mut self, wait: Option<Duration>) {
        self.buffers.publish();
        let timespec = wait.map(Timespec::from);
        let mut arguments = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            arguments = arguments.timespec(timespec);
        }
        // Completions are also taken after a timeout, a signal, or the overflow of the completion queue.
        let _ = self.io.submitter().submit_with_args(1, &arguments);
        self.completed.clear();
        for entry in self.io.completion() {
            let result = u32::try_from(entry.result()).map_err(|_| Errno::from_raw_os_error(-entry.result()));
            let flags = entry.flags();
            self.completed.push(Completion {
                mark: Mark::decode(entry.user_data()),
                result,
                buffer: cqueue::buffer_select(flags),
                more: cqueue::more(flags),
            });
        }
        self.completed.reverse();
    }

    /// The next completion of the last wait.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        self.completed.pop()
    }

    /// Requests one completion as soon as the descriptor has one of these `events` (poll(2)).
    pub(crate) fn poll(&mut self, descriptor: RawFd, events: i16, mark: Mark) {
        let entry = opcode::PollAdd::new(Fd(descriptor), events as u32).build();
        self.push(&entry.user_data(mark.encode()));
    }

    /// Connects a socket, and waits until it is connected.
    pub(crate) fn connect(&mut self, socket: &OwnedFd, address: SockAddr, mark: Mark) {
        let address = self.addresses.keep(address);
        let entry =
            opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len()).build();
        self.push(&entry.user_data(mark.encode()));
    }

    /// Receives repeatedly, until the end, an error or a lack of buffers.
    pub(crate) fn receive(&mut self, socket: &OwnedFd, mark: Mark) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build();
        self.push(&entry.user_data(mark.encode()));
    }

    /// Sends a part of a buffer, completely unless the send fails. The caller gives the buffer back only after
    /// the completion.
    pub(crate) fn send(&mut self, socket: &OwnedFd, piece: Piece, mark: Mark) {
        let bytes = self.buffers.bytes(piece);
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(&entry.user_data(mark.encode()));
    }

    /// Closes a descriptor after the operations that are queued, all of which act on the file that it names now. One
    /// system call closes the descriptors of many connections.
    pub(crate) fn close(&mut self, socket: OwnedFd) {
        let entry = opcode::Close::new(Fd(socket.into_raw_fd())).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(&entry.user_data(Mark::Nothing.encode()));
    }

    /// Cancels an operation, which completes with ECANCELED unless it has completed already.
    pub(crate) fn cancel(&mut self, mark: Mark) {
        let entry = opcode::AsyncCancel::new(mark.encode()).build();
        self.push(&entry.user_data(Mark::Nothing.encode()));
    }

    /// Returns the bytes of a part of a buffer.
    pub(crate) fn bytes(&self, piece: Piece) -> &[u8] {
        self.buffers.bytes(piece)
    }

    /// Gives the buffer of a piece back to the kernel.
    pub(crate) fn give_back(&mut self, piece: Piece) {
        self.buffers.give_back(piece.buffer);
    }

    /// Takes the result of a receive. A buffer without bytes goes back to the kernel.
    pub(crate) fn take_received(&mut self, completion: &Completion) -> Received {
        if completion.buffer.is_some() {
            self.buffers.left = self.buffers.left.saturating_sub(1);
        }
        match (completion.result, completion.buffer) {
            (Ok(length @ 1..), Some(buffer)) => Received::Bytes(Piece { buffer, from: 0, to: length }),
            (Ok(_), buffer) => {
                buffer.into_iter().for_each(|buffer| self.buffers.give_back(buffer));
                Received::End
            }
            (Err(Errno::NOBUFS), _) => Received::NoBuffers,
            (Err(Errno::CANCELED), _) => Received::Cancelled,
            (Err(error), _) => Received::Failed(error),
        }
    }

    /// Number of buffers that the kernel may fill.
    pub(crate) fn buffers_left(&self) -> u16 {
        self.buffers.left
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: descriptors are open until the kernel takes the operation, and it holds the file from then on;
            // buffers belong to the ring and are given back only after the completion; an address is not replaced
            // before the kernel has taken the operation.
            if unsafe { self.io.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: submit it without waiting.
            let _ = self.io.submit();
        }
    }
}

impl Drop for Ring {
    /// Closes the descriptors whose closes are queued.
    fn drop(&mut self) {
        let _ = self.io.submit();
    }
}

/// A part of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    buffer: u16,
    from: u32,
    to: u32,
}

impl Piece {
    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        (self.to - self.from) as usize
    }

    /// The rest after `sent` bytes; `None` when all were sent.
    pub(crate) fn after(self, sent: u32) -> Option<Self> {
        let from = self.from + sent;
        (from < self.to).then_some(Self { from, ..self })
    }
}

/// The addresses of queued operations to connect. The kernel copies an address when it takes the operation.
#[derive(Debug)]
struct Addresses {
    /// More than the queue holds, so that an address is replaced only after its operation left the queue.
    recent: Vec<SockAddr>,
    next: usize,
}

impl Addresses {
    const MAX: usize = SUBMISSIONS as usize + 1;

    fn new() -> Self {
        Self { recent: Vec::with_capacity(Self::MAX), next: 0 }
    }

    /// Stores an address in memory that does not move.
    fn keep(&mut self, address: SockAddr) -> &SockAddr {
        let at = self.next;
        self.next = (at + 1) % Self::MAX;
        if at == self.recent.len() {
            self.recent.push(address);
        } else {
            self.recent[at] = address;
        }
        &self.recent[at]
    }
}

/// The provided buffers with the table that the kernel shares (io_uring_register(2),
/// IORING_REGISTER_PBUF_RING).
struct Buffers {
    table: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
    published: u16,
    left: u16,
}

const TABLE_BYTES: usize = BUFFERS as usize * size_of::<BufRingEntry>();
const MEMORY_BYTES: usize = BUFFERS as usize * BUFFER_BYTES;

impl Buffers {
    fn new() -> io::Result<Self> {
        let map = |bytes| {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new private mapping does not affect existing memory.
            unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) }
        };
        let mut buffers = Self {
            table: map(TABLE_BYTES)?.cast(),
            memory: map(MEMORY_BYTES)?.cast(),
            tail: 0,
            published: 0,
            left: 0,
        };
        (0..BUFFERS).for_each(|buffer| buffers.give_back(buffer));
        buffers.publish();
        Ok(buffers)
    }

    fn give_back(&mut self, buffer: u16) {
        // SAFETY: the masked index is inside the table, the buffer inside the memory; the kernel reads the
        // entry only after the tail was published.
        unsafe {
            let entry = &mut *self.table.add(usize::from(self.tail & (BUFFERS - 1)));
            entry.set_addr(self.memory.add(usize::from(buffer) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        self.left += 1;
    }

    fn publish(&mut self) {
        if self.published != self.tail {
            // SAFETY: the tail is an aligned u16 inside the first entry, shared with the kernel, written here
            // alone.
            unsafe {
                let tail = BufRingEntry::tail(self.table).cast::<AtomicU16>();
                (*tail).store(self.tail, Ordering::Release);
            }
            self.published = self.tail;
        }
    }

    fn bytes(&self, piece: Piece) -> &[u8] {
        let (from, to) = (piece.from as usize, (piece.to as usize).min(BUFFER_BYTES));
        // SAFETY: the range is inside this buffer; the kernel does not write it before it was given back.
        unsafe {
            let start = self.memory.add(usize::from(piece.buffer) * BUFFER_BYTES + from.min(to));
            std::slice::from_raw_parts(start, to - from.min(to))
        }
    }
}

// SAFETY: the mappings belong to this value alone, on any thread.
unsafe impl Send for Buffers {}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: both were mapped with these lengths, and the ring that used them is closed.
        unsafe {
            let _ = munmap(self.table.cast(), TABLE_BYTES);
            let _ = munmap(self.memory.cast(), MEMORY_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_encoding() {
        let (index, generation) = (0xfedc_ba98, 0x0765_4321);
        for mark in [
            Mark::Nothing,
            Mark::Epoll,
            Mark::Connect(ConnectId { slot: index, generation }),
            Mark::Receive { connect: ConnectId { slot: index, generation }, side: 1 },
            Mark::Receive { connect: ConnectId { slot: 0, generation: GENERATION_MASK }, side: 0 },
            Mark::Send(SendKey::from_raw(u64::from(generation & GENERATION_MASK) << 32 | u64::from(index))),
        ] {
            assert_eq!(Mark::decode(mark.encode()), mark);
        }
    }
}
