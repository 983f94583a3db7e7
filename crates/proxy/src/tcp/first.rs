//! What a server gets before its client's bytes are relayed.

use super::queue;
use crate::service::preamble;
use crate::worker::Worker;

/// The server gets the PROXY header, and what the client said before it was chosen.
pub(super) fn say_first(worker: &mut Worker, index: usize) {
    let connection = &mut worker.tcp.connections[index];
    let version = connection.backend().send_proxy;
    let Some(greeting) = &mut connection.greeting else { return };
    let mut first = Vec::new();
    if let Some(version) = version {
        let ends = greeting.origin.ends(&connection.client);
        let name = greeting.name.as_deref();
        first = preamble::introduce(version, &greeting.origin, ends, name, None, worker.cx.random.bits());
    }
    let said = first.len();
    greeting.header_left = said as u64;
    first.append(&mut greeting.bytes);
    if let Some(tap) = connection.tap(worker.cx.id).filter(|_| first.len() > said) {
        tap.piece(&first[said..]);
    }
    connection.from_client.begin_with(first);
    queue(worker, index);
}
