//! A question: taken in, answered from what is kept, or given to a server; and to another one when that stays silent.

use super::answers::Way;
use super::ids::Tried;
use super::{client, reply, sockets, standing, stream, twins};
use crate::admission;
use crate::connect::note_no_server;
use crate::service::{Backend, Notice, Report, Settings};
use crate::worker::Worker;
use evener_core::Time;
use evener_core::clients::ClientRecord;
use evener_core::dns::{Freshness, RateVerdict};
use evener_core::health::Failure;
use evener_core::snapshot::{Choice, Entry, NoServer, Request};
use evener_core::spec::{ClientSubnetSpec, Dialect, DnsSpec, OnFailure};
use evener_core::wire::dns::{self as wire, Added, QueryError, Transfer};
use evener_core::wire::proxy::{self, Ends, Extras, Transport};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Questions hold so many bytes each on average, or there are fewer of them.
const BYTES_HELD: usize = 512;
/// A transfer of which no message came for so long is over, or broke off.
pub(super) const TRANSFER_PAUSE: Duration = Duration::from_secs(30);

/// How a question came, and so how its answer goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Datagram(Way),
    /// On the connection at this place; the number tells it from one that has the place later.
    Stream {
        client: usize,
        number: u32,
    },
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) service: usize,
    /// As far as we are told.
    pub(super) client: SocketAddr,
    /// What the client sent to.
    pub(super) destination: Option<SocketAddr>,
    pub(super) party: Party,
    pub(super) origin: Origin,
}

/// What the access list makes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Admitted,
    /// It is refused, but there is a pool for such.
    Refused,
    /// It is refused, and told so.
    Rejected,
}

impl Asker {
    /// Where its servers are; nowhere when a reload took away the pool of those who are refused.
    pub(super) fn backend<'a>(&self, settings: &'a Settings) -> Option<&'a Backend> {
        match self.party {
            Party::Admitted => settings.backends.first(),
            Party::Refused => settings.refused(),
            Party::Rejected => None,
        }
    }

    /// Whether its server is told of it.
    pub(super) fn is_told_of(&self, settings: &Settings) -> bool {
        self.backend(settings).is_some_and(|backend| backend.send_proxy.is_some())
    }

    /// Both ends, for servers that are told.
    fn ends(&self) -> Option<Ends> {
        self.destination.map(|destination| Ends { source: self.client, destination })
    }
}

/// Where a question waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    Nowhere,
    AtSocket(usize),
    AtStream(usize),
    AtStanding(usize),
    /// For the answer to another question, which asks the same.
    AtQuery,
}

/// A question that is under way.
pub(super) struct Query {
    pub(super) asker: Asker,
    pub(super) view: wire::Query,
    /// As it was asked, but for its ID: that is the one for the server.
    pub(super) message: Vec<u8>,
    /// The client's ID.
    pub(super) id: u16,
    /// What the server gets, where that is something else.
    pub(super) altered: Option<Altered>,
    pub(super) choice: Option<Choice>,
    /// Where it is written down what the client does.
    pub(super) record: Option<Arc<ClientRecord>>,
    pub(super) waits: Waits,
    pub(super) sent_at: Time,
    /// Servers that did not answer, or cannot take it.
    tried: Tried,
    /// Those of them that cannot.
    unfit: Tried,
    /// How many more servers may be waited for.
    retries: u32,
    /// When nobody else is left, who was silent may be asked again.
    may_repeat: bool,
    /// How often a connection that others had used ended under it, which is nobody's fault.
    pub(super) cut_short: u32,
    /// Questions that wait for its answer, and by what they found it.
    pub(super) followers: Vec<usize>,
    pub(super) twin_key: Option<Vec<u8>>,
    /// Messages that came for it; only a transfer of a zone has several.
    pub(super) pieces: u32,
    pub(super) transfer: Transfer,
}

pub(super) struct Altered {
    /// What is sent.
    bytes: Vec<u8>,
    /// Where the message begins in it, after a PROXY header.
    starts: usize,
    pub(super) added: Option<Added>,
}

impl Query {
    /// What its server gets over UDP.
    pub(super) fn datagram(&self) -> &[u8] {
        self.altered.as_ref().map_or(&self.message, |altered| &altered.bytes)
    }

    /// What its server gets over a stream.
    pub(super) fn framed(&self) -> &[u8] {
        self.altered.as_ref().map_or(&self.message, |altered| &altered.bytes[altered.starts..])
    }

