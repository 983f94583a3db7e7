//! A direction that passes to another process: its flags, and a pipe with the bytes that the sink has not taken yet.

use super::{Direction, End, Scratch};
use crate::io::pipe::Pipe;
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// A direction between two processes.
#[derive(Debug, Default)]
pub struct PassedDirection {
    /// End of the source: 0 is an orderly end, another number an error of the system.
    pub end: Option<i32>,
    /// The end was passed to the sink.
    pub is_done: bool,
    /// The sink is closed, and bytes of the source are discarded.
    pub is_discarding: bool,
    /// Bytes that were read and not sent.
    pub pipe: Option<PassedPipe>,
}

/// A pipe with bytes.
#[derive(Debug)]
pub struct PassedPipe {
    /// Both ends, for reading and for writing.
    pub ends: [OwnedFd; 2],
    /// Number of bytes in the pipe.
    pub bytes: usize,
}

impl Direction {
    /// Moves the bytes that the sink has not taken into a pipe. Returns false if they stay in memory.
    pub(crate) fn prepare_to_pass(&mut self, scratch: &mut Scratch) -> bool {
        if self.spill.is_empty() {
            return true;
        }
        let Ok(mut pipe) = scratch.pipes.take() else { return false };
        let bytes = &self.spill[self.offset..];
        if !pipe.put(bytes) {
            return false;
        }
        (self.spill, self.offset, self.pipe) = (Vec::new(), 0, Some(pipe));
        true
    }

    /// Takes the direction apart, after [`Self::prepare_to_pass`].
    pub(crate) fn pass(&mut self) -> PassedDirection {
        let end = self.end.map(|end| match end {
            End::Fin => 0,
            End::Error(error) => error.raw_os_error(),
        });
        let pipe = self.pipe.take().map(|pipe| {
            let bytes = pipe.len();
            PassedPipe { ends: pipe.into_ends(), bytes }
        });
        PassedDirection { end, is_done: self.is_done, is_discarding: self.is_discarding, pipe }
    }

    /// Continues a direction of another process.
    pub(crate) fn adopt(passed: PassedDirection) -> Self {
        let PassedDirection { end, is_done, is_discarding, pipe } = passed;
        let end = end.map(|error| match error {
            0 => End::Fin,
            error => End::Error(Errno::from_raw_os_error(error)),
        });
        let pipe = pipe.map(|PassedPipe { ends, bytes }| Box::new(Pipe::of_ends(ends, bytes)));
        Self { readable: true, writable: true, end, is_done, is_discarding, pipe, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::super::Pumped;
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn queued_bytes_and_the_end_survive_the_passage() {
        let mut scratch = Scratch::new();
        let ((mut sender, source), (sink, mut receiver)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        [&source, &sink].iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let (source, sink) = (OwnedFd::from(source), OwnedFd::from(sink));
        let mut direction = Direction { readable: true, ..Direction::to_writable_sink() };
        let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || sender.write_all(&sent).unwrap());
        let mut received = Vec::new();
        let mut passages = 0;
        receiver.set_nonblocking(true).unwrap();
        loop {
            direction.readable = true;
            direction.writable = true;
            let outcome = direction.pump(&source, &sink, &mut scratch, None).1;
            if !direction.is_empty() {
                // The sink is full: the direction passes on with its bytes.
                assert!(direction.prepare_to_pass(&mut scratch));
                let passed = direction.pass();
                assert!(passed.pipe.as_ref().is_some_and(|pipe| pipe.bytes > 0));
                direction = Direction::adopt(passed);
                passages += 1;
            }
            // Nothing is received before the sink was full once.
            let mut buffer = [0; 50_000];
            while passages > 0
                && let Ok(read @ 1..) = receiver.read(&mut buffer)
            {
                received.extend_from_slice(&buffer[..read]);
            }
            if outcome == Pumped::Ended(End::Fin) {
                break;
            }
        }
        writer.join().unwrap();
        assert!(passages > 0 && received == expected, "{passages} {}", received.len());
    }

    #[test]
    fn flags_survive_the_passage() {
        for (end, is_done, is_discarding) in [
            (None, false, false),
            (Some(End::Fin), true, false),
            (Some(End::Error(Errno::CONNRESET)), false, true),
        ] {
            let mut before = Direction { end, is_done, is_discarding, ..Direction::default() };
            assert!(before.prepare_to_pass(&mut Scratch::new()));
            let after = Direction::adopt(before.pass());
            assert_eq!((after.end, after.is_done, after.is_discarding), (end, is_done, is_discarding));
        }
    }
}
