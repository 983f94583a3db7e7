//! `evener plan`, `evener apply` and `evener confirm`.

use super::AdminArgs;
use super::client::percent_encoded;
use super::run::DEFAULT_FILE;
use crate::admin::client::Refused;
use crate::admin::plan::{ConfirmedView, MaxMoved};
use crate::output::printable;
use crate::state::{ApplyView, PlanView};
use crate::table::{ColorChoice, Style};
use anyhow::Context;
use clap::Args;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Exit status of a plan with changes.
const CHANGES: u8 = 2;

/// `evener plan FILE`
#[derive(Args, Debug)]
pub(super) struct PlanCommand {
    /// File of the configuration, or - for the standard input
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// `evener apply FILE`
#[derive(Args, Debug)]
pub(super) struct ApplyCommand {
    /// File of the configuration, or - for the standard input
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Change nothing if more clients and flows would move: a number, or a part such as 1%
    #[arg(long, value_name = "NUMBER|PERCENT%")]
    max_moved: Option<MaxMoved>,
    /// Go back to the configuration before after this time, unless `evener confirm` keeps the new one
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    confirm: Option<Duration>,
    /// Change nothing if the running configuration, the file or its inputs changed since this plan
    #[arg(long, value_name = "PLAN")]
    if_unchanged: Option<String>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// `evener confirm`
#[derive(Args, Debug)]
pub(super) struct ConfirmCommand {
    /// Go back to the configuration before now
    #[arg(long)]
    back: bool,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// Returns the text of a file, and its absolute path. Relative paths in the standard input begin at the present
/// directory.
fn read(file: &Path) -> anyhow::Result<(Vec<u8>, PathBuf)> {
    if file == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).context("the standard input cannot be read")?;
        return Ok((text, std::path::absolute("stdin")?));
    }
    let text = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok((text, std::path::absolute(file)?))
}

fn show_warnings(warnings: &[String], admin_args: &AdminArgs) {
    if !admin_args.is_json() {
        warnings.iter().for_each(|warning| eprintln!("evener: {}", printable(warning)));
    }
}

impl PlanCommand {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let Self { file, admin_args } = self;
        let (text, path) = read(&file)?;
        let query = format!("/v1/plan?file={}", percent_encoded(&path.to_string_lossy()));
        let plan: PlanView = admin_args.client()?.post_text(&query, text).await?;
        show_warnings(plan.warnings(), &admin_args);
        admin_args.print(&plan, |plan| plan.text(Style::of_stdout(ColorChoice::Auto)))?;
        Ok(if plan.is_unchanged() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
    }
}

impl ApplyCommand {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { file, max_moved, confirm, if_unchanged, admin_args } = self;
        let (text, path) = read(&file)?;
        let mut query = format!("/v1/apply?file={}", percent_encoded(&path.to_string_lossy()));
        let confirm = confirm.map(|time| humantime::format_duration(time).to_string());
        let options = [
            ("max_moved", max_moved.map(|most| most.to_string())),
            ("confirm", confirm),
            ("if_unchanged", if_unchanged),
        ];
        for (name, value) in options {
            let encoded = value.map(|value| format!("&{name}={}", percent_encoded(&value)));
            query += &encoded.unwrap_or_default();
        }
        let applied = admin_args.client()?.post_text(&query, text).await;
        let applied: ApplyView = applied.map_err(|error: anyhow::Error| {
            let note = "not applied: the instance continues with its previous configuration";
            if error.is::<Refused>() { anyhow::anyhow!("{error:#}\n{note}") } else { error }
        })?;
        show_warnings(applied.warnings(), &admin_args);
        admin_args.print(&applied, ApplyView::text)
    }
}

impl ConfirmCommand {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { back, admin_args } = self;
        let client = admin_args.client()?;
        let done: ConfirmedView = if back {
            client.delete("/v1/confirm").await?
        } else {
            client.post("/v1/confirm", &serde_json::Value::Null).await?
        };
        admin_args.print(&done, ConfirmedView::text)
    }
}
