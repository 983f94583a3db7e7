//! `evener events`: the recent events of the running instance, and the events that follow.

use super::AdminArgs;
use crate::events::{Line, RecentEvents};
use clap::Args;
use clap::builder::PossibleValuesParser;
use evener_core::event::Level;

/// `evener events`
#[derive(Args, Debug)]
pub(super) struct EventsCommand {
    /// Wait for further events and show each one when it occurs
    #[arg(long, short)]
    follow: bool,
    /// Lowest level of events to show; debug events are shown only while they are followed
    #[arg(long, default_value = "info", value_parser = PossibleValuesParser::new(Level::ALL.map(Level::name)))]
    level: String,
    /// Show only events after the event with this number, which --json shows
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    after: u64,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl EventsCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let Self { follow, level, after, admin_args } = self;
        let client = admin_args.client()?;
        let path = format!("/v1/events?level={level}&after={after}&follow={follow}");
        if !follow {
            let events: RecentEvents = client.get(&path).await?;
            return admin_args.print(&events, RecentEvents::text);
        }
        let show = |line: Line| {
            if admin_args.is_json() {
                println!("{}", serde_json::to_string(&line)?);
            } else {
                print!("{}", line.text());
            }
            Ok(())
        };
        client.follow(&path, show).await
    }
}
