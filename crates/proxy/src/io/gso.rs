//! Many datagrams in one sendmmsg(2): adjacent datagrams of the same length and destination are sent as one
//! message, which the kernel cuts into datagrams (UDP_SEGMENT).

use crate::io::batch::{Batch, InOrder, SEGMENTED_BYTES_MAX, Sent, last_error};
use crate::io::control_message::{ControlBuffer, write_segment_size};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::ops::Range;

/// Most datagrams that the kernel cuts one message into (UDP_MAX_SEGMENTS).
const SEGMENTS_MAX: usize = 64;
/// Longest datagram that may be a segment of a message to clients. A longer datagram may have to be fragmented
/// on its route (RFC 8200, section 5: 1280 bytes with the headers), which is impossible for segments.
const SEGMENT_BYTES_MAX: usize = 1232;

/// Memory in which a send is prepared.
pub(crate) struct Burst {
    parts: Vec<libc::iovec>,
    controls: Vec<ControlBuffer>,
    headers: Vec<libc::mmsghdr>,
    /// Number of datagrams in each message.
    runs: Vec<usize>,
}

impl Burst {
    /// Creates room for `room` datagrams.
    pub(crate) fn new(room: usize) -> Self {
        // SAFETY: mmsghdr is plain old data for which all zeroes are valid (null pointers, no lengths).
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        Self {
            parts: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; room],
            controls: vec![ControlBuffer::EMPTY; room],
            headers: vec![header; room],
            runs: vec![0; room],
        }
    }

    /// Sends datagrams over a connected socket; adjacent datagrams of the same length are sent as one message.
    /// Stops at the first datagram that the kernel refuses.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, datagrams: &[&[u8]]) -> InOrder {
        let messages = self.prepare(datagrams);
        let (mut done, mut taken) = (0, 0);
        while done < messages {
            // SAFETY: the headers point to parts and controls of this burst, and these to the datagrams, which
            // outlive the call.
            match unsafe { self.send_messages(socket, done..messages) } {
                Ok(sent) => {
                    taken += self.runs[done..done + sent].iter().sum::<usize>();
                    done += sent;
                }
                // The kernel refuses segments that are too large for the route: the datagrams are sent one by
                // one then.
                Err(Errno::INVAL | Errno::MSGSIZE | Errno::IO) if self.runs[done] > 1 => {
                    let run = self.runs[done];
                    let (taken_singly, error) = send_each(socket, &datagrams[taken..taken + run]);
                    taken += taken_singly;
                    if error.is_some() {
                        return (taken, error);
                    }
                    done += 1;
                }
                Err(error) => return (taken, Some(error)),
            }
        }
        (taken, None)
    }

    /// Sends the messages of `range`; returns the number of messages that the kernel took.
    ///
    /// # Safety
    /// The memory that the headers of the messages point to is valid.
    unsafe fn send_messages(&mut self, socket: BorrowedFd<'_>, range: Range<usize>) -> Result<usize, Errno> {
        let headers = &mut self.headers[range];
        loop {
            // SAFETY: as the caller promises; the slice has that many headers.
            let sent = unsafe {
                let count = headers.len() as libc::c_uint;
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_NOSIGNAL)
            };
            if sent > 0 {
                return Ok(sent as usize);
            }
            match last_error() {
                Errno::INTR => {}
                error => return Err(error),
            }
        }
    }

    /// Sends datagrams of a batch, each to its own destination. Adjacent datagrams of the same length are sent
    /// as one message if `is_same` confirms that they have the same destination. Datagrams that the kernel
    /// refuses are lost; the next ones are still sent.
    pub(crate) fn send_addressed(
        &mut self,
        socket: BorrowedFd<'_>,
        batch: &mut Batch,
        indices: &[usize],
        is_same: impl Fn(usize, usize) -> bool,
    ) -> Sent {
        let messages = self.prepare_addressed(batch, indices, is_same);
        let (mut sent, mut done, mut passed) = (Sent::default(), 0, 0);
        while done < messages {
            let run = self.runs[done];
            // SAFETY: the headers point to parts and controls of this burst and to addresses and buffers of the
            // batch.
            match unsafe { self.send_messages(socket, done..messages) } {
                Ok(count) => {
                    let taken = self.runs[done..done + count].iter().sum::<usize>();
                    sent.count_taken(taken);
                    (passed, done) = (passed + taken, done + count);
                }
                Err(Errno::AGAIN) => {
                    sent.count_failure(Errno::AGAIN);
                    break;
                }
                // The kernel refuses segments that are too large for the route: the datagrams are sent one by
                // one then.
                Err(Errno::INVAL | Errno::MSGSIZE | Errno::IO) if run > 1 => {
                    for &index in &indices[passed..passed + run] {
                        sent.count_taken(batch.send_addressed(socket, index..index + 1).count());
                    }
                    (passed, done) = (passed + run, done + 1);
                }
                Err(error) => {
                    sent.count_failure(error);
                    (passed, done) = (passed + run, done + 1);
                }
            }
        }
        sent
    }

    fn prepare_addressed(
        &mut self,
        batch: &Batch,
        indices: &[usize],
        is_same: impl Fn(usize, usize) -> bool,
    ) -> usize {
        let (mut at, mut messages) = (0, 0);
        while at < indices.len() {
            let (first, length) = (indices[at], batch.len(indices[at]));
            let most =
                if (1..=SEGMENT_BYTES_MAX).contains(&length) { SEGMENTED_BYTES_MAX / length } else { 1 };
            let goes_along = |index: usize| batch.len(index) == length && is_same(first, index);
            let others = indices[at + 1..].iter().take(most.min(SEGMENTS_MAX) - 1);
            let run = 1 + others.take_while(|&&index| goes_along(index)).count();
            for (part, &index) in self.parts[at..].iter_mut().zip(&indices[at..at + run]) {
                *part = batch.prepared(index).1;
            }
            let header = &mut self.headers[messages].msg_hdr;
            *header = batch.prepared(first).0;
            header.msg_iov = &raw mut self.parts[at];
            header.msg_iovlen = run;
            if run > 1 {
                write_segment_size(header, &mut self.controls[messages], length as u16);
            }
            self.runs[messages] = run;
            messages += 1;
            at += run;
        }
        messages
    }

    /// Makes one message of each run of equal lengths; returns the number of messages.
    fn prepare(&mut self, datagrams: &[&[u8]]) -> usize {
        for (part, datagram) in self.parts.iter_mut().zip(datagrams) {
            *part = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
        }
        let (mut at, mut messages) = (0, 0);
        while at < datagrams.len() {
            let length = datagrams[at].len();
            let most = (SEGMENTED_BYTES_MAX / length.max(1)).clamp(1, SEGMENTS_MAX);
            let run = datagrams[at..].iter().take(most).take_while(|other| other.len() == length).count();
            let header = &mut self.headers[messages].msg_hdr;
            header.msg_iov = &raw mut self.parts[at];
            header.msg_iovlen = run;
            (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0);
            if run > 1 {
                write_segment_size(header, &mut self.controls[messages], length as u16);
            }
            self.runs[messages] = run;
            messages += 1;
            at += run;
        }
        messages
    }
}

