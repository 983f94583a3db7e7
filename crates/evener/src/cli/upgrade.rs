//! `evener upgrade`

use super::{AdminArgs, duration};
use crate::admin::upgrade::{NewInstance, UpgradeParameters};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args, Debug)]
pub(super) struct UpgradeCommand {
    /// Program of the new instance (default: the program that runs, as it is installed now)
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Time until the new instance must be ready, at most 30s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl UpgradeCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let client = self.admin_args.client()?;
        // The instance may run in another directory.
        let binary = self.binary.as_ref().map(std::path::absolute).transpose()?;
        let parameters = UpgradeParameters::new(binary, self.timeout);
        let new: NewInstance = client.post("/v1/upgrade", &parameters).await?;
        self.admin_args.print(&new, |new| format!("process {} serves now; the old one drains\n", new.pid()))
    }
}
