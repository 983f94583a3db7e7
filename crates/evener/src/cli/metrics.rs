//! `evener metrics`

use super::AdminArgs;
use clap::Args;

/// `evener metrics`
#[derive(Args, Debug)]
pub(super) struct MetricsCommand {
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl MetricsCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        if self.admin_args.is_json() {
            anyhow::bail!("the metrics have no JSON: `evener status --json` has the same numbers");
        }
        let text = self.admin_args.client()?.text("/metrics").await?;
        crate::output::to_stdout(format_args!("{text}"));
        Ok(())
    }
}
