//! Sockets of the service manager (socket activation): finds the service that listens at the address of each, before
//! the first configuration is applied. Sockets without a service are reported and closed.

use crate::inherited::ListenerKey;
use crate::output::printable;
use anyhow::Context;
use evener_core::event::Event;
use evener_core::spec::{Plane, Spec, Transport};
use evener_proxy::{Bound, Inherited, inherited_sockets};

/// Sockets that were bound before the instance started, while the process had the right to bind them.
pub(crate) type Prebound = Vec<(ListenerKey, Bound)>;

/// The sockets that were passed to this process.
#[derive(Default)]
pub(crate) struct Passed {
    sockets: Vec<Inherited>,
    refused: Vec<String>,
}

impl Passed {
    /// Takes the sockets. Later calls return none.
    pub(crate) fn take() -> Self {
        let (sockets, refused) = inherited_sockets();
        Self { sockets, refused }
    }

    /// Returns the sockets for services, and an event for each other socket, which is closed.
    pub(crate) fn for_services(self, spec: &Spec, workers: usize) -> anyhow::Result<(Prebound, Vec<Event>)> {
        let Self { mut sockets, refused } = self;
        let mut bound = Prebound::new();
        for service in spec.services.iter().filter(|service| service.plane == Plane::Proxy) {
            for address in &service.listen {
                for &transport in service.protocol.transports() {
                    let is_of_service =
                        |socket: &Inherited| socket.transport == transport && socket.address == *address;
                    let Some(at) = sockets.iter().position(is_of_service) else { continue };
                    let prepared = sockets.swap_remove(at).into_bound(&service.options, workers);
                    let prepared = prepared
                        .with_context(|| format!("the socket of the service manager at {address}"))?;
                    bound.push((ListenerKey::new(transport, address, &service.name), prepared));
                }
            }
        }
        let unused = sockets.iter().map(|socket| {
            let kind = if socket.transport == Transport::Stream { "connections" } else { "datagrams" };
            let address = socket.address.to_string();
            format!("no service listens at {} for {kind}", printable(&address))
        });
        let texts = unused.chain(refused);
        let notice = |text| Event::Notice {
            text: format!("a socket that the service manager passed is not used and was closed: {text}"),
        };
        Ok((bound, texts.map(notice).collect()))
    }
}