    /// It goes to its server by this ID.
    pub(super) fn call(&mut self, id: u16) {
        wire::set_id(&mut self.message, id);
        if let Some(altered) = &mut self.altered {
            wire::set_id(&mut altered.bytes[altered.starts..], id);
        }
    }

    /// The ID that its server has.
    pub(super) fn called(&self) -> u16 {
        wire::id(&self.message)
    }
}

/// The settings of a service of DNS.
pub(super) fn spec(settings: &Settings) -> Option<&DnsSpec> {
    settings.dns.as_ref().map(|dns| &*dns.spec)
}

/// Takes in a message of a client.
pub(super) fn ask(worker: &mut Worker, settings: &Settings, asker: &Asker, message: &[u8]) {
    let view = match wire::Query::parse(message) {
        Ok(view) => view,
        Err(error) => return refuse(worker, settings, asker, message, error),
    };
    let service = Arc::clone(&worker.dns.services[asker.service].service);
    let counters = service.live.counters.of(worker.id);
    counters.requests.one();
    let verdict = rate_verdict(worker, settings, asker);
    if verdict != RateVerdict::Answer {
        counters.rate_limited.one();
        if verdict == RateVerdict::Truncate {
            let mut out = worker.dns.spare();
            view.emit_truncated(message, None, &mut out);
            reply::deliver(worker, asker, &out);
            worker.dns.give_back(out);
        }
        return;
    }
    if asker.party == Party::Rejected {
        return reply::answer_error(worker, asker, &view, message, wire::REFUSED);
    }
    if reply::answer_from_cache(worker, settings, asker, &view, message, Freshness::Fresh) {
        counters.cache_hits.one();
        return;
    }
    let Some(spec) = spec(settings) else { return };
    let most = spec.outstanding_max.div_ceil(worker.workers as u32);
    let is_held = worker.dns.held >= most as usize * BYTES_HELD;
    if worker.dns.services[asker.service].in_flight >= most || is_held {
        counters.drop_outstanding.one();
        // Over UDP whoever asks too much hears nothing: it may be somebody else.
        if matches!(asker.origin, Origin::Stream { .. }) {
            reply::answer_error(worker, asker, &view, message, wire::SERVFAIL);
        }
        return;
    }
    let slot = begin(worker, settings, asker, view, message, spec.retries);
    twins::set_out(worker, settings, slot);
}

/// What is no question gets no answer, or the shortest one.
fn refuse(worker: &mut Worker, settings: &Settings, asker: &Asker, message: &[u8], error: QueryError) {
    let service = Arc::clone(&worker.dns.services[asker.service].service);
    let counters = service.live.counters.of(worker.id);
    match error {
        QueryError::Short | QueryError::Answer => {
            counters.drop_no_question.one();
            if let Origin::Stream { client, number } = asker.origin {
                client::abandon(worker, client, number);
            }
        }
        QueryError::Malformed => {
            counters.formerr.one();
            if rate_verdict(worker, settings, asker) == RateVerdict::Answer {
                let mut out = worker.dns.spare();
                wire::emit_formerr(message, &mut out);
                reply::deliver(worker, asker, &out);
                worker.dns.give_back(out);
            }
        }
    }
}

/// Whoever asks over TCP is who it says it is.
fn rate_verdict(worker: &Worker, settings: &Settings, asker: &Asker) -> RateVerdict {
    let limit = settings.dns.as_ref().and_then(|dns| dns.rate_limit.as_ref());
    match (limit, asker.origin) {
        (Some(limit), Origin::Datagram(_)) => limit.ask(asker.client.ip(), worker.now),
        _ => RateVerdict::Answer,
    }
}

fn begin(
    worker: &mut Worker,
    settings: &Settings,
    asker: &Asker,
    view: wire::Query,
    message: &[u8],
    retries: u32,
) -> usize {
    let service = &worker.dns.services[asker.service].service;
    let record = admission::record_of(service, settings, asker.client.ip(), worker.now);
    if let Some(record) = &record {
        if matches!(asker.origin, Origin::Datagram(_)) {
            record.connected(worker.now);
        }
        record.moved(message.len() as u64, 0, worker.now);
    }
    let mut copy = worker.dns.spare();
    copy.extend_from_slice(message);
    worker.dns.services[asker.service].in_flight += 1;
    worker.dns.held += copy.len();
    if let Origin::Stream { client, number } = asker.origin {
        client::begun(worker, client, number);
    }
    worker.dns.queries.insert(Query {
        asker: *asker,
        view,
        id: wire::id(&copy),
        message: copy,
        altered: None,
        choice: None,
        record,
        waits: Waits::Nowhere,
        sent_at: worker.now,
        tried: Tried::new(),
        unfit: Tried::new(),
        retries,
        may_repeat: false,
        cut_short: 0,
        followers: Vec::new(),
        twin_key: None,
        pieces: 0,
        transfer: Transfer::default(),
    })
}

