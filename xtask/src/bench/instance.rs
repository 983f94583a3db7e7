//! The binary that a benchmark of its own measures, and an instance that ends with the benchmark.

use crate::shell;
use std::process::{Child, Command};

/// Ends the instance when it is dropped.
pub(super) struct Instance(Child);

impl Instance {
    pub(super) fn new(child: Child) -> Self {
        Self(child)
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Returns true if the instance has ended.
    pub(super) fn has_ended(&mut self) -> std::io::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the path of the binary that is given, else builds the fastest one.
pub(super) fn binary(given: Option<&String>) -> anyhow::Result<String> {
    if let Some(given) = given {
        return Ok(given.clone());
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let build = ["build", "--profile", "dist", "-p", "evener"];
    shell::run(Command::new(cargo).current_dir(shell::root()).args(build))?;
    Ok(shell::root().join("target/dist/evener").display().to_string())
}
