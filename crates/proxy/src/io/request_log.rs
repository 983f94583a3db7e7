//! Request logs: lines about requests, connections, queries and flows. A worker makes each line and puts it into a queue that the program
//! empties. A line that finds the queue full is counted and dropped, because traffic never waits for the log.
//! The lines of pen are written when a request is sent to a server; the lines of all other formats are written
//! at the end of a request.

use evener_core::Target;
use evener_core::counters::ServiceCounters;
use evener_core::request_log::{Record, RequestLogFormat};
use evener_core::spec::RequestLog as Spec;
use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most bytes of a plain connection in a line of a file.
const PIECE_BYTES_MAX: usize = 100;
/// Most bytes of an HTTP request line in a line of a file.
const REQUEST_BYTES_MAX: usize = 2048;
/// Largest datagram for penlogd.
const DATAGRAM_BYTES_MAX: usize = 1024;

/// Form of the lines of pen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogForm {
    /// For a file: `client epoch server request`.
    Line,
    /// For penlogd, in one datagram: `+ client server request`.
    Datagram,
}

/// Outcome of logging a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// The line will be written.
    Taken,
    /// The queue was full.
    Full,
}

type Queue = Box<dyn Fn(Vec<u8>) -> Queued + Send + Sync>;

/// Log of requests.
pub struct RequestLog {
    format: RequestLogFormat,
    form: LogForm,
    sample: Sample,
    queue: Queue,
}

/// A part of all lines: of a million, this number, evenly spread.
#[derive(Debug)]
struct Sample {
    millionths: u64,
    /// Number of lines so far, of all workers. It is counted only while a part is logged.
    count: AtomicU64,
}

impl Sample {
    fn takes_next(&self) -> bool {
        if self.millionths >= u64::from(Spec::ALL) {
            return true;
        }
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let taken = |count: u64| u128::from(count) * u128::from(self.millionths) / u128::from(Spec::ALL);
        taken(before.wrapping_add(1)) > taken(before)
    }
}

impl std::fmt::Debug for RequestLog {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("RequestLog").field("format", &self.format).finish_non_exhaustive()
    }
}

impl RequestLog {
    /// Creates a log that passes each line, with its line end, to `queue`, which must not block. `form` applies
    /// to the format of pen.
    pub fn new(
        format: RequestLogFormat,
        form: LogForm,
        queue: impl Fn(Vec<u8>) -> Queued + Send + Sync + 'static,
    ) -> Self {
        let sample = Sample { millionths: Spec::ALL.into(), count: AtomicU64::new(0) };
        Self { format, form, sample, queue: Box::new(queue) }
    }

    /// Logs only a part: of a million requests, connections, queries or flows this number.
    #[must_use]
    pub fn sampled(self, millionths: u32) -> Self {
        let sample = Sample { millionths: millionths.into(), count: AtomicU64::new(0) };
        Self { sample, ..self }
    }

    /// Returns true if the next request, connection, query or flow is in the sample.
    pub(crate) fn samples(&self) -> bool {
        self.sample.takes_next()
    }

    /// Returns whether lines are written when requests are sent to servers, as pen does, and not at the end of
    /// requests.
    pub(crate) fn is_pen(&self) -> bool {
        self.format == RequestLogFormat::Pen
    }

    /// Logs a request that has ended.
    pub(crate) fn request_ended(&self, record: &Record<'_>, counters: &ServiceCounters) {
        if self.samples() {
            self.write(record, counters);
        }
    }

    /// Logs a record that is in the sample.
    pub(crate) fn write(&self, record: &Record<'_>, counters: &ServiceCounters) {
        let mut line = Vec::with_capacity(512);
        self.format.write(record, &mut line);
        self.add(line, counters);
    }

    fn add(&self, line: Vec<u8>, counters: &ServiceCounters) {
        if (self.queue)(line) == Queued::Full {
            counters.log_dropped.one();
        }
    }
}

/// Returns the present time since 1970.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Request log of one connection, in the format of pen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tap<'a> {
    log: &'a RequestLog,
    client: IpAddr,
    server: &'a Target,
    /// Counters of the service; they count dropped lines.
    counters: &'a ServiceCounters,
}

impl<'a> Tap<'a> {
    pub(crate) fn new(
        log: &'a RequestLog,
        client: IpAddr,
        server: &'a Target,
        counters: &'a ServiceCounters,
    ) -> Self {
        Self { log, client, server, counters }
    }

    /// Logs bytes that the client sent.
    pub(crate) fn piece(&self, bytes: &[u8]) {
        self.log_line(bytes, PIECE_BYTES_MAX);
    }

    /// Logs the request line of an HTTP request.
    pub(crate) fn request(&self, line: &[u8]) {
        self.log_line(line, REQUEST_BYTES_MAX);
    }

    fn log_line(&self, request: &[u8], most: usize) {
        // Logs in other formats have one line at the end.
        if !self.log.is_pen() {
            return;
        }
        let epoch = since_epoch().as_secs();
        let line = match self.log.form {
            LogForm::Line => line(self.client, epoch, self.server, request, most),
            LogForm::Datagram => datagram(self.client, self.server, request),
        };
        self.log.add(line, self.counters);
    }
}

