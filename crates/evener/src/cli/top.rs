//! `evener top`: services, pools and servers of the running instance on a terminal, redrawn as they change, with
//! keys that drain servers.

mod board;
mod draw;
mod keys;
mod poll;
mod rates;
mod terminal;

use super::InstanceArgs;
use board::Board;
use clap::Args;
use keys::Command;
use poll::{Source, Update};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use terminal::Screen;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

/// Most updates that wait to be drawn.
const UPDATES_MAX: usize = 64;
/// Interval between pictures without an update, for the ages in them.
const REDRAW_EVERY: Duration = Duration::from_secs(1);
/// Shortest and longest interval between two requests.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

/// `evener top`
#[derive(Args, Debug)]
pub(super) struct TopCommand {
    /// Time between two pictures, such as 2s or 500ms
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    #[command(flatten)]
    instance: InstanceArgs,
}

/// Parses the time between two pictures.
fn interval(text: &str) -> Result<Duration, String> {
    let time = super::duration(text)?;
    let (least, most) = INTERVALS;
    if (least..=most).contains(&time) { Ok(time) } else { Err("write a time between 100ms and 1h".into()) }
}

/// Reason for the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Quit,
    Signal(SignalKind),
}

impl TopCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            anyhow::bail!("top needs a terminal; `evener status --watch` prints to a file or a pipe, too");
        }
        let source = Source::new(self.instance.clone());
        let first = source.poll(0).await?;
        let (updates, received) = channel(UPDATES_MAX);
        let mut board = Board::new();
        board.update(first, Instant::now());
        let polls = source.start(self.interval, board.last_event(), updates.clone());
        let mut signals = Signals::catch()?;
        let screen = Screen::enter()?;
        terminal::read_keys(updates);
        let top = Top { board, screen, source, polls };
        let end = top.show(received, &mut signals).await?;
        if let End::Signal(kind) = end {
            std::process::exit(128 + kind.as_raw_value());
        }
        Ok(())
    }
}

/// The program while it runs.
struct Top {
    board: Board,
    screen: Screen,
    source: Source,
    polls: poll::Polls,
}

impl Top {
    /// Shows the picture until the end. The terminal is restored then.
    async fn show(mut self, mut received: Receiver<Update>, signals: &mut Signals) -> anyhow::Result<End> {
        let mut redraw = tokio::time::interval(REDRAW_EVERY);
        loop {
            let now = Instant::now();
            self.screen.draw(|frame, style| draw::draw(&mut self.board, frame, style, now))?;
            tokio::select! {
                update = received.recv() => match update {
                    Some(update) => {
                        if let Some(end) = self.on_update(update)? {
                            return Ok(end);
                        }
                    }
                    None => return Ok(End::Quit),
                },
                caught = signals.next() => match caught {
                    Caught::End(kind) => return Ok(End::Signal(kind)),
                    Caught::Stop => self.screen.suspend()?,
                    Caught::Continue => self.screen.resume()?,
                },
                _ = redraw.tick() => {}
            }
        }
    }

    /// Handles an update. Returns the reason to end, if there is one.
    fn on_update(&mut self, update: Update) -> anyhow::Result<Option<End>> {
        match update {
            Update::Polled(polled) => self.board.update(polled, Instant::now()),
            Update::Failed(reason) => self.board.lose(reason, Instant::now()),
            Update::Done(outcome) => {
                self.board.report(outcome);
                self.polls.at_once();
            }
            Update::Key(key) => match self.board.on_key(key) {
                Some(Command::Quit) => return Ok(Some(End::Quit)),
                Some(Command::Suspend) => self.screen.suspend()?,
                Some(Command::Redraw) => self.screen.resume()?,
                Some(Command::Pause) => self.polls.pause(self.board.is_paused()),
                Some(Command::SetState { server, state }) => {
                    self.source.set_state(server, state, &self.polls);
                }
                None => {}
            },
            Update::Resized => {}
            Update::NoTerminal => return Ok(Some(End::Quit)),
        }
        Ok(None)
    }
}

/// Signals that the program handles.
struct Signals {
    ends: [(SignalKind, Signal); 3],
    stop: Signal,
    resume: Signal,
}

enum Caught {
    End(SignalKind),
    Stop,
    Continue,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
        let [terminate, hang_up, interrupt] = kinds;
        Ok(Self {
            ends: [
                (terminate, signal(terminate)?),
                (hang_up, signal(hang_up)?),
                (interrupt, signal(interrupt)?),
            ],
            stop: signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGTSTP as i32))?,
            resume: signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGCONT as i32))?,
        })
    }

    async fn next(&mut self) -> Caught {
        let [terminate, hang_up, interrupt] = &mut self.ends;
        tokio::select! {
            _ = terminate.1.recv() => Caught::End(terminate.0),
            _ = hang_up.1.recv() => Caught::End(hang_up.0),
            _ = interrupt.1.recv() => Caught::End(interrupt.0),
            _ = self.stop.recv() => Caught::Stop,
            _ = self.resume.recv() => Caught::Continue,
        }
    }
}
