//! The terminal: the screen that is drawn on, and the keys. However the program ends or stops, the terminal is as it
//! was before.

use super::poll::Update;
use crossterm::cursor::{Hide, Show};
use crossterm::event::{self, Event, KeyEventKind};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use nix::sys::signal::{Signal, raise};
use ratatui::backend::CrosstermBackend;
use ratatui::style::{Color, Modifier, Style};
use ratatui::{Frame, Terminal};
use std::io::{self, Stdout, stdout};
use std::sync::Once;
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// Interval at which the thread that reads keys looks whether the program goes on.
const READ_TIMEOUT: Duration = Duration::from_millis(250);

/// The screen. Its drop restores the terminal.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    theme: Theme,
}

/// Abilities of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Theme {
    pub(super) has_colours: bool,
    pub(super) has_unicode: bool,
}

impl Theme {
    /// Returns the theme for the environment: no colours if NO_COLOR is set (<https://no-color.org>), and Unicode if
    /// the locale is in UTF-8.
    fn of_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        Self {
            has_colours: variable("NO_COLOR").is_none(),
            has_unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// Returns the style of a text with a meaning.
    pub(super) fn style(self, tone: crate::table::Tone) -> Style {
        use crate::table::Tone;
        let style = Style::new();
        let colour = |colour| if self.has_colours { style.fg(colour) } else { style };
        match tone {
            Tone::Normal => style,
            Tone::Faint => style.add_modifier(Modifier::DIM),
            Tone::Strong => style.add_modifier(Modifier::BOLD),
            Tone::Warning => colour(Color::Yellow),
            Tone::Bad => colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }
}

/// Begins to draw on the whole screen.
fn begin() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, Hide)
}

/// Restores the terminal. A failure is ignored: the terminal may have gone.
fn restore() {
    let _ = execute!(stdout(), Show, LeaveAlternateScreen);
    let _ = disable_raw_mode();
}

/// Restores the terminal before a panic is printed. The drop of the screen is too late for that, and does not run in
/// a program that aborts at a panic.
fn restore_at_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            print(info);
        }));
    });
}

impl Screen {
    pub(super) fn enter() -> io::Result<Self> {
        restore_at_panic();
        let begun = begin().and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match begun {
            Ok(terminal) => Ok(Self { terminal, theme: Theme::of_environment() }),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }

    pub(super) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>, Theme)) -> io::Result<()> {
        let theme = self.theme;
        self.terminal.draw(|frame| picture(frame, theme)).map(drop)
    }

    /// Restores the terminal and stops the process until it is continued.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        restore();
        // SIGTSTP is caught, so the process stops by the signal that cannot be.
        raise(Signal::SIGSTOP)?;
        self.resume()
    }

    /// Draws on the whole screen again, after the process was stopped or another program has written to the
    /// terminal.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        // The shell may have changed the mode meanwhile, and a mode that is on is not set again.
        let _ = disable_raw_mode();
        begin()?;
        self.terminal.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Starts to read keys and changes of the size. They become updates.
pub(super) fn read_keys(updates: Sender<Update>) {
    let read = move || {
        while !updates.is_closed() {
            let update =
                match event::poll(READ_TIMEOUT).and_then(|is_there| is_there.then(event::read).transpose()) {
                    Ok(None) => continue,
                    Ok(Some(Event::Key(key))) if key.kind != KeyEventKind::Release => Update::Key(key),
                    Ok(Some(Event::Resize(..))) => Update::Resized,
                    Ok(Some(_)) => continue,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => Update::NoTerminal,
                };
            let is_last = matches!(update, Update::NoTerminal);
            if updates.blocking_send(update).is_err() || is_last {
                return;
            }
        }
    };
    // Without this thread there are no keys, but signals still end the program.
    let _ = std::thread::Builder::new().name("keys".into()).spawn(read);
}
