//! Tables of figures that fit a terminal of 80 columns: a name, figures, and further lines below a row. A name
//! that is too long for its column has its own line, so that it can still be copied.

use crate::output::printable;
use std::io::IsTerminal;

/// Maximum width of a line.
pub(crate) const WIDTH: usize = 80;
/// Minimum width of the column of names.
const NAME_MIN: usize = 8;
/// Spaces before a line that belongs to the row above.
const DETAIL_INDENT: usize = 4;

/// Choice of colours on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ColorChoice {
    Auto,
    Always,
    Never,
}

/// Use of colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Colour,
}

impl Style {
    /// Returns the style for standard output. By default there are colours on a terminal, unless NO_COLOR is set
    /// (<https://no-color.org>) or TERM is `dumb`.
    pub(crate) fn of_stdout(choice: ColorChoice) -> Self {
        match choice {
            ColorChoice::Always => return Self::Colour,
            ColorChoice::Never => return Self::Plain,
            ColorChoice::Auto => {}
        }
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let has_colours = std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb;
        if has_colours { Self::Colour } else { Self::Plain }
    }

    fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            _ if self == Self::Plain || text.trim().is_empty() => return text.to_owned(),
            Tone::Normal => return text.to_owned(),
            Tone::Faint => "2",
            Tone::Strong => "1",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Meaning of a text, which decides on its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Normal,
    Faint,
    Strong,
    Warning,
    Bad,
}

/// A text with its meaning.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: printable(&text.into()).into_owned(), tone }
    }

    /// Changes the meaning if the condition holds.
    pub(crate) fn toned_if(self, condition: bool, tone: Tone) -> Self {
        if condition { Self { tone, ..self } } else { self }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn tone(&self) -> Tone {
        self.tone
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Tone::Normal)
    }
}

/// A row of a table: a name, a figure for each column, and lines below.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: String,
    /// Facts in brackets behind the name, or on a line below if the table would be too wide.
    remark: String,
    cells: Vec<Cell>,
    details: Vec<Cell>,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, cells: Vec<Cell>) -> Self {
        Self { name: printable(&name.into()).into_owned(), remark: String::new(), cells, details: Vec::new() }
    }

    /// Adds facts in brackets behind the name.
    pub(crate) fn with_remark(self, remark: &str) -> Self {
        Self { remark: printable(remark).into_owned(), ..self }
    }

    /// Returns the name with the remark.
    fn label(&self) -> String {
        if self.remark.is_empty() { self.name.clone() } else { format!("{} ({})", self.name, self.remark) }
    }

    /// Adds a line below the row, which is wrapped if it is long.
    pub(crate) fn add_detail(&mut self, detail: impl Into<Cell>) {
        self.details.push(detail.into());
    }

    /// Adds lines below the row.
    pub(crate) fn add_details(&mut self, details: impl Iterator<Item = Cell>) {
        self.details.extend(details);
    }
}

/// Formats rows below a heading. The first heading is the column of names; the headings of columns that are
/// aligned to the left begin with `<`. Each line begins with `indent` spaces.
pub(crate) fn report(heading: &[&str], rows: &[Row], indent: usize, style: Style) -> String {
    let columns: Vec<Column> = (1..heading.len()).map(|at| Column::new(heading[at], at - 1, rows)).collect();
    let figures: usize = columns.iter().map(|column| column.width + 2).sum();
    let room = WIDTH.saturating_sub(indent + figures).max(NAME_MIN);
    let are_inline = rows.iter().all(|row| row.label().chars().count() <= room);
    let name_of = |row: &Row| if are_inline { row.label() } else { row.name.clone() };
    let names = rows.iter().map(|row| name_of(row).chars().count()).chain([heading[0].chars().count()]);
    let name_width = names.filter(|width| *width <= room).max().unwrap_or(NAME_MIN);
    let margin = " ".repeat(indent);
    let headings: String = columns.iter().map(|column| column.padded(column.heading)).collect();
    let line = format!("{margin}{:<name_width$}{headings}", heading[0]);
    let mut text = style.paint(line.trim_end(), Tone::Faint) + "\n";
    for row in rows {
        let (mut name, mut before) = (name_of(row), String::new());
        if name.chars().count() > name_width {
            before = format!("{margin}{}\n", shortened(&name, WIDTH - indent));
            name.clear();
        }
        let cells = columns.iter().zip(&row.cells);
        let last = row.cells.len().saturating_sub(1);
        let cells: String = cells
            .enumerate()
            .map(|(at, (column, cell))| {
                let padded = column.padded(&cell.text);
                style.paint(if at == last { padded.trim_end() } else { &padded }, cell.tone)
            })
            .collect();
        text += &format!("{before}{margin}{name:<name_width$}{cells}\n");
        if !are_inline && !row.remark.is_empty() {
            text += &detail_text(&Cell::new(&*row.remark, Tone::Faint), indent, style);
        }
        row.details.iter().for_each(|detail| text += &detail_text(detail, indent, style));
    }
    text
}

