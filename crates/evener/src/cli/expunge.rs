//! `evener expunge`: removes responses from the cache of a DNS service.

use super::AdminArgs;
use crate::admin::cache::{ExpungeRequest, ExpungedView};
use clap::Args;

/// Selects the cached responses to remove.
#[derive(Args, Debug)]
pub(super) struct Expunge {
    /// The service
    service: String,
    /// Name whose responses are removed
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    /// Also remove the responses of all names below this name
    #[arg(long, requires = "name", conflicts_with = "all")]
    below: bool,
    /// Remove all responses
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// `evener expunge SERVICE NAME [--below] | --all`
pub(super) async fn expunge(command: Expunge) -> anyhow::Result<()> {
    // The command line has either a name or `--all`.
    let Expunge { service, name, below, all: _, admin_args } = command;
    let wanted = match name {
        Some(name) => ExpungeRequest::name(service, name, below),
        None => ExpungeRequest::all(service),
    };
    let done: ExpungedView = admin_args.client()?.post("/v1/cache/expunge", &wanted).await?;
    admin_args.print(&done, ExpungedView::text)
}