fn send_each(socket: BorrowedFd<'_>, datagrams: &[&[u8]]) -> InOrder {
    for (taken, datagram) in datagrams.iter().enumerate() {
        if let Err(error) = rustix::net::send(socket, datagram, rustix::net::SendFlags::NOSIGNAL) {
            return (taken, Some(error));
        }
    }
    (datagrams.len(), None)
}

// SAFETY: the raw pointers are written anew before each use; between uses nothing is read through them.
unsafe impl Send for Burst {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use std::net::UdpSocket;

    #[test]
    fn datagrams_of_all_lengths_arrive() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let lengths = [30, 30, 30, 7, 1500, 1500, 0, 1, 64_000, 64_000];
        let datagrams: Vec<Vec<u8>> = lengths.iter().zip(0..).map(|(length, at)| vec![at; *length]).collect();
        let views: Vec<&[u8]> = datagrams.iter().map(Vec::as_slice).collect();
        let mut burst = Burst::new(64);
        let sent = burst.send(client.as_fd(), &views);
        assert_eq!(sent, (lengths.len(), None));
        let mut buffer = vec![0; 70_000];
        for datagram in &datagrams {
            let count = server.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], datagram);
        }
    }

    /// Sends responses, each `(client, length)`, in this order; returns the lengths that each client received.
    fn send_to_clients(
        clients: &[UdpSocket],
        responses: &[(usize, usize)],
        local: Option<std::net::IpAddr>,
    ) -> Vec<Vec<usize>> {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut batch = Batch::new(responses.len());
        let ports: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
        for (at, (client, length)) in responses.iter().enumerate() {
            batch.set_bytes(at, &vec![at as u8; *length]);
            batch.set_destination(at, ports[*client], local);
        }
        let indices: Vec<usize> = (0..responses.len()).collect();
        let is_same = |one: usize, other: usize| responses[one].0 == responses[other].0;
        let sent = Burst::new(responses.len()).send_addressed(server.as_fd(), &mut batch, &indices, is_same);
        assert_eq!(sent.count(), responses.len());
        let mut got = vec![Vec::new(); clients.len()];
        let mut buffer = [0; 4096];
        for (at, (client, length)) in responses.iter().enumerate() {
            let (count, from) = clients[*client].recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..count], vec![at as u8; *length]);
            assert_eq!(Some(from.ip()), local.or(Some([127, 0, 0, 1].into())));
            got[*client].push(count);
        }
        got
    }

    #[test]
    fn responses_reach_their_clients_whole_and_in_order() {
        let clients = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let responses =
            [(0, 50), (0, 50), (0, 50), (1, 50), (1, 60), (1, 60), (2, 0), (2, 0), (2, 1400), (2, 1400)];
        for local in [None, Some([127, 0, 0, 7].into())] {
            let got = send_to_clients(&clients, &responses, local);
            assert_eq!(got, [vec![50, 50, 50], vec![50, 60, 60], vec![0, 0, 1400, 1400]]);
        }
        // These datagrams exceed one message.
        assert_eq!(send_to_clients(&clients, &[(1, 30); 150], None)[1], [30; 150]);
        assert_eq!(send_to_clients(&clients, &[(1, 1232); 60], None)[1], [1232; 60]);
    }

    #[test]
    fn a_datagram_that_cannot_be_sent_is_reported() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let (short, long) = ([1; 9], vec![2; 65_530]);
        let sent = Burst::new(64).send(client.as_fd(), &[&short, &short, &long, &short]);
        assert_eq!(sent, (2, Some(Errno::MSGSIZE)));
    }
}
