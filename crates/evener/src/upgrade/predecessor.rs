//! The running instance as the new one sees it: the sockets that it hands over, and the order to begin.

use super::channel::{Channel, ChannelError};
use super::instant_of;
use super::message::{Message, chunks};
use super::relay::together;
use super::socket::{Role, SocketRecord};
use super::state::CountersRecord;
use super::successor::VARIABLE;
use crate::inherited::{Inherited, ListenerKey};
use anyhow::{Context, bail};
use evener_proxy::{PassedFlow, PassedRelay};
use rustix::fd::OwnedFd;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time for the running instance to send its sockets, and to let this one begin.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of positions in a message.
const POSITIONS_MAX: usize = 4000;
/// Maximum number of sockets.
const SOCKETS_MAX: usize = 1 << 20;

/// A message of the previous instance while it drains.
#[derive(Debug)]
pub(crate) enum Passed {
    /// Relayed connections.
    Relays(Vec<PassedRelay>),
    /// Counts since the hand-over.
    Counters(Vec<CountersRecord>),
}

/// The running instance, and what it hands over.
#[derive(Debug)]
pub(crate) struct Predecessor {
    channel: Channel,
    pid: u32,
    program: String,
    origin: Instant,
    listeners: Inherited,
    /// Key of each listener, by the position of its socket.
    positions: Vec<Option<ListenerKey>>,
    admin: Option<(PathBuf, OwnedFd)>,
    metrics: Option<OwnedFd>,
    api: Option<(SocketAddr, OwnedFd)>,
}