fn line(client: IpAddr, epoch: u64, server: &Target, request: &[u8], most: usize) -> Vec<u8> {
    let mut line = Vec::with_capacity(64 + request.len().min(most));
    // Writing to memory never fails.
    let _ = write!(line, "{} {epoch} ", client.to_canonical());
    put_server(server, &mut line);
    put_request(request, most, &mut line);
    line
}

fn datagram(client: IpAddr, server: &Target, request: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(DATAGRAM_BYTES_MAX);
    let _ = write!(line, "+ {} ", client.to_canonical());
    put_server(server, &mut line);
    let room = DATAGRAM_BYTES_MAX.saturating_sub(line.len() + 1);
    put_request(request, room, &mut line);
    line
}

fn put_server(server: &Target, line: &mut Vec<u8>) {
    let _ = match server {
        Target::Ip(address) => write!(line, "{} ", address.ip().to_canonical()),
        Target::Unix(path) => write!(line, "{} ", path.display()),
    };
}

/// Appends the beginning of a request as pen logs it: its first line, in ASCII.
fn put_request(request: &[u8], most: usize, line: &mut Vec<u8>) {
    let first = request.iter().take(most).take_while(|byte| !matches!(byte, b'\r' | b'\n'));
    line.extend(first.map(|byte| if byte.is_ascii() { *byte } else { b'.' }));
    line.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::counters::Sharded;
    use std::sync::{Arc, Mutex};

    #[track_caller]
    fn check(form: LogForm, server: &str, request: &[u8], expected: &str) {
        let server: Target = match server.parse() {
            Ok(address) => Target::Ip(address),
            Err(_) => Target::Unix(server.into()),
        };
        let client = "::ffff:192.0.2.7".parse().unwrap();
        let made = match form {
            LogForm::Line => line(client, 1_763_870_000, &server, request, PIECE_BYTES_MAX),
            LogForm::Datagram => datagram(client, &server, request),
        };
        assert_eq!(String::from_utf8(made).unwrap(), expected);
    }

    #[test]
    fn a_line_has_addresses_without_ports_and_the_first_line_of_the_request() {
        let server = "10.0.0.51:80";
        let begin = "192.0.2.7 1763870000 10.0.0.51 ";
        let file =
            |request: &[u8], first: &str| check(LogForm::Line, server, request, &format!("{begin}{first}\n"));
        file(b"GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1");
        file(b"GET / HTTP/1.0\nHost: a\n", "GET / HTTP/1.0");
        file("gr\u{fc}\u{df}e".as_bytes(), "gr....e");
        file(b"\r\nGET / HTTP/1.1\r\n", "");
        file(b"", "");
        file(&[b'x'; 300], &"x".repeat(100));
        check(LogForm::Line, "/run/a.sock", b"hello", "192.0.2.7 1763870000 /run/a.sock hello\n");
        check(LogForm::Line, "[2001:db8::1]:80", b"hello", "192.0.2.7 1763870000 2001:db8::1 hello\n");
    }

    #[test]
    fn a_datagram_is_never_too_long() {
        check(LogForm::Datagram, "10.0.0.51:80", b"GET /\r\n", "+ 192.0.2.7 10.0.0.51 GET /\n");
        let begin = "+ 192.0.2.7 10.0.0.51 ";
        let cut = format!("{begin}{}\n", "x".repeat(1024 - begin.len() - 1));
        assert_eq!(cut.len(), 1024);
        check(LogForm::Datagram, "10.0.0.51:80", &[b'x'; 5000], &cut);
    }

    #[test]
    fn a_sample_is_evenly_spread() {
        let log = |millionths| {
            RequestLog::new(RequestLogFormat::Json, LogForm::Line, |_| Queued::Taken).sampled(millionths)
        };
        for (millionths, expected) in [(1_000_000, 1000), (10_000, 10), (333_333, 333), (0, 0)] {
            let log = log(millionths);
            let taken = (0..1000).filter(|_| log.samples()).count();
            assert_eq!(taken, expected, "{millionths}");
        }
    }

    #[test]
    fn lines_that_find_the_queue_full_are_counted() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let queue = Arc::clone(&taken);
        let log = RequestLog::new(RequestLogFormat::Pen, LogForm::Datagram, move |line| {
            let mut taken = queue.lock().unwrap();
            if taken.len() == 2 {
                return Queued::Full;
            }
            taken.push(line);
            Queued::Taken
        });
        let counters = Sharded::<ServiceCounters>::new(1);
        let server = Target::Unix("/a".into());
        let tap = Tap::new(&log, [192, 0, 2, 1].into(), &server, counters.of(0));
        (0..5).for_each(|_| tap.piece(b"x"));
        assert_eq!((taken.lock().unwrap().len(), counters.total("log_dropped")), (2, 3));
    }
}