/// Adds what servers are told of the client.
pub(super) fn alter(worker: &mut Worker, settings: &Settings, slot: usize) {
    let query = &mut worker.dns.queries[slot];
    let subnet = spec(settings).and_then(|spec| spec.client_subnet);
    let subnet = subnet.filter(|_| !query.view.is_transfer());
    let told = query.asker.is_told_of(settings);
    if subnet.is_none() && !told {
        return;
    }
    let (mut bytes, mut added) = (Vec::new(), None);
    if let Some(subnet) = subnet {
        let (client, bits) = subnet_of(query.asker.client.ip(), subnet);
        added = query.view.with_client_subnet(&query.message, client, bits, &mut bytes);
    }
    if added.is_none() {
        bytes.extend_from_slice(&query.message);
    }
    let mut starts = 0;
    if told && matches!(query.asker.origin, Origin::Datagram(_)) {
        let mut header = Vec::new();
        proxy::emit_v2(query.asker.ends(), Transport::Datagram, &Extras::default(), &mut header);
        starts = header.len();
        header.extend_from_slice(&bytes);
        bytes = header;
    }
    query.altered = Some(Altered { bytes, starts, added });
}

/// The client's address, and how much of it is told.
fn subnet_of(client: IpAddr, subnet: ClientSubnetSpec) -> (IpAddr, u8) {
    let client = client.to_canonical();
    (client, if client.is_ipv4() { subnet.v4 } else { subnet.v6 })
}

/// What a server made of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is on its way.
    Yes,
    /// This server cannot take this one; nobody is to blame.
    Unfit,
    /// The server cannot be reached; that is reported already.
    Failed,
    /// We have no descriptor, port or place for it.
    NoRoom,
}

/// Gives a question to a server, whichever takes it.
pub(super) fn place(worker: &mut Worker, settings: &Settings, slot: usize) {
    loop {
        let query = &worker.dns.queries[slot];
        let Some(backend) = query.asker.backend(settings) else { return fail(worker, settings, slot, None) };
        let snapshot = backend.pool.load();
        let client = query.asker.client.ip();
        let request = Request::of(client, worker.now);
        let choice = match snapshot.pick(&request, &query.tried, &mut worker.random) {
            Ok(choice) => choice,
            Err(_) if query.may_repeat => {
                // Where everybody was asked, what got lost may get through now.
                let query = &mut worker.dns.queries[slot];
                query.tried.clone_from(&query.unfit);
                query.may_repeat = false;
                continue;
            }
            Err(reason) => return fail(worker, settings, slot, Some(reason)),
        };
        let server = Arc::clone(&choice.server);
        worker.dns.queries[slot].choice = Some(choice);
        match give(worker, settings, slot, &server) {
            Taken::Yes => {
                snapshot.remember(client, server.id, worker.now);
                server.live.counters.of(worker.id).requests.one();
                return;
            }
            Taken::Unfit => worker.dns.queries[slot].unfit.push(server.id),
            Taken::Failed => {}
            Taken::NoRoom => {
                service_counters(worker, slot, |counters| counters.drop_no_socket.one());
                return fail(worker, settings, slot, None);
            }
        }
        let query = &mut worker.dns.queries[slot];
        query.tried.push(server.id);
        query.choice = None;
    }
}

fn give(worker: &mut Worker, settings: &Settings, slot: usize, server: &Arc<Entry>) -> Taken {
    let query = &mut worker.dns.queries[slot];
    query.sent_at = worker.now;
    let origin = query.asker.origin;
    let taken = match (server.dialect, origin) {
        (Dialect::Plain, Origin::Datagram(_)) => sockets::give(worker, settings, slot, server),
        (Dialect::Mname, Origin::Datagram(_)) => standing::give(worker, slot, server),
        (_, Origin::Stream { client, number }) => {
            stream::give(worker, settings, slot, (client, number), server)
        }
    };
    if let (Taken::Yes, Some(spec)) = (taken, spec(settings)) {
        worker.dns.query_timers.set(slot, worker.now + spec.query_timeout);
    }
    taken
}

