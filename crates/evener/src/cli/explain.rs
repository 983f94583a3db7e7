//! `evener explain`: the server that a client gets, asked of an instance, recorded, or derived from a recording.

use super::AdminArgs;
use super::connections::path_with;
use crate::state::{Explanation, RecordedChoice};
use anyhow::Context;
use clap::Args;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Maximum size of a recording.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// `evener explain SERVICE CLIENT`
#[derive(Args, Debug)]
pub(super) struct ExplainCommand {
    /// The service
    #[arg(required_unless_present = "replay")]
    service: Option<String>,
    /// The client's IP address
    #[arg(value_parser = client_address, required_unless_present = "replay")]
    client: Option<std::net::IpAddr>,
    /// Host name of the request (HTTP) or SNI of the connection (TLS), for services with routes
    #[arg(long)]
    host: Option<String>,
    /// Path of the request (HTTP)
    #[arg(long, value_parser = request_path)]
    path: Option<String>,
    /// Write all inputs of the choice to a file, from which --replay derives it again
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Derive the choice from the inputs in a file of --record, without an instance; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["service", "client", "host", "path", "record"])]
    replay: Option<PathBuf>,
    #[command(flatten)]
    admin_args: AdminArgs,
}

/// Parses the IP address of a client.
fn client_address(text: &str) -> Result<std::net::IpAddr, String> {
    text.parse().map_err(|_| {
        "not an IP address: give the address of the client, such as 192.0.2.7; --host takes the host name of a request"
            .into()
    })
}

/// Checks the path of a request.
fn request_path(text: &str) -> Result<String, String> {
    let has_slash = text.starts_with('/');
    has_slash.then(|| text.to_owned()).ok_or_else(|| format!("a path begins with a slash: write /{text}"))
}

impl ExplainCommand {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        if let Some(file) = &self.replay {
            let explanation = replay(file).with_context(|| file.display().to_string())?;
            return self.admin_args.print(&explanation, Explanation::text);
        }
        let client = self.client.map(|client| client.to_string());
        let values = [
            ("service", self.service.as_deref()),
            ("client", client.as_deref()),
            ("host", self.host.as_deref()),
            ("path", self.path.as_deref()),
            ("record", self.record.as_ref().map(|_| "true")),
        ];
        let instance = self.admin_args.client()?;
        let mut explanation: Explanation = instance.get(&path_with("/v1/explain", &values, None)).await?;
        if let Some(file) = &self.record {
            record(&mut explanation, file)?;
        }
        self.admin_args.print(&explanation, Explanation::text)
    }
}

/// Writes the inputs of a choice.
fn record(explanation: &mut Explanation, file: &Path) -> anyhow::Result<()> {
    let recorded = RecordedChoice::new(explanation, SystemTime::now());
    let recorded = recorded.context(
        "nothing to record: no server is chosen for this client, or the kernel chooses it (XDP, IPVS)",
    )?;
    let text = serde_json::to_string_pretty(&recorded)? + "\n";
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

/// Derives a choice from a file.
fn replay(file: &Path) -> anyhow::Result<Explanation> {
    let reader: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(std::fs::File::open(file)?),
    };
    let mut bytes = Vec::new();
    reader.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        anyhow::bail!("not a recorded choice: the file is larger than {FILE_BYTES_MAX} bytes");
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(RecordedChoice::parse(&text)?.replay()?)
}