impl Predecessor {
    /// Receives the sockets, if a running instance started this process to succeed it. Must be called before the
    /// standard input is used.
    ///
    /// # Errors
    /// The hand-over failed. The running instance goes on.
    pub(crate) fn find() -> anyhow::Result<Option<Self>> {
        let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().to_string());
        if parent.is_none() || std::env::var(VARIABLE).ok() != parent {
            return Ok(None);
        }
        let standard_input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let Some(channel) = Channel::from_descriptor(standard_input) else { return Ok(None) };
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        let mut before = Self {
            channel,
            pid: 0,
            program: String::new(),
            origin: Instant::now(),
            listeners: Inherited::default(),
            positions: Vec::new(),
            admin: None,
            metrics: None,
            api: None,
        };
        match before.receive_sockets() {
            Ok(()) => Ok(Some(before)),
            Err(error) => {
                before.fail(&error.to_string());
                Err(error)
            }
        }
    }

    fn receive_sockets(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let (message, descriptors) = self.channel.receive(deadline).context("the running instance")?;
            match message {
                Message::Hello { pid, program, origin } => {
                    (self.pid, self.program, self.origin) = (pid, program, instant_of(origin));
                }
                Message::Sockets(records) => {
                    if records.len() != descriptors.len()
                        || self.positions.len() + records.len() > SOCKETS_MAX
                    {
                        bail!("the running instance sent another number of sockets than it announced");
                    }
                    records.into_iter().zip(descriptors).for_each(|(record, socket)| {
                        let key = self.add(&record, socket);
                        self.positions.push(key);
                    });
                }
                Message::AllSockets {} => return Ok(()),
                _ => {}
            }
        }
    }

    /// Adds a socket. A socket of an unknown kind is closed here and stays with the running instance.
    fn add(&mut self, record: &SocketRecord, socket: OwnedFd) -> Option<ListenerKey> {
        match record.role() {
            Role::Admin => self.admin = Some((record.path(), socket)),
            Role::Metrics => self.metrics = Some(socket),
            Role::Api => self.api = record.api_address().map(|address| (address, socket)),
            Role::Stream | Role::Datagram => {
                let (key, bound) = record.listener()?;
                self.listeners.add(key.clone(), bound, socket);
                return Some(key);
            }
        }
        None
    }

    /// Returns the process number of the running instance.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the version of the running instance.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// Returns the origin of the times of the running instance.
    pub(crate) fn origin(&self) -> Instant {
        self.origin
    }

    /// Takes the listeners.
    pub(crate) fn take_listeners(&mut self) -> Inherited {
        std::mem::take(&mut self.listeners)
    }

    /// Takes the admin socket if it has this path, or any path if none is given.
    pub(crate) fn take_admin(&mut self, wanted: Option<&Path>) -> Option<(PathBuf, OwnedFd)> {
        self.admin.take_if(|(path, _)| wanted.is_none_or(|wanted| wanted == path))
    }

    /// Takes the listener of the API over TCP, with its address as configured.
    pub(crate) fn take_api(&mut self) -> Option<(SocketAddr, OwnedFd)> {
        self.api.take()
    }

    /// Takes the listener of the metrics.
    pub(crate) fn take_metrics(&mut self) -> Option<OwnedFd> {
        self.metrics.take()
    }

    /// Reports that this instance can serve, with the listeners that it uses.
    pub(crate) fn report_ready(&self, uses: impl Fn(&ListenerKey) -> bool) -> Result<(), ChannelError> {
        let deadline = Instant::now() + TIMEOUT;
        let positions = self.positions.iter().zip(0_u32..);
        let taken = positions.filter(|(key, _)| key.as_ref().is_some_and(&uses)).map(|(_, at)| at).collect();
        for part in chunks(taken, POSITIONS_MAX) {
            self.channel.send(&Message::Taken(part), &[], deadline)?;
        }
        let program = env!("CARGO_PKG_VERSION").to_owned();
        self.channel.send(&Message::Ready { program }, &[], deadline)
    }

    /// Waits until this instance may begin. Returns the state and the flows of the running instance.
    pub(crate) fn await_begin(&mut self) -> Result<(Vec<Message>, Vec<PassedFlow>), ChannelError> {
        let deadline = Instant::now() + TIMEOUT;
        let (mut state, mut flows) = (Vec::new(), Vec::new());
        loop {
            match self.channel.receive(deadline)? {
                (Message::Begin {}, _) => return Ok((state, flows)),
                (Message::Flows(records), sockets) => {
                    let of_sockets = records.into_iter().zip(sockets);
                    flows.extend(of_sockets.filter_map(|(record, socket)| record.together(socket)));
                }
                (message, _) => state.push(message),
            }
        }
    }

    /// Reports that this instance serves, and continues the relayed connections of services. From now on the running
    /// instance may have ended.
    pub(crate) fn report_serving(&self, continues: Vec<String>) {
        for part in chunks(continues, POSITIONS_MAX) {
            let _ = self.channel.send(&Message::Continues(part), &[], Instant::now() + TIMEOUT);
        }
        let _ = self.channel.send(&Message::Serving {}, &[], Instant::now() + TIMEOUT);
    }

    /// Receives what the previous instance passes on while it drains, on a thread. `receive` may block.
    pub(crate) fn follow(mut self, receive: impl Fn(Passed) + Send + 'static) {
        let follow = move || {
            loop {
                let (message, descriptors) = match self.channel.receive(Instant::now() + TIMEOUT) {
                    Ok(received) => received,
                    Err(ChannelError::TimedOut) => continue,
                    Err(_) => return,
                };
                let mut descriptors = descriptors.into_iter();
                match message {
                    Message::Relays(records) => {
                        let relays =
                            records.into_iter().map_while(|record| together(record, &mut descriptors));
                        receive(Passed::Relays(relays.collect()));
                    }
                    Message::Counters(records) => receive(Passed::Counters(records)),
                    _ => {}
                }
            }
        };
        // Without a thread, the previous instance keeps its connections until they end.
        let _ = std::thread::Builder::new().name("upgrade".into()).spawn(follow);
    }

    /// Reports that this instance cannot start.
    pub(crate) fn fail(&self, problem: &str) {
        let most = problem.char_indices().nth(2000).map_or(problem.len(), |(end, _)| end);
        let problem = problem[..most].to_owned();
        let _ = self.channel.send(&Message::Failed { problem }, &[], Instant::now() + Duration::from_secs(5));
    }
}
