//! `evener add`, `evener remove` and `evener weight`, which change the servers of pools; `evener save`, which writes the
//! running configuration.

use super::AdminArgs;
use super::client::percent_encoded;
use crate::admin::configuration::WITHOUT_FUNCTIONS;
use crate::admin::servers::{AddRequest, ChangeRequest, ServerChangedView};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `evener add POOL ADDRESS`
#[derive(Args, Debug)]
pub(super) struct AddCommand {
    /// The pool
    pool: String,
    /// Address of the server, such as 10.0.0.5:80
    address: String,
    /// Name of the server (default: its address)
    #[arg(long)]
    name: Option<String>,
    /// Share of the new clients
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// Tier: 1 is used first
    #[arg(long, value_name = "N")]
    tier: Option<u8>,
    /// Maximum number of connections
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// State: ready, drain or maintenance
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl AddCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mut settings = Map::new();
        let mut set =
            |key: &str, value: Option<Value>| settings.extend(value.map(|value| (key.to_owned(), value)));
        set("name", self.name.clone().map(Value::from));
        set("weight", self.weight.map(Value::from));
        set("tier", self.tier.map(Value::from));
        set("max", self.max.map(Value::from));
        set("state", self.state.clone().map(Value::from));
        let path = format!("/v1/pools/{}/servers", percent_encoded(&self.pool));
        let wanted = AddRequest::new(&self.address, settings);
        let done: ServerChangedView = self.admin_args.client()?.post(&path, &wanted).await?;
        self.admin_args.print(&done, |done| done.text("added"))
    }
}

/// Returns the path of a server in the API, given `pool/server`.
fn path_of(server: &str) -> anyhow::Result<String> {
    let Some((pool, name)) = server.split_once('/') else {
        bail!("give the pool and the server: POOL/SERVER, such as web/10.0.0.1:80")
    };
    Ok(format!("/v1/pools/{}/servers/{}", percent_encoded(pool), percent_encoded(name)))
}

/// `evener remove POOL/SERVER`
#[derive(Args, Debug)]
pub(super) struct RemoveCommand {
    /// The server: pool/server
    server: String,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl RemoveCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let path = path_of(&self.server)?;
        let done: ServerChangedView = self.admin_args.client()?.delete(&path).await?;
        self.admin_args.print(&done, |done| done.text("removed"))
    }
}

/// `evener weight POOL/SERVER N`
#[derive(Args, Debug)]
pub(super) struct WeightCommand {
    /// The server: pool/server
    server: String,
    /// Share of the new clients; 0: no new clients
    weight: u32,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl WeightCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let (path, wanted) = (path_of(&self.server)?, ChangeRequest::weight(self.weight));
        let done: ServerChangedView = self.admin_args.client()?.patch(&path, &wanted).await?;
        self.admin_args.print(&done, ServerChangedView::values_text)
    }
}

/// `evener save [FILE]`
#[derive(Args, Debug)]
pub(super) struct SaveCommand {
    /// File that is replaced, or - for the standard output [default: -]
    file: Option<PathBuf>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

impl SaveCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let client = self.admin_args.client()?;
        if self.admin_args.is_json() {
            let json: Value = client.get("/v1/config?format=json").await?;
            return self.admin_args.print(&json, |_| String::new());
        }
        let text = client.text("/v1/config?format=lua").await?;
        let Some(file) = self.file.as_ref().filter(|file| file.as_os_str() != "-") else {
            print!("{text}");
            return Ok(());
        };
        if text.starts_with(WITHOUT_FUNCTIONS) {
            bail!(
                "not saved: the configuration has functions, which cannot be printed and would be lost; `evener save` \
                 without a file prints the rest"
            );
        }
        write(file, &text).with_context(|| format!("{} cannot be written", file.display()))?;
        eprintln!("{}: saved", file.display());
        Ok(())
    }
}

/// Replaces a file in one step.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = file.with_file_name(name);
    let mut out = OpenOptions::new().write(true).create_new(true).open(&new)?;
    // The users that may read the file stay the same.
    let permissions = fs::metadata(file).map(|metadata| metadata.permissions());
    let written = permissions.map_or(Ok(()), |permissions| out.set_permissions(permissions));
    let written = written.and_then(|()| out.write_all(text.as_bytes())).and_then(|()| out.sync_all());
    let written = written.and_then(|()| fs::rename(&new, file));
    written.inspect_err(|_| drop(fs::remove_file(&new)))
}
