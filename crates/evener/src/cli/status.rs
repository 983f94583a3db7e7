//! `evener status` and `evener servers`: the state of the instance or of a part of it, once or again and again.

use super::AdminArgs;
use crate::output::printable;
use crate::state::{ServerFilter, ServersView, View};
use crate::table::{ColorChoice, Style};
use clap::Args;
use clap::builder::PossibleValuesParser;
use std::future::Future;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

/// `evener status [NAME]`
#[derive(Args, Debug)]
pub(super) struct StatusCommand {
    /// Show everything about this service, pool or server (pool/server, or just the server)
    name: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// `evener servers`
#[derive(Args, Debug)]
pub(super) struct ServersCommand {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// Conditions on servers.
#[derive(Args, Debug)]
struct FilterArgs {
    /// Only servers in this state, and their pools and services; several states are separated by commas
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = PossibleValuesParser::new(ServerFilter::STATES))]
    state: Vec<String>,
    /// Only this pool, and the services that use it
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
}

/// Options of what is printed, and how often.
#[derive(Args, Debug)]
struct OutputArgs {
    /// Print again every 2 seconds, or at this interval: drawn in place on a terminal, else below the earlier output
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,
    /// Colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
}

/// Parses an interval: seconds, or a time with a unit.
fn interval(text: &str) -> Result<Duration, String> {
    let wrong =
        || "write seconds, such as 2 or 0.5; a name of a service, pool or server comes before --watch";
    let time = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?,
        Err(_) => super::duration(text).map_err(|_| wrong())?,
    };
    let is_valid = (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&time);
    if is_valid { Ok(time) } else { Err("write a number of seconds between 0.1 and 86400".into()) }
}

impl FilterArgs {
    fn filter(&self) -> ServerFilter {
        ServerFilter::new(self.state.clone(), self.pool.clone())
    }
}

impl StatusCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        self.output.print(|style| self.text(style)).await
    }

    async fn text(&self, style: Style) -> anyhow::Result<String> {
        let filter = self.filter.filter();
        let view: View = self.admin_args.client()?.get("/v1/status").await?;
        let Some(name) = &self.name else {
            let view = view.filtered(&filter).map_err(anyhow::Error::msg)?;
            if self.admin_args.is_json() {
                return json(&view, &self.output);
            }
            let legend = match std::io::stdout().is_terminal() && self.output.watch.is_none() {
                true => View::legend(style),
                false => String::new(),
            };
            return Ok(view.text(style) + &filter.note(&view) + &legend);
        };
        let part = view.named(name).and_then(|part| part.filtered(&filter)).map_err(anyhow::Error::msg)?;
        if self.admin_args.is_json() { json(&part, &self.output) } else { Ok(part.text(style)) }
    }
}

impl ServersCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        self.output.print(|style| self.text(style)).await
    }

    async fn text(&self, style: Style) -> anyhow::Result<String> {
        let filter = self.filter.filter();
        let view: View = self.admin_args.client()?.get("/v1/status").await?;
        let view = view.filtered(&filter).map_err(anyhow::Error::msg)?;
        let servers = ServersView::of(&view);
        if self.admin_args.is_json() {
            return json(&servers, &self.output);
        }
        Ok(if servers.is_empty() { "no servers\n".into() } else { servers.text(style) })
    }
}

/// Formats a response: in one line if more follow.
fn json(response: &impl serde::Serialize, output: &OutputArgs) -> anyhow::Result<String> {
    let text = match output.watch {
        Some(_) => serde_json::to_string(response)?,
        None => serde_json::to_string_pretty(response)?,
    };
    Ok(text + "\n")
}

impl OutputArgs {
    /// Prints the text once, or at each interval. The first failure is an error; later the instance may be away for
    /// a while.
    async fn print<F>(&self, text: impl Fn(Style) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<String>>,
    {
        let style = Style::of_stdout(self.color);
        let first = text(style).await?;
        let Some(interval) = self.watch else {
            print!("{first}");
            return Ok(());
        };
        let mut watch = Watch { is_terminal: std::io::stdout().is_terminal(), interval, has_failed: false };
        watch.show(Ok(first));
        loop {
            tokio::time::sleep(interval).await;
            watch.show(text(style).await);
        }
    }
}

/// Output that is printed again and again.
struct Watch {
    is_terminal: bool,
    interval: Duration,
    /// The last request failed.
    has_failed: bool,
}

impl Watch {
    fn show(&mut self, text: anyhow::Result<String>) {
        let failed = std::mem::replace(&mut self.has_failed, text.is_err());
        match text {
            Ok(text) if self.is_terminal => self.draw(&text),
            Ok(text) => print!("{text}"),
            Err(error) if self.is_terminal => self.draw(&format!("{}\n", printable(&format!("{error:#}")))),
            Err(error) if !failed => eprintln!("evener: {}", printable(&format!("{error:#}"))),
            Err(_) => {}
        }
    }

    /// Draws over the earlier text. The lines that the terminal has no room for are counted.
    fn draw(&self, text: &str) {
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let title = format!("every {}, {time}", humantime::format_duration(self.interval));
        let height = crossterm::terminal::size().map_or(24, |(_, height)| usize::from(height).max(4));
        let (lines, room) = (text.lines().count(), height - 2);
        let mut shown: Vec<&str> = std::iter::once(title.as_str()).chain(text.lines().take(room)).collect();
        let rest = format!("({} more lines)", (lines + 1).saturating_sub(room));
        if lines > room {
            shown.truncate(room);
            shown.push(&rest);
        }
        // The cursor moves to the beginning, each line is overwritten and cleared to its end, and then all lines below
        // are cleared. This does not flicker.
        print!("\x1b[H{}\x1b[K\n\x1b[J", shown.join("\x1b[K\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_seconds_or_a_time() {
        let millis = |text| interval(text).map(|time| time.as_millis());
        assert_eq!(millis("2"), Ok(2000));
        assert_eq!(millis("0.5"), Ok(500));
        assert_eq!(millis("1m"), Ok(60_000));
        for wrong in ["0", "-1", "nan", "1e99", "web", ""] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
