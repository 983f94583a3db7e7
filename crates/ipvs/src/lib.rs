//! Typed client of the kernel's IP Virtual Server (IPVS).
//!
//! The operations are those of [`Kernel`]: [`fake::FakeKernel`] implements them in memory, for tests. Every
//! failure is an [`Error`] that names the command and the entry.

mod error;
mod kernel;
pub mod address;
pub mod model;
pub mod reconcile;

pub use error::{Command, Error, ErrorKind, Result};
pub use kernel::{Change, Kernel, fake};