fn service_counters(
    worker: &Worker,
    slot: usize,
    count: impl FnOnce(&evener_core::counters::ServiceCounters),
) {
    let query = &worker.dns.queries[slot];
    count(worker.dns.services[query.asker.service].service.live.counters.of(worker.id));
}

/// A server did not answer in time.
pub(super) fn on_deadline(worker: &mut Worker, slot: usize) {
    let Some(query) = worker.dns.queries.get(slot) else { return };
    let settings = worker.dns.services[query.asker.service].service.settings.load_full();
    if let (Waits::AtStream(at), Some(spec)) = (query.waits, spec(&settings))
        && stream::was_held(worker, at, spec.query_timeout)
    {
        // It is the client that takes its time: what its server has for it is not read.
        return worker.dns.query_timers.set(slot, worker.now + spec.query_timeout);
    }
    if query.pieces > 0 {
        // No further message of a transfer came for a while. Whether it is over only who asked can tell.
        return drop(retire(worker, slot));
    }
    if let Some(server) = query.choice.as_ref().map(|choice| Arc::clone(&choice.server)) {
        server.live.counters.of(worker.id).answer_timeouts.one();
        if is_silent(worker, slot, &server) {
            report_failure(worker, &settings, slot, &server, Failure::Silent);
        }
    }
    if let Waits::AtStream(at) = worker.dns.queries[slot].waits {
        stream::on_silence(worker, at, worker.dns.queries[slot].sent_at);
    }
    // From the second time on: rather an old answer now than a better one when the client is gone (RFC 8767, section 5).
    let is_first = spec(&settings).is_none_or(|spec| worker.dns.queries[slot].retries >= spec.retries);
    if !is_first && answer_stale(worker, &settings, slot) {
        return;
    }
    again(worker, &settings, slot, Cause::Timeout);
}

/// Whether the server of a question is to blame for its silence: it said nothing since it was asked, nor to others. One lost
/// datagram, or one name that it cannot find out about, is no failure. A standing connection has its own signs of life.
fn is_silent(worker: &mut Worker, slot: usize, server: &Entry) -> bool {
    let dns = &mut worker.dns;
    let query = &dns.queries[slot];
    let upstream = match query.waits {
        Waits::AtSocket(at) => dns.sockets.get(at).map(|socket| socket.upstream),
        Waits::AtStream(at) => dns.streams.get(at).map(|stream| stream.upstream),
        Waits::AtStanding(_) | Waits::AtQuery | Waits::Nowhere => None,
    };
    let Some(upstream) = upstream.and_then(|at| dns.upstreams.get_mut(at)) else { return false };
    if server.dialect != Dialect::Plain || upstream.answered_at >= query.sent_at {
        return false;
    }
    upstream.on_silence(query.view.question(&query.message), worker.now)
}

/// Tells the supervisor that a question did not reach a server.
pub(super) fn report_failure(
    worker: &Worker,
    settings: &Settings,
    slot: usize,
    server: &Entry,
    failure: Failure,
) {
    let Some(backend) = worker.dns.queries[slot].asker.backend(settings) else { return };
    let pool = backend.pool.load().pool.clone();
    (worker.report)(Report::Failure { pool, server: server.id, target: server.target.clone(), failure });
}

/// Why another server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It cost the client time.
    Timeout,
    /// It was known at once.
    Refused,
    /// A connection that others had used ended; the server may be asked again.
    CutShort,
}

/// Asks the next server, as far as that is wanted.
pub(super) fn again(worker: &mut Worker, settings: &Settings, slot: usize, cause: Cause) {
    withdraw(worker, slot);
    if is_moot(worker, slot) {
        let mut query = retire(worker, slot);
        twins::part(worker, settings, &mut query);
        if let Origin::Stream { client, number } = query.asker.origin {
            // If it is there still, its transfer broke off.
            client::dismiss(worker, client, number);
        }
        return worker.dns.give_back(query.message);
    }
    let query = &mut worker.dns.queries[slot];
    let choice = query.choice.take();
    let exhausted = cause == Cause::Timeout && query.retries == 0;
    if cause == Cause::Timeout {
        query.retries = query.retries.saturating_sub(1);
        query.may_repeat = true;
    }
    if let Some(choice) = choice.filter(|_| cause != Cause::CutShort) {
        query.tried.push(choice.server.id);
    }
    query.cut_short += u32::from(cause == Cause::CutShort);
    if exhausted {
        return fail(worker, settings, slot, Some(NoServer::Failed));
    }
    service_counters(worker, slot, |counters| counters.requests_retried.one());
    place(worker, settings, slot);
}

