//! Options that name a running instance.

use crate::admin::client::Client;
use clap::Args;
use std::path::PathBuf;

/// Options that name a running instance.
#[derive(Args, Clone, Debug)]
pub(super) struct InstanceArgs {
    /// Admin socket of the instance (default: that of the only running instance)
    #[arg(long, value_name = "PATH", env = "EVENER_SOCKET")]
    socket: Option<PathBuf>,
    /// URL of the instance's API over TCP, such as https://192.0.2.1:9900, instead of a socket
    #[arg(long, value_name = "URL", requires = "token_file")]
    api: Option<String>,
    /// File with the token for --api
    #[arg(long, value_name = "FILE", env = "EVENER_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with the authorities of the certificate of --api (default: those of the system)
    #[arg(long, value_name = "FILE", env = "EVENER_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// Options of commands for a running instance.
#[derive(Args, Debug)]
pub(super) struct AdminArgs {
    #[command(flatten)]
    instance: InstanceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl AdminArgs {
    /// Returns a client of the instance.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        self.instance.client()
    }

    /// Returns true if the output is JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }
}

impl InstanceArgs {
    /// Returns a client of the instance.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        match (&self.api, &self.token_file) {
            (Some(url), Some(token_file)) => Client::remote(url, token_file, self.ca_file.as_deref()),
            _ => Client::find(self.socket.as_deref()),
        }
    }
}
