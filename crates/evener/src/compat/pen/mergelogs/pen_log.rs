//! Lines of pen's log, and the part of the log that is near in time to the present line. The whole log may be
//! larger than memory.

use super::super::lines::{self, LineRead};
use super::LINE_BYTES_MAX;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::rc::Rc;

/// Maximum size of the entries of a window. A full window drops its oldest entries.
pub(super) const WINDOW_BYTES_MAX: usize = 256 << 20;

/// Approximate size of an entry in addition to its text: its positions in the order and in the index.
const ENTRY_BYTES: usize = 160;

/// Length of a request in pen's log. (pen's own mergelogs compares more bytes, so it never finds a longer
/// request.)
const REQUEST_BYTES_MAX: usize = 100;

/// A line of pen's log: `client epoch server request`.
#[derive(Debug, PartialEq, Eq)]
struct PenLine {
    client: Box<[u8]>,
    time: i64,
    key: Box<[u8]>,
}

impl PenLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let (client, rest) = word(line)?;
        let (time, rest) = word(rest)?;
        let (server, rest) = word(rest)?;
        let request = rest.trim_ascii_start();
        let request = request.strip_suffix(b"\n").unwrap_or(request);
        let time = str::from_utf8(time).ok()?.parse().ok()?;
        (!request.is_empty()).then(|| Self { client: client.into(), time, key: key(server, request) })
    }
}

fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace).filter(|end| *end > 0)?;
    Some(text.split_at(end))
}

/// Returns the key that is equal in both logs: the server and the request, cut to the length that pen logs. The
/// server has no space.
pub(super) fn key(server: &[u8], request: &[u8]) -> Box<[u8]> {
    let request = &request[..request.len().min(REQUEST_BYTES_MAX)];
    [server, b" ", request].concat().into()
}

/// Reads the entries of pen's log in sequence. Invalid lines are skipped.
#[derive(Debug)]
pub(super) struct PenLog<R> {
    reader: R,
    line: Vec<u8>,
}

impl PenLog<BufReader<File>> {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(BufReader::new(File::open(path)?)))
    }
}

impl<R: BufRead> PenLog<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    fn next(&mut self) -> io::Result<Option<PenLine>> {
        loop {
            let end = lines::read(&mut self.reader, LINE_BYTES_MAX, &mut self.line)? == LineRead::End;
            let entry = PenLine::parse(&self.line);
            if end || entry.is_some() {
                return Ok(entry);
            }
        }
    }

    /// Returns the client of the entry in the whole log with this key and the nearest time, with the distance
    /// in time.
    pub(super) fn nearest(&mut self, key: &[u8], time: i64) -> io::Result<Option<(Box<[u8]>, u64)>> {
        let mut best: Option<(Box<[u8]>, u64)> = None;
        while let Some(entry) = self.next()? {
            let off = entry.time.abs_diff(time);
            if *entry.key == *key && best.as_ref().is_none_or(|(_, nearest)| off < *nearest) {
                best = Some((entry.client, off));
            }
        }
        Ok(best)
    }
}

/// Position of an entry: its time, then its number in the log.
type Position = (i64, u64);

/// Clients of one server and request, sorted by time.
type Clients = BTreeMap<Position, Box<[u8]>>;

/// A window that moves along pen's log.
#[derive(Debug)]
pub(super) struct Window<R> {
    log: PenLog<R>,
    jitter: i64,
    bytes_max: usize,
    bytes: usize,
    /// In the order of the log, which may differ from the order of time.
    order: VecDeque<(Position, Rc<[u8]>)>,
    index: HashMap<Rc<[u8]>, Clients>,
    /// Time of the last entry that was read.
    last: Option<i64>,
    read: u64,
}

impl<R: BufRead> Window<R> {
    pub(super) fn new(log: PenLog<R>, jitter: i64, bytes_max: usize) -> Self {
        Self {
            log,
            jitter,
            bytes_max,
            bytes: 0,
            order: VecDeque::new(),
            index: HashMap::new(),
            last: None,
            read: 0,
        }
    }

    /// Returns the client of the entry in the window with this key and the nearest time, with the distance in
    /// time.
    pub(super) fn nearest(&mut self, key: &[u8], time: i64) -> io::Result<Option<(&[u8], u64)>> {
        self.move_to(time)?;
        let Some(entries) = self.index.get(key) else { return Ok(None) };
        let later = entries.range((time, 0)..).next();
        let earlier = entries.range(..(time, 0)).next_back();
        // Of several entries with the same time, the first in the log.
        let earlier = earlier.and_then(|((time, _), _)| entries.range((*time, 0)..).next());
        let candidates = [earlier, later].into_iter().flatten();
        let best = candidates.min_by_key(|((at, number), _)| (at.abs_diff(time), *number));
        Ok(best.map(|((at, _), client)| (&**client, at.abs_diff(time))))
    }