/// Whether nobody waits for the answer any more: the client left, or got what there was of a transfer.
fn is_moot(worker: &mut Worker, slot: usize) -> bool {
    let query = &worker.dns.queries[slot];
    match query.asker.origin {
        Origin::Datagram(_) => false,
        Origin::Stream { client, number } => {
            query.pieces > 0 || client::find(worker, client, number).is_none()
        }
    }
}

/// A question does not wait where it did any more: an answer that still comes there is nobody's.
fn withdraw(worker: &mut Worker, slot: usize) {
    worker.dns.query_timers.clear(slot);
    let query = &mut worker.dns.queries[slot];
    let id = query.called();
    match std::mem::replace(&mut query.waits, Waits::Nowhere) {
        Waits::AtSocket(at) => sockets::withdraw(worker, at, id),
        Waits::AtStream(at) => stream::withdraw(worker, at, id),
        Waits::AtStanding(at) => standing::withdraw(worker, at, slot),
        Waits::AtQuery | Waits::Nowhere => {}
    }
}

/// Takes a question out.
pub(super) fn retire(worker: &mut Worker, slot: usize) -> Query {
    withdraw(worker, slot);
    let mut query = worker.dns.queries.remove(slot);
    twins::leave(worker, &mut query);
    worker.dns.services[query.asker.service].in_flight -= 1;
    worker.dns.held -= query.message.len();
    wire::set_id(&mut query.message, query.id);
    if let Origin::Stream { client, number } = query.asker.origin {
        client::answered(worker, client, number);
    }
    query
}

/// No server answers: what is kept though it expired, or the word for it.
fn fail(worker: &mut Worker, settings: &Settings, slot: usize, reason: Option<NoServer>) {
    let service = Arc::clone(&worker.dns.services[worker.dns.queries[slot].asker.service].service);
    let counters = service.live.counters.of(worker.id);
    if answer_stale(worker, settings, slot) {
        return;
    }
    let mut query = retire(worker, slot);
    for follower in std::mem::take(&mut query.followers) {
        fail(worker, settings, follower, reason);
    }
    counters.requests_failed.one();
    let is_unfit = !query.unfit.is_empty() && query.tried.len() == query.unfit.len();
    if is_unfit {
        counters.drop_untakable.one();
        if service.may_notice(Notice::Untakable, worker.now) {
            (worker.report)(Report::Untakable { service: service.name.clone() });
        }
    } else if let Some(reason) = reason {
        note_no_server(worker, &service, reason);
    }
    let rcode = match spec(settings).map(|spec| spec.on_failure) {
        Some(OnFailure::ServFail) => wire::SERVFAIL,
        Some(OnFailure::Refused) => wire::REFUSED,
        Some(OnFailure::Drop) | None => {
            if !is_unfit {
                counters.drop_no_server.one();
            }
            return worker.dns.give_back(query.message);
        }
    };
    reply::answer_error(worker, &query.asker, &query.view, &query.message, rcode);
    worker.dns.give_back(query.message);
}

/// Answers with what is kept though it expired, if there is something.
fn answer_stale(worker: &mut Worker, settings: &Settings, slot: usize) -> bool {
    let query = &worker.dns.queries[slot];
    let (asker, view, message) = (query.asker, query.view, query.message.clone());
    let mut message = message;
    wire::set_id(&mut message, query.id);
    if !reply::answer_from_cache(worker, settings, &asker, &view, &message, Freshness::Stale) {
        return false;
    }
    let service = Arc::clone(&worker.dns.services[asker.service].service);
    service.live.counters.of(worker.id).cache_stale.one();
    let mut query = retire(worker, slot);
    for follower in std::mem::take(&mut query.followers) {
        if !answer_stale(worker, settings, follower) {
            fail(worker, settings, follower, None);
        }
    }
    worker.dns.give_back(query.message);
    true
}
