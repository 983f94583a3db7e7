//! The client over netlink: blocking, with a timeout, several messages a datagram.

mod refusal;
mod socket;

use crate::error::{Command, Error, ErrorKind, Result};
use crate::kernel::{Change, Kernel};
use crate::message::{self, Message, command};
use crate::model::{
    Daemon, DaemonRole, DestinationState, Info, Persistence, Service, ServiceKey, ServiceState, Timeouts,
};
use netlink_packet_core::DefaultNla;
use socket::{Mode, Socket};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

/// Messages a datagram at most. The acknowledgements of so many fit the socket's buffer.
const BATCH_MAX: usize = 64;
/// Readings of a table at most, when each is interrupted by a change.
const READINGS_MAX: u32 = 20;

/// Address in the prefix that is only discarded (RFC 6666): no service has it.
const UNUSED: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1), 1, 0, 0);

/// Client of the IPVS of the network namespace in which the thread was when it opened the client.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
}

impl Client {
    /// Opens a client. The kernel loads its module `ip_vs` if it can.
    ///
    /// # Errors
    /// The kernel has no IPVS ([`ErrorKind::NoIpvs`]).
    pub fn open() -> Result<Self> {
        let socket = Socket::open().map_err(|kind| Error::new(Command::Open, "", kind))?;
        Ok(Self { socket })
    }

    /// Sends a request and returns its messages.
    fn request(
        &mut self,
        command: Command,
        entry: &str,
        message: &Message,
        mode: Mode,
    ) -> Result<Vec<Message>> {
        let error = |kind| Error::new(command, entry, kind);
        for _ in 0..READINGS_MAX {
            let exchange = self.socket.exchange(std::slice::from_ref(message), mode).map_err(error)?;
            if exchange.is_interrupted() {
                continue;
            }
            let (messages, errnos) = exchange.finish();
            return match errnos[..] {
                [0] => Ok(messages),
                [errno, ..] => Err(error(refusal::of(command, errno))),
                [] => Ok(messages),
            };
        }
        Err(error(ErrorKind::Interrupted(READINGS_MAX)))
    }

    fn one<T>(
        &mut self,
        command: Command,
        entry: &str,
        message: &Message,
        read: impl Fn(&Message) -> std::result::Result<T, ErrorKind>,
    ) -> Result<T> {
        let messages = self.request(command, entry, message, Mode::One)?;
        let message = messages.first().ok_or_else(|| ErrorKind::Unreadable("an empty response".to_owned()));
        message.and_then(read).map_err(|kind| Error::new(command, entry, kind))
    }

    fn all<T>(
        &mut self,
        command: Command,
        entry: &str,
        message: &Message,
        read: impl Fn(&Message) -> std::result::Result<T, ErrorKind>,
    ) -> Result<Vec<T>> {
        let messages = self.request(command, entry, message, Mode::All)?;
        let values = messages.iter().map(read).collect::<std::result::Result<_, _>>();
        values.map_err(|kind| Error::new(command, entry, kind))
    }

    fn send(&mut self, command: Command, entry: &str, message: &Message) -> Result<()> {
        self.request(command, entry, message, Mode::One).map(drop)
    }
}

/// Returns the message of a change.
fn encode(change: &Change) -> std::result::Result<Message, ErrorKind> {
    let service = |number, service: &Service| {
        Ok(Message::new(number, vec![message::nested(message::SERVICE, &message::service(service)?)]))
    };
    let destination = |number, key: &ServiceKey, attributes: Vec<DefaultNla>| {
        let destination = message::nested(message::DESTINATION, &attributes);
        Message::new(number, vec![identity(key), destination])
    };
    match change {
        Change::AddService(wanted) => service(command::NEW_SERVICE, wanted),
        Change::SetService(wanted) => service(command::SET_SERVICE, wanted),
        Change::DeleteService(key) => Ok(Message::new(command::DELETE_SERVICE, vec![identity(key)])),
        Change::AddDestination(key, wanted) => {
            Ok(destination(command::NEW_DESTINATION, key, message::destination(wanted)))
        }
        Change::SetDestination(key, wanted) => {
            Ok(destination(command::SET_DESTINATION, key, message::destination(wanted)))
        }
        Change::DeleteDestination(service, key) => {
            Ok(destination(command::DELETE_DESTINATION, service, message::destination_key(key)))
        }
    }
}

fn identity(key: &ServiceKey) -> DefaultNla {
    message::nested(message::SERVICE, &message::service_key(key))
}

