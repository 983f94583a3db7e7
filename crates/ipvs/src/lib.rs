//! Typed client of the kernel's IP Virtual Server (IPVS).
//!
//! The operations are those of [`Kernel`]: [`Client`] sends them to the kernel over netlink, and
//! [`fake::FakeKernel`] implements them in memory, for tests. Every failure is an [`Error`] that names the
//! command and the entry.
//!
//! ```no_run
//! use evener_ipvs::model::{Destination, Forwarding, Service, ServiceKey};
//! use evener_ipvs::{Client, Kernel};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut kernel = Client::open()?;
//! let key = ServiceKey::tcp("192.0.2.1:80".parse()?);
//! kernel.add_service(&Service::new(key).scheduler("wrr"))?;
//! let server: std::net::SocketAddr = "10.0.0.2:8080".parse()?;
//! kernel.add_destination(&key, &Destination::new(server, Forwarding::Nat).weight(3))?;
//! for entry in kernel.table()? {
//!     println!("{}: {} destinations", entry.service.service.key, entry.destinations.len());
//! }
//! # Ok(())
//! # }
//! ```

pub mod address;
mod client;
pub mod connections;
mod error;
mod exchange;
mod kernel;
pub mod message;
pub mod model;
pub mod reconcile;
pub mod save;

pub use client::Client;
pub use error::{Command, Error, ErrorKind, Result};
pub use kernel::{Change, Kernel, fake};
