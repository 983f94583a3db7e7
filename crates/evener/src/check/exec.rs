//! The exec check: a program that ends with the status 0 passes.

use super::{CheckedServer, ProbeError};
use crate::exec::{Environment, failure, run};
use evener_core::Target;
use evener_core::spec::ProgramSpec;
use std::io::ErrorKind;

/// Runs the program for a server. It is killed if the time is over.
pub(super) async fn probe(
    target: &Target,
    server: &CheckedServer,
    program: &ProgramSpec,
) -> Result<(), ProbeError> {
    let mut environment: Environment = vec![("EVENER_SERVER", server.endpoint.server_text())];
    match target {
        Target::Ip(address) => {
            environment.push(("EVENER_ADDRESS", address.ip().to_string()));
            environment.push(("EVENER_PORT", address.port().to_string()));
        }
        Target::Unix(path) => environment.push(("EVENER_ADDRESS", path.display().to_string())),
    }
    let status = run(program, &environment).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("exec: the program {} does not exist", program.path).into(),
        _ => ProbeError::by_system(&program.path, &error),
    })?;
    failure(status).map_or(Ok(()), |why| Err(format!("exec: {why}").into()))
}
