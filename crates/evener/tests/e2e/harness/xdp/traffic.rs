//! A paced stream of numbered datagrams to an [`Echo`](super::Echo), which counts lost and moved ones.

use crate::harness::namespaces::Namespace;
use crate::harness::{DEADLINE, wait_until};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Maximum number of datagrams without a reply. It is less than the smallest queue of the path, 256 frames of a veth, so
/// that a busy machine delays datagrams and does not lose them.
const OUTSTANDING_MAX: usize = 128;
/// A datagram without a reply after this time is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Interval of sending.
const TICK: Duration = Duration::from_millis(1);

/// Datagrams of several sockets, each one flow, at a fixed rate. The rate falls if the machine is too busy for it.
pub(crate) struct Traffic {
    stopped: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: Option<JoinHandle<TrafficReport>>,
}

/// Results of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrafficReport {
    sent: u64,
    received: u64,
    /// Datagrams without a reply.
    lost: u64,
    /// Replies from another server than the reply before in the same flow.
    moved: u64,
    /// Replies from another address than the destination, or to another client.
    wrong: u64,
    /// Number of flows of each server, by their last reply.
    servers: HashMap<IpAddr, u64>,
    time: Duration,
}

impl TrafficReport {
    /// Returns the number of datagrams without replies.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns how often a flow had a reply from another server than before.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Returns the number of flows whose last reply came from a server.
    pub(crate) fn flows_of(&self, server: IpAddr) -> u64 {
        self.servers.get(&server).copied().unwrap_or_default()
    }

    /// Prints the counts, and panics if a datagram was lost, or its flow moved, or addresses were wrong.
    #[track_caller]
    pub(crate) fn expect_unhurt(&self) {
        println!("{self}");
        assert_eq!((self.lost, self.moved, self.wrong), (0, 0, 0), "expected no effect on traffic: {self}");
    }
}

impl fmt::Display for TrafficReport {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, lost, moved, wrong, .. } = self;
        let rate = *sent as f64 / self.time.as_secs_f64();
        write!(
            to,
            "{sent} sent at {rate:.0}/s, {received} received, {lost} lost, {moved} moved, {wrong} wrong"
        )
    }
}

impl Traffic {
    /// Starts to send from `flows` ports of an address, `rate` datagrams a second in total.
    pub(crate) fn start(
        namespace: &Namespace,
        from: IpAddr,
        to: SocketAddr,
        flows: usize,
        rate: u32,
    ) -> Self {
        let open = || (0..flows).map(|_| UdpSocket::bind((from, 0)).unwrap()).collect::<Vec<_>>();
        let flows: Vec<Flow> = namespace.enter(open).into_iter().map(Flow::new).collect();
        let (stopped, received) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut stream = Stream {
            to,
            flows,
            outstanding: HashMap::new(),
            stopped: Arc::clone(&stopped),
            received: Arc::clone(&received),
            report: TrafficReport::default(),
        };
        let sender = Some(std::thread::spawn(move || {
            stream.run(rate);
            stream.report
        }));
        Self { stopped, received, sender }
    }

    /// Waits until so many further datagrams have their replies.
    pub(crate) fn wait_for(&self, more: u64) {
        let wanted = self.received.load(Ordering::Relaxed) + more;
        wait_until("replies of a stream", || (self.received.load(Ordering::Relaxed) >= wanted).then_some(()));
    }

    /// Ends the stream, waits for outstanding replies and returns the results.
    pub(crate) fn stop(mut self) -> TrafficReport {
        self.stopped.store(true, Ordering::Relaxed);
        self.sender.take().unwrap().join().unwrap()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// A socket of the client.
struct Flow {
    socket: UdpSocket,
    address: SocketAddr,
    server: Option<IpAddr>,
}

impl Flow {
    fn new(socket: UdpSocket) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { address: socket.local_addr().unwrap(), socket, server: None }
    }
}

struct Stream {
    to: SocketAddr,
    flows: Vec<Flow>,
    /// Times of datagrams without a reply, by number.
    outstanding: HashMap<u64, Instant>,
    stopped: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    report: TrafficReport,
}

impl Stream {
    fn run(&mut self, rate: u32) {
        let start = Instant::now();
        let mut due = 0.0;
        let mut last = start;
        while !self.stopped.load(Ordering::Relaxed) {
            let now = Instant::now();
            // After a pause of the machine, the stream does not catch up with a burst.
            due = (due + (now - last).as_secs_f64() * f64::from(rate)).min(OUTSTANDING_MAX as f64);
            last = now;
            self.forget_lost(now);
            while due >= 1.0 && self.outstanding.len() < OUTSTANDING_MAX {
                self.send(now);
                due -= 1.0;
            }
            self.receive();
            std::thread::sleep(TICK);
        }
        self.report.time = start.elapsed();
        let until = Instant::now() + LOST_AFTER.min(DEADLINE);
        while !self.outstanding.is_empty() && Instant::now() < until {
            self.receive();
            std::thread::sleep(TICK);
        }
        self.report.lost += self.outstanding.len() as u64;
        for server in self.flows.iter().filter_map(|flow| flow.server) {
            *self.report.servers.entry(server).or_default() += 1;
        }
    }

    fn send(&mut self, now: Instant) {
        let number = self.report.sent;
        let flow = &self.flows[number as usize % self.flows.len()];
        self.report.sent += 1;
        // A datagram that could not be sent gets no reply, and so counts as lost.
        let _ = flow.socket.send_to(number.to_string().as_bytes(), self.to);
        self.outstanding.insert(number, now);
    }

    fn forget_lost(&mut self, now: Instant) {
        let before = self.outstanding.len();
        self.outstanding.retain(|_, sent| now - *sent < LOST_AFTER);
        self.report.lost += (before - self.outstanding.len()) as u64;
    }

    fn receive(&mut self) {
        let mut buffer = [0; 2048];
        for flow in &mut self.flows {
            while let Ok((length, from)) = flow.socket.recv_from(&mut buffer) {
                let Some(reply) = super::Reply::parse(from, &buffer[..length]) else {
                    self.report.wrong += 1;
                    continue;
                };
                let number: Option<u64> =
                    std::str::from_utf8(reply.payload()).ok().and_then(|text| text.parse().ok());
                let is_known = number.is_some_and(|number| self.outstanding.remove(&number).is_some());
                let is_right = is_known && from == self.to && reply.client() == flow.address;
                self.report.wrong += u64::from(!is_right);
                self.report.received += u64::from(is_known);
                self.received.fetch_add(u64::from(is_known), Ordering::Relaxed);
                let is_moved = flow.server.is_some_and(|before| before != reply.server());
                self.report.moved += u64::from(is_moved);
                flow.server = Some(reply.server());
            }
        }
    }
}