impl Kernel for Client {
    fn apply(&mut self, changes: &[Change]) -> Result<Vec<Result<()>>> {
        let mut results = Vec::with_capacity(changes.len());
        for batch in changes.chunks(BATCH_MAX) {
            let encoded: Vec<_> = batch.iter().map(encode).collect();
            let messages: Vec<Message> =
                encoded.iter().filter_map(|message| message.as_ref().ok()).cloned().collect();
            let mut errnos = Vec::new();
            if !messages.is_empty() {
                let exchange = self.socket.exchange(&messages, Mode::One);
                let exchange =
                    exchange.map_err(|kind| Error::new(batch[0].command(), batch[0].entry(), kind))?;
                errnos = exchange.finish().1;
            }
            let mut errnos = errnos.into_iter();
            results.extend(batch.iter().zip(encoded).map(|(change, encoded)| {
                let outcome = encoded.and_then(|_| match errnos.next().unwrap_or_default() {
                    0 => Ok(()),
                    errno => Err(refusal::of_change(change, errno)),
                });
                outcome.map_err(|kind| Error::new(change.command(), change.entry(), kind))
            }));
        }
        Ok(results)
    }

    fn service(&mut self, key: &ServiceKey) -> Result<ServiceState> {
        let message = Message::new(command::GET_SERVICE, vec![identity(key)]);
        self.one(Command::GetService, &key.to_string(), &message, Message::service)
    }

    fn services(&mut self) -> Result<Vec<ServiceState>> {
        let message = Message::new(command::GET_SERVICE, Vec::new());
        self.all(Command::GetService, "", &message, Message::service)
    }

    fn destinations(&mut self, service: &ServiceKey) -> Result<Vec<DestinationState>> {
        let message = Message::new(command::GET_DESTINATION, vec![identity(service)]);
        let family = service.family();
        let read = |message: &Message| message.destination(family);
        self.all(Command::GetDestinations, &service.to_string(), &message, read)
    }

    fn start_daemon(&mut self, daemon: &Daemon) -> Result<()> {
        let attributes = message::nested(message::DAEMON, &message::daemon(daemon));
        let message = Message::new(command::NEW_DAEMON, vec![attributes]);
        self.send(Command::StartDaemon, &format!("{} on {}", daemon.role.name(), daemon.interface), &message)
    }

    fn stop_daemon(&mut self, role: DaemonRole, sync_id: u32) -> Result<()> {
        let daemon = Daemon::new(role, "", sync_id);
        let attributes = message::nested(message::DAEMON, &message::daemon(&daemon));
        self.send(Command::StopDaemon, role.name(), &Message::new(command::DELETE_DAEMON, vec![attributes]))
    }

    fn daemons(&mut self) -> Result<Vec<Daemon>> {
        let message = Message::new(command::GET_DAEMON, Vec::new());
        self.all(Command::GetDaemons, "", &message, message::parse_daemon)
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let mut attributes = Vec::new();
        for (kind, timeout) in [
            (message::TIMEOUT_TCP, timeouts.tcp),
            (message::TIMEOUT_TCP_FIN, timeouts.tcp_fin),
            (message::TIMEOUT_UDP, timeouts.udp),
        ] {
            let too_long =
                |_| Error::new(Command::SetTimeouts, "", ErrorKind::Invalid("a timeout is too long"));
            let seconds = u32::try_from(timeout.as_secs()).map_err(too_long)?;
            attributes.push(message::nla(kind, &seconds.to_ne_bytes()));
        }
        self.send(Command::SetTimeouts, "", &Message::new(command::SET_CONFIG, attributes))
    }

    fn timeouts(&mut self) -> Result<Timeouts> {
        self.one(Command::GetTimeouts, "", &Message::new(command::GET_CONFIG, Vec::new()), Message::timeouts)
    }

    fn info(&mut self) -> Result<Info> {
        self.one(Command::GetInfo, "", &Message::new(command::GET_INFO, Vec::new()), Message::info)
    }

    fn find_scheduler(&mut self, scheduler: &str, engine: Option<&str>) -> Result<()> {
        // The kernel looks for the scheduler and the engine of a new service before it refuses the prefix length 0.
        let key = ServiceKey::tcp(UNUSED.into());
        let persistence =
            Persistence { timeout: Duration::ZERO, prefix: 0, engine: engine.map(str::to_owned) };
        let service = Service { persistence: Some(persistence), ..Service::new(key).scheduler(scheduler) };
        let change = Change::AddService(service);
        let error = |kind| Error::new(Command::FindScheduler, "", kind);
        let message = encode(&change).map_err(error)?;
        let exchange = self.socket.exchange(&[message], Mode::One).map_err(error)?;
        match exchange.finish().1.first().copied().unwrap_or_default() {
            errno @ (libc::ENOENT | libc::EPERM) => Err(error(refusal::of_change(&change, errno))),
            0 => self.delete_service(&key),
            // EINVAL, or EAFNOSUPPORT of a kernel without IPv6, which finds a missing scheduler later.
            _ => Ok(()),
        }
    }

    fn zero(&mut self, service: Option<&ServiceKey>) -> Result<()> {
        let entry = service.map(ToString::to_string).unwrap_or_default();
        let attributes = service.map(identity).into_iter().collect();
        self.send(Command::Zero, &entry, &Message::new(command::ZERO, attributes))
    }

    fn flush(&mut self) -> Result<()> {
        self.send(Command::Flush, "", &Message::new(command::FLUSH, Vec::new()))
    }
}
