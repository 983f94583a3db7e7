//! The keys and what they do.

use super::board::{Board, Mode};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::time::Instant;

/// Rows of a page.
const PAGE: isize = 10;
/// Longest filter.
const FILTER_MAX: usize = 60;

/// The keys, for the help.
pub(super) const KEYS: [(&str, &str); 12] = [
    ("up down, k j", "select a row; also Page up, Page down, Home, End"),
    ("Enter", "everything about the selected row; Esc goes back"),
    ("d", "drain the server: no new clients"),
    ("r", "make the server ready again"),
    ("m", "maintenance: no clients and no checks"),
    ("/", "show only rows whose name, state or reason has a text; Esc shows all"),
    ("s", "sort: as configured, rate, active, errors, slowest"),
    ("p, Space", "pause the picture, and go on"),
    ("Ctrl-L", "draw everything again"),
    ("Ctrl-Z", "stop, as other programs; `fg` goes on"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit"),
];

/// An action of the program at a key, besides a change of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Quit,
    Suspend,
    Redraw,
    /// The picture was paused, or goes on.
    Pause,
    SetState {
        server: String,
        state: &'static str,
    },
}

impl Board {
    /// Handles a key.
    pub(super) fn on_key(&mut self, key: KeyEvent) -> Option<Command> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Command::Quit),
                KeyCode::Char('z') => Some(Command::Suspend),
                KeyCode::Char('l') => Some(Command::Redraw),
                _ => None,
            };
        }
        match self.mode.clone() {
            Mode::List => self.on_list_key(key.code),
            Mode::Details { scroll } => self.on_details_key(key.code, scroll),
            Mode::Help => {
                self.mode = Mode::List;
                (key.code == KeyCode::Char('q')).then_some(Command::Quit)
            }
            Mode::Filter { before } => {
                self.on_filter_key(key.code, before);
                None
            }
            Mode::Confirm { server, state, .. } => {
                self.mode = Mode::List;
                let is_confirmed = matches!(key.code, KeyCode::Char('y' | 'Y'));
                is_confirmed.then_some(Command::SetState { server, state })
            }
        }
    }

    fn on_list_key(&mut self, code: KeyCode) -> Option<Command> {
        let now = Instant::now();
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-PAGE),
            KeyCode::PageDown => self.step(PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Enter if self.selected().is_some() => self.mode = Mode::Details { scroll: 0 },
            KeyCode::Char('d') => self.ask("drain", now),
            KeyCode::Char('r') => self.ask("ready", now),
            KeyCode::Char('m') => self.ask("maintenance", now),
            KeyCode::Char('/') => self.mode = Mode::Filter { before: self.filter.clone() },
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => self.next_order(),
            KeyCode::Char('p' | ' ') => {
                self.toggle_pause();
                return Some(Command::Pause);
            }
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Char('q') => return Some(Command::Quit),
            _ => {}
        }
        None
    }

    fn on_details_key(&mut self, code: KeyCode, scroll: u16) -> Option<Command> {
        let page = PAGE.unsigned_abs() as u16;
        let scroll = match code {
            KeyCode::Up | KeyCode::Char('k') => scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => scroll.saturating_add(1),
            KeyCode::PageUp => scroll.saturating_sub(page),
            KeyCode::PageDown | KeyCode::Char(' ') => scroll.saturating_add(page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::Char('d' | 'r' | 'm') => {
                self.mode = Mode::List;
                return self.on_list_key(code);
            }
            KeyCode::Char('q') => return Some(Command::Quit),
            _ => {
                self.mode = Mode::List;
                return None;
            }
        };
        self.mode = Mode::Details { scroll };
        None
    }

    fn on_filter_key(&mut self, code: KeyCode, before: String) {
        match code {
            KeyCode::Enter => self.mode = Mode::List,
            KeyCode::Esc => {
                self.filter = before;
                self.mode = Mode::List;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(character) if self.filter.chars().count() < FILTER_MAX => {
                self.filter.push(character);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::board::tests::board;

    /// Types keys. `\n` is Enter, `\x1b` is Esc.
    fn typed(board: &mut Board, keys: &str) -> Option<Command> {
        let code = |key| match key {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            key => KeyCode::Char(key),
        };
        keys.chars().map(|key| board.on_key(KeyEvent::new(code(key), KeyModifiers::NONE))).last().flatten()
    }

    #[test]
    fn a_change_of_a_server_needs_a_confirmation() {
        for (keys, expected) in [
            ("jjjdy", Some("drain")),
            ("jjjmy", Some("maintenance")),
            ("jjjjry", Some("ready")),
            ("jjjdn", None),
            ("jjjd\x1b", None),
            ("dy", None),
        ] {
            let state = match typed(&mut board(), keys) {
                Some(Command::SetState { state, .. }) => Some(state),
                _ => None,
            };
            assert_eq!(state, expected, "{keys:?}");
        }
    }

    #[test]
    fn a_filter_is_typed_until_enter_and_escape_brings_the_earlier_one_back() {
        let mut board = board();
        typed(&mut board, "/web\n");
        assert_eq!((board.filter.as_str(), &board.mode), ("web", &Mode::List));
        typed(&mut board, "/q\x1b");
        assert_eq!(board.filter, "web");
        typed(&mut board, "\x1b");
        assert_eq!(board.filter, "");
        typed(&mut board, &format!("/{}", "x".repeat(1000)));
        assert_eq!(board.filter.len(), FILTER_MAX);
    }

    #[test]
    fn control_keys_work_everywhere() {
        for keys in ["", "\n", "?", "/x", "jjjd"] {
            let mut board = board();
            typed(&mut board, keys);
            let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
            assert_eq!(board.on_key(end), Some(Command::Quit), "{keys:?}");
        }
    }
}
