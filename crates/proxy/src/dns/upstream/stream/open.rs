//! The choice of a stream for a query, and new streams.

use super::{OUTBOX_MAX, Owner, PERSONAL_MAX, Stage, Stream, note_stream_refusal};
use crate::context::Context;
use crate::context::keys::{DnsStreamKey, DnsUpstreamKey, QueryKey};
use crate::context::registry::Token;
use crate::dns::Dns;
use crate::dns::framed::Framed;
use crate::dns::query::Taken;
use crate::dns::upstream::ids::Ids;
use crate::dns::upstream::persistent::v4_of;
use crate::dns::upstream::{self, socket};
use crate::io::connect::{self, is_local_error, open_socket};

use crate::service::{Settings, preamble};
use evener_core::Time;
use evener_core::snapshot::Entry;
use evener_core::spec::Dialect;
use evener_core::wire::mname;
use rustix::io::Errno;
use std::sync::Arc;

impl Dns {
    /// Returns a stream that takes one more query; `None` if another stream should be opened.
    pub(super) fn find_stream(
        &self,
        settings: &Settings,
        upstream: DnsUpstreamKey,
        owner: Owner,
    ) -> Option<DnsStreamKey> {
        let takes = |at: &DnsStreamKey| {
            let stream = self.streams.get(*at);
            stream.is_some_and(|stream| {
                let is_meant = stream.owner == owner && stream.upstream == upstream;
                let is_open = !stream.is_given_up && stream.stage != Stage::Over;
                is_meant && is_open && stream.framed.waiting() < OUTBOX_MAX
            })
        };
        match owner {
            Owner::Transfer(_) => None,
            Owner::Client(client) => self.clients.get(client)?.streams().iter().copied().find(takes),
            Owner::All => {
                let streams = &self.upstreams[upstream].streams;
                let found =
                    streams.iter().copied().filter(takes).min_by_key(|at| self.streams[*at].ids.len())?;
                let is_free = self.streams[found].ids.is_empty();
                (is_free || !self.may_open_stream(settings, upstream, owner)).then_some(found)
            }
        }
    }

    /// Returns whether one more stream is allowed.
    pub(super) fn may_open_stream(
        &self,
        settings: &Settings,
        upstream: DnsUpstreamKey,
        owner: Owner,
    ) -> bool {
        match owner {
            Owner::All => self.shared_streams(upstream) < upstream::width(settings),
            Owner::Client(client) => self.clients.get(client).is_some_and(|client| {
                let personal = client
                    .streams()
                    .iter()
                    .filter(|at| self.streams.get(**at).is_some_and(|stream| stream.owner == owner));
                personal.count() < PERSONAL_MAX
            }),
            // The limit of transfers and the number of attempts bound these streams.
            Owner::Transfer(_) => true,
        }
    }

    /// Returns the number of streams to a server that take queries. Abandoned streams close
    /// with the timeouts of their queries, so there are few of them.
    fn shared_streams(&self, upstream: DnsUpstreamKey) -> usize {
        let streams = self.upstreams[upstream].streams.iter();
        streams.filter(|at| self.streams.get(**at).is_some_and(|stream| !stream.is_given_up)).count()
    }

    pub(super) fn on_unopened_stream(
        &self,
        cx: &Context,
        settings: &Settings,
        key: QueryKey,
        server: &Entry,
        error: Errno,
    ) -> Taken {
        if let Some(backend) = self.queries[key].requester().backend(settings) {
            note_stream_refusal(cx, backend.pool.load().pool.clone(), server, error);
        }
        if is_local_error(error) { socket::no_room(error) } else { Taken::Failed }
    }

    /// Opens a stream.
    pub(super) fn open_stream(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        upstream: DnsUpstreamKey,
        server: &Arc<Entry>,
        owner: Owner,
    ) -> Result<DnsStreamKey, Errno> {
        let requester = *self.queries[key].requester();
        let backend = requester.backend(settings).ok_or(Errno::ADDRNOTAVAIL)?;
        let pool = backend.pool.load().pool.clone();
        let socket = open_socket(&server.target, &settings.options, requester.client.ip())?;
        let is_connected = match connect::connect(&socket, &server.target) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(error) => return Err(error),
        };
        let (mut framed, name) = (Framed::new(socket), cx.random.bits());
        if let (Owner::Client(client) | Owner::Transfer(client), Some(version)) =
            (owner, backend.send_proxy.filter(|_| server.dialect == Dialect::Plain))
            && let Some((origin, socket)) = self.client_origin(client)
        {
            let ends = origin.ends(socket);
            framed.queue(&preamble::introduce(version, origin, ends, None, None, name));
        }
        if server.dialect == Dialect::Mname
            && let Some(source) = v4_of(requester.client)
        {
            let mut first = Vec::new();
            mname::emit_inbound_tcp(source, &mut first);
            framed.queue(&first);
            // No message is sent before the server accepts the session.
            framed.hold();
        }
        let (session, active_at) = (self.session_with(&requester, server), cx.now);
        let at = self.streams.insert(Box::new(Stream {
            upstream,
            server: Arc::clone(server),
            pool,
            framed,
            ids: Ids::default(),
            owner,
            stage: Stage::Connecting,
            was_used: false,
            active_at,
            begun_at: cx.now,
            received_at: Time::ZERO,
            bad: 0,
            is_given_up: false,
            resumed_at: None,
            session,
            dirty: false,
        }));
        if let Err(error) = cx.registry.register(self.streams[at].framed.socket(), Token::DnsStream(at)) {
            self.streams.remove(at);
            return Err(error);
        }
        match owner {
            Owner::All => self.upstreams[upstream].streams.push(at),
            Owner::Client(client) | Owner::Transfer(client) => {
                self.clients[client].add_stream(at);
            }
        }
        self.stream_timers.set(at, cx.now + settings.options.connect_timeout);
        if is_connected {
            self.on_stream_connected(cx, at);
        }
        Ok(at)
    }

    /// Tries whether a server that refuses datagrams accepts TCP. Returns false if the connection attempt fails
    /// immediately.
    pub(in crate::dns::upstream) fn probe_stream(
        &mut self,
        cx: &mut Context,
        settings: &Settings,
        key: QueryKey,
        upstream: DnsUpstreamKey,
        server: &Arc<Entry>,
    ) -> bool {
        // An existing stream is connecting, or connected.
        let is_there = self.upstreams.get(upstream).is_none_or(|upstream| !upstream.streams.is_empty());
        is_there || self.open_stream(cx, settings, key, upstream, server, Owner::All).is_ok()
    }
}
