//! The picture: headline, table, reasons of the selected row, events, keys. It fits 80 columns and 24 lines; a wider
//! terminal shows more columns and longer charts, and a smaller one loses the events first.

use super::board::{Board, Link, Mode};
use super::keys::KEYS;
use super::terminal::Theme;
use crate::output::printable;
use crate::state::{LiveKind, LiveRow};
use crate::table::{Tone, age, count, rate, short_bytes, shortened, time};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use std::time::Instant;

/// Width from which the columns of bytes are shown.
const WIDE: usize = 100;
/// Widths of the columns after the name: state, active, rate, errors, times.
const STATE: usize = 10;
const FIGURES: [usize; 5] = [8, 6, 6, 7, 7];
/// Width of a column of bytes.
const BYTES: usize = 8;
/// Width of a chart on a terminal of 80 columns.
const CHART: usize = 8;
/// Widest name on a terminal with room for more.
const NAME_MAX: usize = 60;

/// Draws the board.
pub(super) fn draw(board: &mut Board, frame: &mut Frame<'_>, theme: Theme, now: Instant) {
    let area = frame.area();
    if area.width == 0 || area.height == 0 {
        return;
    }
    let parts = Parts::of(area);
    let is_lost = matches!(board.link(), Link::Lost { .. });
    frame.render_widget(Paragraph::new(title(board, theme, now)), parts.title);
    match &board.mode {
        Mode::Help => frame.render_widget(Paragraph::new(help(theme)), parts.body()),
        Mode::Details { scroll } => {
            let text = board.details();
            let most = (text.lines().count() as u16).saturating_sub(parts.body().height);
            let scroll = (*scroll).min(most);
            let lines: Vec<Line> = text.lines().map(|line| Line::from(line.to_owned())).collect();
            frame.render_widget(Paragraph::new(lines).scroll((scroll, 0)), parts.body());
            board.mode = Mode::Details { scroll };
        }
        _ => {
            let table = Table { width: area.width.into(), theme, is_dimmed: is_lost };
            let height = usize::from(parts.table.height).saturating_sub(1);
            let lines = table.lines(board, height);
            frame.render_widget(Paragraph::new(lines), parts.table);
            frame.render_widget(
                Paragraph::new(reasons(board, theme)).wrap(Wrap { trim: true }),
                parts.reasons,
            );
            frame.render_widget(Paragraph::new(events(board, parts.events, theme)), parts.events);
        }
    }
    frame.render_widget(Paragraph::new(foot(board, theme, now)), parts.foot);
}

/// The parts of the screen.
struct Parts {
    title: Rect,
    table: Rect,
    reasons: Rect,
    events: Rect,
    foot: Rect,
}

impl Parts {
    fn of(area: Rect) -> Self {
        let height = area.height;
        let foot = u16::from(height > 2);
        let title = if height > 8 { 2 } else { 1 };
        let reasons = match height {
            0..12 => 0,
            12..30 => 3,
            _ => 5,
        };
        let events = match height {
            0..18 => 0,
            18..30 => 6,
            _ => height / 4,
        };
        let table = height.saturating_sub(title + reasons + events + foot);
        let mut from = area.y;
        let mut next = |height: u16| {
            let part = Rect { y: from, height, ..area }.intersection(area);
            from = from.saturating_add(height);
            part
        };
        let (title, table, reasons, events) = (next(title), next(table), next(reasons), next(events));
        Self { title, table, reasons, events, foot: next(foot) }
    }

    /// Returns the parts between title and foot.
    fn body(&self) -> Rect {
        let height = self.table.height + self.reasons.height + self.events.height;
        Rect { height, ..self.table }
    }
}

fn title(board: &Board, theme: Theme, now: Instant) -> Vec<Line<'static>> {
    let mut status: Vec<String> = Vec::new();
    if board.is_paused() {
        status.push("PAUSED".into());
    }
    if !board.filter.is_empty() {
        status.push(format!("only rows with `{}`", printable(&board.filter)));
    }
    status.push(format!("sorted: {}", board.order.name()));
    let (status, tone) = match board.link() {
        Link::Lost { since, reason } => {
            let seconds = now.saturating_duration_since(*since).as_secs();
            (format!("NO INSTANCE for {}: {}", age(seconds), printable(reason)), Tone::Bad)
        }
        Link::Present if board.is_paused() => (status.join(", "), Tone::Warning),
        Link::Present => (status.join(", "), Tone::Faint),
    };
    vec![Line::styled(board.headline(), theme.style(Tone::Strong)), Line::styled(status, theme.style(tone))]
}

/// The table of services, pools and servers.
struct Table {
    width: usize,
    theme: Theme,
    /// The figures are out of date.
    is_dimmed: bool,
}