    fn move_to(&mut self, time: i64) -> io::Result<()> {
        let oldest = time.saturating_sub(self.jitter);
        while self.order.front().is_some_and(|((first, _), _)| *first < oldest) {
            self.forget_first();
        }
        let newest = time.saturating_add(self.jitter);
        while self.last.is_none_or(|last| last <= newest) {
            let Some(entry) = self.log.next()? else { break };
            self.add(entry);
        }
        Ok(())
    }

    fn add(&mut self, entry: PenLine) {
        let bytes = ENTRY_BYTES + entry.key.len() + entry.client.len();
        while !self.order.is_empty() && self.bytes + bytes > self.bytes_max {
            self.forget_first();
        }
        self.bytes += bytes;
        self.last = Some(entry.time);
        let position = (entry.time, self.read);
        self.read += 1;
        let key =
            self.index.get_key_value(&*entry.key).map_or_else(|| entry.key.into(), |(key, _)| Rc::clone(key));
        self.index.entry(Rc::clone(&key)).or_default().insert(position, entry.client);
        self.order.push_back((position, key));
    }

    fn forget_first(&mut self) {
        let (position, key) = self.order.pop_front().expect("the caller found an entry");
        let entries = self.index.get_mut(&key).expect("each entry in the order is in the index");
        let client = entries.remove(&position).expect("each entry in the order is in the index");
        self.bytes -= ENTRY_BYTES + key.len() + client.len();
        if entries.is_empty() {
            self.index.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ENTRY_BYTES, PenLine, PenLog, WINDOW_BYTES_MAX, Window};

    /// Checks a log, given as `client:time` of one server and request, with lookups by time and the clients
    /// found.
    fn check(jitter: i64, bytes_max: usize, log: &str, times: &[i64], expected: &str) {
        let pair = |entry: &str| entry.split_once(':').map(|(client, time)| format!("{client} {time} s r\n"));
        let log: String = log.split(' ').filter_map(pair).collect();
        let mut window = Window::new(PenLog::new(log.as_bytes()), jitter, bytes_max);
        let mut clients = Vec::new();
        for time in times {
            let found = window.nearest(b"s r", *time).expect("memory can be read");
            clients.push(
                found.map_or_else(
                    || "-".to_owned(),
                    |(client, _)| String::from_utf8_lossy(client).into_owned(),
                ),
            );
            assert!(window.bytes <= bytes_max);
            assert_eq!(window.order.len(), window.index.values().map(super::Clients::len).sum::<usize>());
        }
        assert_eq!(clients.join(" "), expected);
    }

    #[test]
    fn the_nearest_entry_in_the_window_is_found() {
        let all = WINDOW_BYTES_MAX;
        check(10, all, "a:0", &[-11, -10, 0, 10, 11], "a a a a -");
        check(600, all, "a:-5 b:5 c:5", &[0, 1, -1], "a b a");
        check(600, all, "b:5 a:-5", &[0], "b");
        check(0, all, "a:0 b:1 c:2", &[0, 1, 2, 3], "a b c -");
        // pen's own program finds the same entries: it searches only the part of the log that it has read.
        check(10, all, "a:0 b:10 c:20 d:30 e:40 f:50 g:60", &[0, 60, 20, 50], "a g d f");
        check(10, all, "a:2000 b:0 c:1000 d:10 e:3000", &[0, 12, 900, 1000, 1900, 3000], "a a a a a e");
    }

    #[test]
    fn a_full_window_drops_its_oldest_entry() {
        check(600, 2 * (ENTRY_BYTES + 4), "a:0 b:1 c:2", &[0, 2], "b c");
        check(600, 1, "", &[0], "-");
        check(
            i64::MAX,
            WINDOW_BYTES_MAX,
            "a:-9223372036854775808 b:9223372036854775807",
            &[i64::MIN, i64::MAX, 0],
            "a b b",
        );
    }

    fn check_line(line: &[u8], expected: Option<(&str, i64, &str)>) {
        let expected = expected.map(|(client, time, key)| PenLine {
            client: client.as_bytes().into(),
            time,
            key: key.as_bytes().into(),
        });
        assert_eq!(PenLine::parse(line), expected, "{}", line.escape_ascii());
        (0..line.len()).for_each(|length| drop(PenLine::parse(&line[..length])));
    }

    #[test]
    fn lines_of_pen_are_parsed() {
        check_line(b"c 17 s GET /\n", Some(("c", 17, "s GET /")));
        check_line(b"  c  -17  s   GET / ", Some(("c", -17, "s GET / ")));
        let long = format!("c 1 s {}", "G".repeat(300));
        check_line(long.as_bytes(), Some(("c", 1, &format!("s {}", "G".repeat(100)))));
        for wrong in ["", "\n", "c", "c 1", "c 1 s", "c 1 s \n", "c x s r", "c 99999999999999999999 s r"] {
            check_line(wrong.as_bytes(), None);
        }
    }
}
