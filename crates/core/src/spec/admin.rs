//! Settings of the admin API that the file of the configuration has.

use std::net::SocketAddr;

/// The admin API over TCP, and the file of the changes that operators made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdminSpec {
    /// Address of the API over TCP, beside the admin socket.
    pub listen: Option<SocketAddr>,
    /// File with the tokens of clients over TCP.
    pub token_file: Option<String>,
    /// Certificate of the API over TCP.
    pub tls: Option<AdminTls>,
    /// Host names by which clients address the API, beside its address.
    pub hosts: Vec<String>,
    /// File of the changes that operators made.
    pub state_file: StateFile,
}

/// Certificate of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTls {
    /// PEM file with the certificate, followed by its chain.
    pub certificate: String,
    /// PEM file with the private key.
    pub key: String,
}

/// Place of the changes that operators made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StateFile {
    /// A file in the state directory, whose name follows from the path of the configuration.
    #[default]
    Default,
    /// None: the changes end with the instance.
    Off,
    /// A file.
    At(String),
}