impl Table {
    /// Returns the heading and the rows that fit. Moves the first row so that the selected row is among them.
    fn lines(&self, board: &mut Board, height: usize) -> Vec<Line<'static>> {
        let mut top = board.top;
        let shown = board.shown();
        let at = board.position(&shown);
        top = top.min(shown.len().saturating_sub(height)).min(at).max((at + 1).saturating_sub(height));
        let name = self.name_width(&shown);
        let mut lines = vec![self.heading(name)];
        if shown.is_empty() {
            lines.push(Line::styled("no rows", self.theme.style(Tone::Faint)));
        }
        let rows = shown.iter().enumerate().skip(top).take(height);
        lines.extend(rows.map(|(number, row)| self.row(board, row, name, number == at)));
        board.top = top;
        lines
    }

    fn has_bytes(&self) -> bool {
        self.width >= WIDE
    }

    /// Returns the width of all columns of figures.
    fn figures(&self) -> usize {
        let bytes = if self.has_bytes() { 2 * (BYTES + 1) } else { 0 };
        1 + STATE + FIGURES.iter().map(|width| width + 1).sum::<usize>() + bytes
    }

    /// Returns the width of the names: the widest name if there is room, so that the chart gets the rest.
    fn name_width(&self, shown: &[&LiveRow]) -> usize {
        let widest = shown.iter().map(|row| label(row).chars().count()).max().unwrap_or(0).clamp(8, NAME_MAX);
        widest.min(self.width.saturating_sub(self.figures() + CHART + 1)).max(8)
    }

    fn heading(&self, name: usize) -> Line<'static> {
        let mut text = format!("{:<name$} {:<STATE$}", "NAME", "STATE");
        let mut headings =
            vec!["ACTIVE", "/S", "ERRORS", "P50", "P95"].into_iter().zip(FIGURES).collect::<Vec<_>>();
        if self.has_bytes() {
            headings.extend([("IN/S", BYTES), ("OUT/S", BYTES)]);
        }
        headings.into_iter().for_each(|(heading, width)| text += &format!(" {heading:>width$}"));
        Line::styled(text + " /S NOW", self.theme.style(Tone::Faint))
    }

    fn row(&self, board: &Board, row: &LiveRow, name: usize, is_selected: bool) -> Line<'static> {
        let rates = board.rates.of(row);
        let times = row.times.unzip();
        let seconds = |seconds: Option<f64>| seconds.map_or_else(|| "-".into(), time);
        let active = match row.active_max {
            Some(most) => format!("{}/{}", count(row.active.into()), count(most.into())),
            None => count(row.active.into()),
        };
        let errors = if rates.is_some_and(|rate| rate.errors > 0.0) { Tone::Bad } else { Tone::Normal };
        let is_full = row.active_max.is_some_and(|most| row.active >= most);
        let mut figures = vec![
            (active, if is_full { Tone::Warning } else { Tone::Normal }),
            (rates.map_or_else(|| "-".into(), |now| rate(now.served)), Tone::Normal),
            (count(row.errors), errors),
            (seconds(times.0), Tone::Normal),
            (seconds(times.1), Tone::Normal),
        ];
        let mut widths = FIGURES.to_vec();
        if self.has_bytes() {
            let bytes = |of: Option<f64>| of.map_or_else(|| "-".into(), |bytes| short_bytes(bytes as u64));
            figures.push((bytes(rates.map(|rate| rate.bytes_in)), Tone::Normal));
            figures.push((bytes(rates.map(|rate| rate.bytes_out)), Tone::Normal));
            widths.extend([BYTES, BYTES]);
        }
        let label = cut(&label(row), name, self.theme);
        let is_server = row.kind == LiveKind::Server;
        let mut spans = vec![
            self.span(format!("{label:<name$} "), if is_server { Tone::Normal } else { Tone::Strong }),
            self.span(format!("{:<STATE$}", cut(row.state.text(), STATE, self.theme)), row.state.tone()),
        ];
        let figures = figures.into_iter().zip(widths);
        spans.extend(figures.map(|((text, tone), width)| self.span(format!(" {text:>width$}"), tone)));
        let room = self.width.saturating_sub(name + self.figures() + 1);
        let chart = board.rates.chart(row, room, self.theme.has_unicode);
        spans.push(self.span(format!(" {chart}"), Tone::Normal));
        let line = Line::from(spans);
        if is_selected { line.patch_style(Style::new().add_modifier(Modifier::REVERSED)) } else { line }
    }

    fn span(&self, text: String, tone: Tone) -> Span<'static> {
        let tone = if self.is_dimmed { Tone::Faint } else { tone };
        Span::styled(text, self.theme.style(tone))
    }
}

/// Returns the name as it is shown: servers below their pool.
fn label(row: &LiveRow) -> String {
    let indent = if row.kind == LiveKind::Server { "  " } else { "" };
    format!("{indent}{}", printable(&row.label))
}

/// Shortens a text in its middle.
fn cut(text: &str, width: usize, theme: Theme) -> String {
    let text = shortened(text, width);
    if theme.has_unicode { text } else { text.replace('…', "~") }
}

