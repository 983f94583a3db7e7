//! The contents of the picture: the last view, the recent events, the selection, the order, the filter. Nothing here
//! draws, waits or asks an instance.

use super::poll::Polled;
use super::rates::{Rate, Rates};
use crate::state::{LiveKind, LiveRow, View};
use crate::table::{Style, Tone};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Events that are kept.
const EVENTS_MAX: usize = 200;
/// Time for which a message is shown.
const MESSAGE_TIME: Duration = Duration::from_secs(8);

/// Identity of a row across views.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u8, String);

impl Id {
    pub(super) fn of(row: &LiveRow) -> Self {
        Self(row.kind as u8, row.name.clone())
    }
}

/// Order of services, and of the servers of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Configured,
    Rate,
    Active,
    Errors,
    Slowest,
}

impl Order {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Configured => "as configured",
            Self::Rate => "rate",
            Self::Active => "active",
            Self::Errors => "errors",
            Self::Slowest => "slowest",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Configured => Self::Rate,
            Self::Rate => Self::Active,
            Self::Active => Self::Errors,
            Self::Errors => Self::Slowest,
            Self::Slowest => Self::Configured,
        }
    }
}

/// The connection to the instance.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Link {
    Present,
    Lost { since: Instant, reason: String },
}

/// The part that is shown in place of the list, or asked below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    List,
    Details {
        scroll: u16,
    },
    Help,
    /// A filter is typed. `before` is the filter that Esc brings back.
    Filter {
        before: String,
    },
    /// A change of a server is to be confirmed.
    Confirm {
        server: String,
        state: &'static str,
        warning: &'static str,
    },
}

/// An event as a line.
#[derive(Clone, Debug)]
pub(super) struct EventLine {
    pub(super) text: String,
    pub(super) tone: Tone,
}

