//! Output of the demo: a picture that is redrawn if the output is a terminal, else lines.

use super::NAMES;
use super::load::Tally;
use crate::state::{ServerView, View};
use crate::table::table;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Length of the longest bar, in characters.
const BAR: usize = 30;
/// Maximum number of events that are shown on a terminal.
const EVENTS_MAX: usize = 6;
/// Interval between tables if the output is not a terminal.
const TABLE_EVERY: Duration = Duration::from_secs(2);

/// The output of the demo and its state.
pub(super) struct Screen {
    terminal: bool,
    verdicts: BTreeMap<String, String>,
    /// Time, total and rate of each server at its last measurement.
    totals: BTreeMap<String, (Duration, u64, f64)>,
    events: VecDeque<String>,
    opening: String,
    drawn_at: Option<Duration>,
    /// True if a write to the output failed.
    failed: bool,
}

impl Screen {
    pub(super) fn new(terminal: bool) -> Self {
        Self {
            terminal,
            verdicts: BTreeMap::new(),
            totals: BTreeMap::new(),
            events: VecDeque::new(),
            opening: String::new(),
            drawn_at: None,
            failed: false,
        }
    }

    /// Prints the addresses of the demo.
    pub(super) fn opening(&mut self, admin: &Path, servers: &[SocketAddr], echo: SocketAddr) {
        let named = servers.iter().zip(NAMES).map(|(address, name)| format!("  {name} {address}\n"));
        self.opening = format!(
            "evener balances three HTTP servers and a UDP echo server:\n{}  echo {echo}\n\
             Try in another terminal:\n  evener status --socket {}\n",
            named.collect::<String>(),
            admin.display()
        );
        if !self.terminal {
            self.print(&self.opening.clone());
        }
    }

    /// Adds an event.
    pub(super) fn add_event(&mut self, elapsed: Duration, what: impl std::fmt::Display) {
        let line = format!("{:6.1}s  {what}", elapsed.as_secs_f64());
        if !self.terminal {
            self.print(&format!("{line}\n"));
        }
        self.events.push_back(line);
        if self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }

    /// Records changes of verdicts, and draws: on a terminal always, else when the next table is due.
    pub(super) fn draw(&mut self, elapsed: Duration, view: &View, tally: &Tally) {
        self.add_verdicts(elapsed, view);
        let due = self.drawn_at.is_none_or(|at| elapsed >= at + TABLE_EVERY);
        if !self.terminal && !due {
            return;
        }
        self.drawn_at = Some(elapsed);
        let table = self.table(elapsed, view, tally);
        if self.terminal {
            let events: Vec<&str> = self.events.iter().map(String::as_str).collect();
            // The cursor moves to the beginning, each line is overwritten and cleared to its end, and then all
            // lines below are cleared. This does not flicker.
            let picture = format!("{}\n{table}\n{}\n\n(Ctrl-C ends)\n", self.opening, events.join("\n"));
            self.print(&format!("\x1b[H{}\x1b[J", picture.replace('\n', "\x1b[K\n")));
        } else {
            self.print(&table);
        }
    }

    /// Returns true if a write to the output failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Prints a text. A failure is only recorded, so that the load and the servers still end in order.
    fn print(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        self.failed |= stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err();
    }

    /// Draws the last picture.
    pub(super) fn finish(&mut self, elapsed: Duration, view: &View, tally: &Tally) {
        self.drawn_at = None;
        self.draw(elapsed, view, tally);
    }

    fn add_verdicts(&mut self, elapsed: Duration, view: &View) {
        for server in view.servers() {
            let before = self.verdicts.insert(server.name().to_owned(), server.verdict().to_owned());
            if let Some(change) = before.and_then(|before| server.change(&before)) {
                self.add_event(elapsed, format!("evener: {change}"));
            }
        }
    }

    fn table(&mut self, elapsed: Duration, view: &View, tally: &Tally) -> String {
        let responses = tally.responses();
        let most = responses.values().copied().max().unwrap_or(1).max(1);
        let mut rows = Vec::new();
        for server in view.servers() {
            let (served, rate) = self.rate(elapsed, server);
            let received = responses.get(server.name()).copied();
            let bar = received.map_or(0, |received| (received as usize * BAR).div_ceil(most as usize));
            rows.push(vec![
                server.name().to_owned(),
                server.verdict().to_owned(),
                server.active().to_string(),
                served.to_string(),
                format!("{rate:.0}/s"),
                "#".repeat(bar),
            ]);
        }
        let heading = ["SERVER", "VERDICT", "ACTIVE", "SERVED", "RATE", "RESPONSES TO CLIENTS"];
        format!("{}{}\n", table(&heading, &rows), tally.summary())
    }

    /// Returns the total number of connections (of datagrams for the echo server), and their rate per second.
    fn rate(&mut self, elapsed: Duration, server: &ServerView) -> (u64, f64) {
        let served = server.served();
        let entry = self.totals.entry(server.name().to_owned()).or_insert((elapsed, served, 0.0));
        let passed = elapsed.saturating_sub(entry.0);
        if passed >= Duration::from_millis(900) {
            *entry = (elapsed, served, (served - entry.1) as f64 / passed.as_secs_f64());
        }
        (served, entry.2)
    }
}