/// Formats a line below a row.
fn detail_text(detail: &Cell, indent: usize, style: Style) -> String {
    let lines = wrapped(&detail.text, indent + DETAIL_INDENT);
    lines.lines().map(|line| style.paint(line, detail.tone) + "\n").collect()
}

/// Formats a line on its own, wrapped if it is long.
pub(crate) fn paragraph(text: &str, indent: usize, tone: Tone, style: Style) -> String {
    wrapped(text, indent).lines().map(|line| style.paint(line, tone) + "\n").collect()
}

/// A column of figures.
struct Column<'a> {
    heading: &'a str,
    is_left: bool,
    width: usize,
}

impl<'a> Column<'a> {
    fn new(heading: &'a str, at: usize, rows: &[Row]) -> Self {
        let text = heading.strip_prefix('<');
        let is_left = text.is_some();
        let heading = text.unwrap_or(heading);
        let widths = rows.iter().filter_map(|row| row.cells.get(at)).map(Cell::width);
        Self { heading, is_left, width: widths.chain([heading.chars().count()]).max().unwrap_or(0) }
    }

    fn padded(&self, text: &str) -> String {
        let width = self.width;
        if self.is_left { format!("  {text:<width$}") } else { format!("  {text:>width$}") }
    }
}

/// Breaks a text into lines of at most [`WIDTH`] characters. Each line begins with `indent` spaces; lines after the
/// first line begin with two more. A longer word is shortened in the middle. Control characters are escaped: a part
/// of the text may be from a server.
fn wrapped(text: &str, indent: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let word = printable(word);
        let margin = indent + if lines.is_empty() { 0 } else { 2 };
        let word = shortened(&word, WIDTH - margin);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(" ".repeat(margin) + &word),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Replaces the middle of a text by `…` if the text has more than `most` characters.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= most {
        return text.to_owned();
    }
    let (begin, end) = (most / 2, most - most / 2 - 1);
    let (begin, end) = (&chars[..begin], &chars[chars.len() - end..]);
    begin.iter().chain(&['…']).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, cells: &[&str]) -> Row {
        Row::new(name, cells.iter().map(|cell| Cell::from((*cell).to_owned())).collect())
    }

    #[test]
    fn figures_are_aligned_to_the_right_and_long_names_have_separate_lines() {
        let long = "a".repeat(70);
        let mut last = row("b", &["down 3m", "7"]);
        last.add_detail("connect: refused".to_owned());
        let rows = [row("a", &["up", "120"]), row(&long, &["up", "1"]), last];
        let expected = format!(
            "  SERVER  STATE    REQUESTS\n  a       up            120\n  {long}\n          up              1\n  b       \
             down 3m         7\n      connect: refused\n"
        );
        assert_eq!(report(&["SERVER", "<STATE", "REQUESTS"], &rows, 2, Style::Plain), expected);
    }

    #[test]
    fn remarks_are_below_the_names_if_the_table_would_be_too_wide() {
        let heading = ["SERVER", "N"];
        let short = [row("a", &["1"]).with_remark("10.0.0.1:80")];
        assert_eq!(report(&heading, &short, 0, Style::Plain), "SERVER           N\na (10.0.0.1:80)  1\n");
        let long = [row("a", &["1"]).with_remark(&"x".repeat(76))];
        let expected = format!("SERVER  N\na       1\n    {}\n", "x".repeat(76));
        assert_eq!(report(&heading, &long, 0, Style::Plain), expected);
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let mut wide = row(&"n".repeat(300), &["up", "1"]);
        wide.add_detail("word ".repeat(60) + &"x".repeat(200));
        let text = report(&["SERVER", "<STATE", "REQUESTS"], &[wide], 2, Style::Plain);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains('…'), "{text}");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(wrapped("a\x1b[31m b\n", 0), "a\\u{1b}[31m b\\n\n");
        let row = row("a\x1b", &["\u{202e}"]).with_remark("\x07");
        assert_eq!(
            report(&["SERVER", "<STATE"], &[row], 0, Style::Plain),
            "SERVER           STATE\na\\u{1b} (\\u{7})  \\u{202e}\n"
        );
    }

    #[test]
    fn colours_mark_bad_figures_and_do_not_change_the_columns() {
        let cells = vec![Cell::new("down", Tone::Bad), Cell::from("1".to_owned())];
        let rows = [Row::new("a", cells), row("b", &["up", "2"])];
        let text = report(&["SERVER", "<STATE", "N"], &rows, 0, Style::Colour);
        assert!(text.contains("\x1b[31m  down \x1b[0m"), "{text:?}");
        let plain = text.replace("\x1b[31m", "").replace("\x1b[2m", "").replace("\x1b[0m", "");
        assert_eq!(plain, report(&["SERVER", "<STATE", "N"], &rows, 0, Style::Plain));
    }
}
