//! `evener expunge`: removes responses from the cache of a DNS service.

use super::AdminArgs;
use super::client::print_json;
use crate::admin::cache::{ExpungeWanted, ExpungedView};
use crate::admin::client::Client;
use clap::Args;

/// Selects the cached responses to remove.
#[derive(Args, Debug)]
pub(super) struct Expunge {
    /// The service
    service: String,
    /// The name whose responses are removed
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    /// Also remove the responses of all names below it
    #[arg(long, requires = "name", conflicts_with = "all")]
    below: bool,
    /// Remove all responses
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// `evener expunge SERVICE NAME [--below] | --all`
pub(super) async fn expunge(what: Expunge) -> anyhow::Result<()> {
    let Expunge { service, name, below, all, admin_args } = what;
    let wanted = ExpungeWanted { service, name, below, all };
    let done: ExpungedView =
        Client::find(admin_args.socket.as_deref())?.post("/v1/cache/expunge", &wanted).await?;
    if admin_args.json {
        return print_json(&done);
    }
    let responses = if done.expunged == 1 { "response" } else { "responses" };
    println!("{}: {} {responses} expunged", done.service, done.expunged);
    Ok(())
}