pub(super) struct Board {
    view: Option<View>,
    rows: Vec<LiveRow>,
    pub(super) rates: Rates,
    events: VecDeque<EventLine>,
    last_event: u64,
    selected: Option<Id>,
    /// First row that is shown.
    pub(super) top: usize,
    pub(super) order: Order,
    pub(super) filter: String,
    pub(super) mode: Mode,
    is_paused: bool,
    link: Link,
    message: Option<(String, Tone, Instant)>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            view: None,
            rows: Vec::new(),
            rates: Rates::default(),
            events: VecDeque::new(),
            last_event: 0,
            selected: None,
            top: 0,
            order: Order::Configured,
            filter: String::new(),
            mode: Mode::List,
            is_paused: false,
            link: Link::Present,
            message: None,
        }
    }

    /// Takes over a response of the instance.
    pub(super) fn update(&mut self, polled: Box<Polled>, now: Instant) {
        // A response that was on its way when the picture was paused.
        if self.is_paused && self.view.is_some() {
            return;
        }
        let Polled { view, events } = *polled;
        if self.view.as_ref().is_some_and(|before| before.pid() != view.pid()) {
            self.rates.clear();
            self.say(format!("another instance responds now: pid {}", view.pid()), Tone::Warning, now);
        } else if matches!(self.link, Link::Lost { .. }) {
            self.say("the instance responds again".into(), Tone::Normal, now);
        }
        self.link = Link::Present;
        self.last_event = events.last().unwrap_or(self.last_event);
        for (level, text) in events.short_lines() {
            let tone = match level {
                "error" => Tone::Bad,
                "warn" => Tone::Warning,
                _ => Tone::Normal,
            };
            self.events.push_back(EventLine { text, tone });
        }
        let spare = self.events.len().saturating_sub(EVENTS_MAX);
        self.events.drain(..spare);
        self.set_rows(view.live_rows(), now);
        self.view = Some(view);
    }

    pub(super) fn set_rows(&mut self, rows: Vec<LiveRow>, now: Instant) {
        self.rates.add(&rows, now);
        self.rows = rows;
    }

    /// Records that the instance does not respond. Its last state stays on the screen.
    pub(super) fn lose(&mut self, reason: String, now: Instant) {
        let since = match &self.link {
            Link::Lost { since, .. } => *since,
            Link::Present => now,
        };
        self.link = Link::Lost { since, reason };
    }

    /// Reports the outcome of a change of a server.
    pub(super) fn report(&mut self, outcome: Result<String, String>) {
        let (text, tone) = match outcome {
            Ok(text) => (text, Tone::Strong),
            Err(text) => (text, Tone::Bad),
        };
        self.say(text, tone, Instant::now());
    }

    pub(super) fn say(&mut self, text: String, tone: Tone, now: Instant) {
        self.message = Some((text, tone, now));
    }

    /// Returns the message, for some seconds.
    pub(super) fn message(&self, now: Instant) -> Option<(&str, Tone)> {
        let (text, tone, at) = self.message.as_ref()?;
        (now.saturating_duration_since(*at) < MESSAGE_TIME).then_some((text, *tone))
    }

    pub(super) fn headline(&self) -> String {
        self.view.as_ref().map(View::headline).unwrap_or_default()
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn last_event(&self) -> u64 {
        self.last_event
    }

    /// Returns the last events, the oldest first.
    pub(super) fn events(&self, most: usize) -> impl Iterator<Item = &EventLine> {
        self.events.iter().skip(self.events.len().saturating_sub(most))
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    pub(super) fn toggle_pause(&mut self) {
        self.is_paused = !self.is_paused;
    }

    pub(super) fn next_order(&mut self) {
        self.order = self.order.next();
    }

    /// Returns the rows that the filter leaves, in the chosen order: services, then pools with their servers.
    pub(super) fn shown(&self) -> Vec<&LiveRow> {
        let of_kind = |kind| move |row: &&LiveRow| row.kind == kind;
        let mut services: Vec<_> =
            self.rows.iter().filter(of_kind(LiveKind::Service)).filter(|row| self.matches(row)).collect();
        self.sort(&mut services);
        let mut shown = services;
        let after_services = self.rows.iter().position(|row| row.kind == LiveKind::Pool);
        let pools = self.rows[after_services.unwrap_or(self.rows.len())..]
            .chunk_by(|_, next| next.kind == LiveKind::Server);
        for pool in pools {
            let mut servers: Vec<_> = pool[1..].iter().filter(|row| self.matches(row)).collect();
            if servers.is_empty() && !self.matches(&pool[0]) {
                continue;
            }
            self.sort(&mut servers);
            shown.push(&pool[0]);
            shown.extend(servers);
        }
        shown
    }

    /// Returns true if the name, the state or a reason of the row has the text of the filter.
    fn matches(&self, row: &LiveRow) -> bool {
        let wanted = self.filter.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        has(&row.name) || has(row.state.text()) || row.reasons.iter().any(|reason| has(reason.text()))
    }

    fn sort(&self, rows: &mut [&LiveRow]) {
        let rate = |row: &LiveRow, of: fn(Rate) -> f64| self.rates.of(row).map_or(0.0, of);
        let key = |row: &LiveRow| match self.order {
            Order::Configured => 0.0,
            Order::Rate => rate(row, |rate| rate.served),
            Order::Active => f64::from(row.active),
            Order::Errors => rate(row, |rate| rate.errors) * 1e12 + row.errors as f64,
            Order::Slowest => row.times.map_or(0.0, |(_, p95)| p95),
        };
        rows.sort_by(|one, other| key(other).total_cmp(&key(one)));
    }

    /// Returns the position of the selected row among the rows that are shown.
    pub(super) fn position(&self, shown: &[&LiveRow]) -> usize {
        let selected = self.selected.as_ref();
        shown.iter().position(|row| Some(&Id::of(row)) == selected).unwrap_or(0)
    }

    pub(super) fn selected(&self) -> Option<&LiveRow> {
        let shown = self.shown();
        shown.get(self.position(&shown)).copied()
    }

    /// Moves the selection by a number of rows.
    pub(super) fn step(&mut self, by: isize) {
        let shown = self.shown();
        let last = shown.len().saturating_sub(1);
        let at = self.position(&shown).saturating_add_signed(by).min(last);
        self.selected = shown.get(at).map(|row| Id::of(row));
    }

    /// Returns everything that is known about the selected row.
    pub(super) fn details(&self) -> String {
        let (Some(view), Some(row)) = (&self.view, self.selected()) else { return String::new() };
        let part = view.clone().named(&row.name);
        part.map_or_else(|why| why, |part| part.text(Style::Plain))
    }

    /// Asks to confirm a change of the selected server.
    pub(super) fn ask(&mut self, state: &'static str, now: Instant) {
        let server = self.selected().filter(|row| row.kind == LiveKind::Server);
        let Some(server) = server.map(|row| row.name.clone()) else {
            self.say("select a server first".into(), Tone::Warning, now);
            return;
        };
        if matches!(self.link, Link::Lost { .. }) {
            self.say("the instance does not respond".into(), Tone::Bad, now);
            return;
        }
        let is_last = state != "ready" && self.is_last_usable(&server);
        let warning = if is_last { "its pool has no other usable server; " } else { "" };
        self.mode = Mode::Confirm { server, state, warning };
    }

    /// Returns true if the server is usable and no other server of its pool is.
    fn is_last_usable(&self, name: &str) -> bool {
        let pool = self.rows.chunk_by(|_, next| next.kind == LiveKind::Server);
        let mut of_pool =
            pool.filter(|rows| rows.iter().any(|row| row.name == name && row.kind == LiveKind::Server));
        of_pool.next().is_some_and(|rows| {
            let mut usable = rows.iter().filter(|row| row.kind == LiveKind::Server && row.is_usable);
            usable.next().is_some_and(|row| row.name == name) && usable.next().is_none()
        })
    }
}

#[cfg(test)]
pub(in crate::cli::top) mod tests {
    use super::*;
    use crate::table::Cell;

    pub(in crate::cli::top) fn row(kind: LiveKind, name: &str, label: &str) -> LiveRow {
        LiveRow {
            kind,
            name: name.into(),
            label: label.into(),
            state: Cell::new("up 5s", Tone::Normal),
            active: 0,
            active_max: None,
            served: 0,
            errors: 0,
            bytes_in: 0,
            bytes_out: 0,
            times: None,
            reasons: Vec::new(),
            is_usable: true,
        }
    }

    pub(in crate::cli::top) fn server(pool: &str, name: &str) -> LiveRow {
        row(LiveKind::Server, &format!("{pool}/{name}"), name)
    }

    pub(in crate::cli::top) fn board() -> Board {
        let mut board = Board::new();
        let mut slow = server("web", "b");
        (slow.times, slow.active, slow.is_usable) = (Some((0.2, 0.9)), 7, false);
        slow.reasons.push(Cell::new("down: connect: refused", Tone::Bad));
        slow.state = Cell::new("down 3s", Tone::Bad);
        let rows = vec![
            row(LiveKind::Service, "www", "www"),
            row(LiveKind::Service, "dns", "dns"),
            row(LiveKind::Pool, "web", "pool web"),
            server("web", "a"),
            slow,
            row(LiveKind::Pool, "ns", "pool ns"),
            server("ns", "a"),
        ];
        board.set_rows(rows, Instant::now());
        board
    }

    fn names(board: &Board) -> String {
        board.shown().iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rows_are_filtered_by_name_state_and_reason_with_their_pools() {
        let mut board = board();
        for (filter, expected) in [
            ("", "www dns web web/a web/b ns ns/a"),
            ("DNS", "dns"),
            ("refused", "web web/b"),
            ("down", "web web/b"),
            ("ns/", "ns ns/a"),
            ("none", ""),
        ] {
            board.filter = filter.into();
            assert_eq!(names(&board), expected, "{filter}");
        }
    }

    #[test]
    fn servers_are_sorted_within_their_pools() {
        let mut board = board();
        for order in [Order::Active, Order::Slowest] {
            board.order = order;
            assert_eq!(names(&board), "www dns web web/b web/a ns ns/a", "{order:?}");
        }
    }

    #[test]
    fn the_selection_stays_at_its_server_when_rows_come_and_go() {
        let mut board = board();
        board.step(4);
        assert_eq!(board.selected().map(|row| row.name.as_str()), Some("web/b"));
        board.order = Order::Slowest;
        assert_eq!(board.selected().map(|row| row.name.as_str()), Some("web/b"));
        board.step(100);
        assert_eq!(board.selected().map(|row| row.name.as_str()), Some("ns/a"));
        board.step(-100);
        assert_eq!(board.selected().map(|row| row.name.as_str()), Some("www"));
    }

    #[test]
    fn the_last_usable_server_of_a_pool_is_drained_only_with_a_warning() {
        let mut board = board();
        board.step(3);
        board.ask("drain", Instant::now());
        assert!(
            matches!(&board.mode, Mode::Confirm { server, warning, .. } if server == "web/a" && !warning.is_empty())
        );
        board.ask("ready", Instant::now());
        assert!(matches!(&board.mode, Mode::Confirm { warning: "", .. }));
    }

    #[test]
    fn only_servers_have_states_to_set() {
        let mut board = board();
        board.ask("drain", Instant::now());
        assert_eq!(board.mode, Mode::List);
        assert!(board.message(Instant::now()).is_some());
    }
}