/// Returns the name of the selected row and the reasons for its state.
fn reasons(board: &Board, theme: Theme) -> Vec<Line<'static>> {
    let Some(row) = board.selected() else { return Vec::new() };
    let mut lines = vec![Line::default()];
    let mut spans = vec![Span::styled(printable(&row.name).into_owned(), theme.style(Tone::Strong))];
    for reason in &row.reasons {
        let before = if spans.len() == 1 { ": " } else { "; " };
        spans.push(Span::raw(before));
        spans.push(Span::styled(reason.text().to_owned(), theme.style(reason.tone())));
    }
    lines.push(Line::from(spans));
    lines
}

fn events(board: &Board, area: Rect, theme: Theme) -> Vec<Line<'static>> {
    let most = usize::from(area.height).saturating_sub(2);
    if most == 0 {
        return Vec::new();
    }
    let shown = board.events(most).map(|event| Line::styled(event.text.clone(), theme.style(event.tone)));
    [Line::default(), Line::styled("EVENTS", theme.style(Tone::Faint))].into_iter().chain(shown).collect()
}

fn help(theme: Theme) -> Vec<Line<'static>> {
    let line = |(keys, what): &(&str, &str)| {
        Line::from(vec![
            Span::styled(format!("  {keys:<13}"), theme.style(Tone::Strong)),
            Span::raw((*what).to_owned()),
        ])
    };
    let notes = [
        "",
        "/S and the charts are between two pictures; P50 and P95 are the times within",
        "which half and 95 % of the responses of the last 10 to 20 s began (TCP:",
        "connections to servers). ERRORS counts since the start.",
    ];
    KEYS.iter().map(line).chain(notes.map(Line::from)).collect()
}

fn foot(board: &Board, theme: Theme, now: Instant) -> Line<'static> {
    match &board.mode {
        Mode::Confirm { server, state, warning } => {
            let verb = match *state {
                "drain" => "drain",
                "ready" => "make ready",
                _ => "take out for maintenance",
            };
            Line::styled(
                format!("{warning}{verb} {}? y: yes, other keys: no", printable(server)),
                theme.style(Tone::Warning).add_modifier(Modifier::BOLD),
            )
        }
        Mode::Filter { .. } => Line::raw(format!("/{}_  Enter: show, Esc: back", printable(&board.filter))),
        Mode::Details { .. } => Line::styled("Esc back  arrows scroll  q quit", theme.style(Tone::Faint)),
        Mode::Help => Line::styled("any key: back", theme.style(Tone::Faint)),
        Mode::List => match board.message(now) {
            Some((text, tone)) => Line::styled(printable(text).into_owned(), theme.style(tone)),
            None => Line::styled(
                "Enter details  d drain  r ready  m maintenance  / filter  s sort  p pause  ? q",
                theme.style(Tone::Faint),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::board::tests::board;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    const THEME: Theme = Theme { has_colours: false, has_unicode: true };

    fn drawn(board: &mut Board, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let now = Instant::now();
        terminal.draw(|frame| draw(board, frame, THEME, now)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn the_picture_fits_80_columns_and_24_lines() {
        let lines = drawn(&mut board(), 80, 24);
        let text = lines.join("\n");
        for part in ["NAME", "pool web", "  a ", "down 3s", "200ms", "900ms", "EVENTS", "d drain", "? q"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("OUT/S"), "{text}");
        assert!(drawn(&mut board(), 160, 50).join("\n").contains("OUT/S"));
    }

    #[test]
    fn no_size_of_a_terminal_is_too_small() {
        for mode in [
            Mode::List,
            Mode::Help,
            Mode::Details { scroll: 9 },
            Mode::Filter { before: String::new() },
            Mode::Confirm { server: "web/a".into(), state: "drain", warning: "" },
        ] {
            for (width, height) in (0..30).flat_map(|height| [1, 2, 7, 40, 300].map(|width| (width, height)))
            {
                let mut board = board();
                board.mode = mode.clone();
                board.step(5);
                if width > 0 && height > 0 {
                    drawn(&mut board, width, height);
                }
            }
        }
    }

    #[test]
    fn the_selected_row_is_in_sight() {
        let mut board = board();
        board.step(6);
        let lines = drawn(&mut board, 80, 6);
        assert!(lines.iter().any(|line| line.contains("  a ")), "{lines:?}");
        assert!(board.top > 0);
        board.step(-100);
        assert!(drawn(&mut board, 80, 6)[2].starts_with("www"));
        assert_eq!(board.top, 0);
    }

    #[test]
    fn the_reasons_of_the_selected_row_and_a_lost_instance_are_shown() {
        let mut board = board();
        board.step(4);
        assert!(drawn(&mut board, 80, 24).join("\n").contains("web/b: down: connect: refused"));
        board.lose("no instance listens".into(), Instant::now());
        assert!(drawn(&mut board, 80, 24)[1].starts_with("NO INSTANCE for 0s: no instance listens"));
    }
}
