//! `evener expunge`: answers that a service of DNS keeps are taken out.

use super::Talk;
use super::talk::print_json;
use crate::admin::cache::{ExpungeWanted, ExpungedView};
use crate::admin::client::Client;
use clap::Args;

/// Whose kept answers should go.
#[derive(Args, Debug)]
pub(super) struct Expunge {
    /// The service
    service: String,
    /// The name whose answers go
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    /// And those of all names below it
    #[arg(long, requires = "name", conflicts_with = "all")]
    below: bool,
    /// Everything that is kept
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    talk: Talk,
}

/// `evener expunge SERVICE NAME [--below] | --all`
pub(super) async fn expunge(what: Expunge) -> anyhow::Result<()> {
    let Expunge { service, name, below, all, talk } = what;
    let wanted = ExpungeWanted { service, name, below, all };
    let done: ExpungedView = Client::find(talk.socket.as_deref())?.post("/v1/cache/expunge", &wanted).await?;
    if talk.json {
        return print_json(&done);
    }
    let answers = if done.expunged == 1 { "answer" } else { "answers" };
    println!("{}: {} {answers} expunged", done.service, done.expunged);
    Ok(())
}
