//! The state that passes to the next instance at an upgrade: counters, verdicts and administrative states of servers,
//! and sticky tables. Times are the same in both processes, because the next instance takes the origin of this one.

use super::Supervisor;
use crate::upgrade::message::{Message, chunks};
use crate::upgrade::state::{
    AccessRecord, CachedRecord, CountersOf, CountersRecord, Numbers, ServerName, ServerRecord, StickyRecord,
    name_of,
};
use evener_core::ServerId;
use evener_core::pool::Pool;
use evener_core::sticky::StickyClient;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Maximum number of clients of a sticky table that pass to the next instance, the most recently seen ones.
const STICKY_CLIENTS_MAX: usize = 1 << 17;
/// Maximum number of records in a message.
const RECORDS_MAX: usize = 4000;

impl Supervisor {
    /// Returns the state that the next instance gets.
    pub(super) fn state_for_successor(&mut self) -> Vec<Message> {
        let now = self.now();
        let (mut records, mut sticky) = (Vec::new(), Vec::new());
        for pool in self.pools.iter() {
            let mut positions = BTreeMap::new();
            for server in pool.servers() {
                positions.insert(server.id, records.len() as u32);
                records.push(ServerRecord::new(pool, server));
            }
            let clients = pool.sticky().map(|table| table.clients(now, STICKY_CLIENTS_MAX));
            let record = |client: StickyClient| StickyRecord::new(&client, &positions);
            // The least recently seen clients are added first there.
            sticky.extend(clients.into_iter().flatten().rev().filter_map(record));
        }
        let access = chunks(self.access.records(), RECORDS_MAX).into_iter().map(Message::Access);
        let counters = self.counters();
        let counters = self.upgrades.begin_counting(counters);
        let servers = chunks(records, RECORDS_MAX).into_iter().map(Message::Servers);
        let sticky = chunks(sticky, RECORDS_MAX).into_iter().map(Message::Sticky);
        let counters = chunks(counters, RECORDS_MAX).into_iter().map(Message::Counters);
        access.chain(servers).chain(sticky).chain(counters).collect()
    }

    /// Returns the counts that the next instance does not have yet.
    pub(super) fn growth(&mut self) -> Vec<CountersRecord> {
        let counters = self.counters();
        self.upgrades.count(counters)
    }

    /// Returns all counters.
    fn counters(&self) -> BTreeMap<CountersOf, Numbers> {
        let mut counters = BTreeMap::from([(CountersOf::Events, self.setting.events.counters().named())]);
        for (name, service) in &self.services {
            counters.insert(CountersOf::Service(name.to_string()), service.live().counters.named());
        }
        for pool in self.pools.iter() {
            for server in pool.servers() {
                let (pool, name, address) = name_of(pool, server);
                let of = |checks| CountersOf::Server {
                    pool: pool.to_string(),
                    server: name.to_string(),
                    address: address.clone(),
                    checks,
                };
                counters.insert(of(false), server.live.counters.named());
                counters.insert(of(true), server.live.check_counters.named());
            }
        }
        counters.retain(|_, numbers| !numbers.is_empty());
        counters
    }

    /// Adopts the state of the previous instance. What the configuration no longer has is ignored.
    pub(super) fn adopt_state(&mut self, state: Vec<Message>) {
        let ids: BTreeMap<ServerName, ServerId> = self
            .pools
            .iter()
            .flat_map(|pool| pool.servers().iter().map(move |server| (name_of(pool, server), server.id)))
            .collect();
        // Servers of this instance, by the positions of the records.
        let mut servers: Vec<Option<(Arc<str>, ServerId)>> = Vec::new();
        for message in state {
            match message {
                Message::Servers(records) => {
                    for record in records {
                        let name = record.name();
                        let id = ids.get(&name).copied();
                        if let Some(id) = id {
                            self.adopt_server((&name.0, id), &record);
                        }
                        servers.push(id.map(|id| (name.0, id)));
                    }
                }
                Message::Sticky(clients) => {
                    clients.iter().for_each(|client| self.adopt_client(client, &servers));
                }
                Message::Counters(records) => self.adopt_counters(records),
                Message::Access(records) => self.adopt_access(&records),
                Message::Cached(records) => self.adopt_cached(&records),
                _ => {}
            }
        }
        self.apply_access();
        self.publish();
    }

    fn adopt_access(&mut self, records: &[AccessRecord]) {
        for record in records {
            let mut services = self.config.spec.services.iter();
            let service = services.find(|service| *service.name == *record.service());
            let name = service.map(|service| Arc::clone(&service.name));
            if let Some((name, rule)) = name.zip(record.rule()) {
                self.access.adopt(&name, rule);
            }
        }
    }

    /// Stores cached responses of the previous instance. The lifetimes of this configuration apply.
    fn adopt_cached(&self, records: &[CachedRecord]) {
        let now = self.now();
        for of_service in records.chunk_by(|one, other| one.service() == other.service()) {
            let cache = of_service.first().and_then(|first| self.cache_of(first.service()).ok());
            cache.into_iter().for_each(|cache| of_service.iter().for_each(|one| one.store_in(&cache, now)));
        }
    }

    fn adopt_server(&mut self, (pool, id): (&Arc<str>, ServerId), record: &ServerRecord) {
        let now = self.now();
        // The events were logged by the previous instance.
        if let Some((state, until)) = record.state() {
            let _ = self.pools.set_state(now, (pool, id), state, until);
        }
        if let Some(seen) = record.probe() {
            self.pools.adopt_verdict(now, (pool, id), seen);
        }
    }

    fn adopt_client(&self, record: &StickyRecord, servers: &[Option<(Arc<str>, ServerId)>]) {
        let Some((pool, client)) = record.client(servers, self.now()) else { return };
        let table = self.pools.get(pool).and_then(Pool::sticky);
        table.into_iter().for_each(|table| table.restore(&client));
    }

    /// Adds counts of the previous instance.
    pub(super) fn adopt_counters(&self, records: Vec<CountersRecord>) {
        for (of, numbers) in records.into_iter().map(CountersRecord::into_parts) {
            match of {
                CountersOf::Events => self.setting.events.counters().carry(&numbers),
                CountersOf::Service(name) => {
                    let service = self.services.get(&*name);
                    service.into_iter().for_each(|service| service.live().counters.carry(&numbers));
                }
                CountersOf::Server { pool, server, address, checks } => {
                    let servers = self.pools.get(&pool).into_iter().flat_map(Pool::servers);
                    let mut found = servers.filter(|one| *one.spec.name == *server);
                    let Some(found) = found.find(|one| one.target.to_string() == address) else { continue };
                    if checks {
                        found.live.check_counters.carry(&numbers);
                    } else {
                        found.live.counters.carry(&numbers);
                    }
                }
            }
        }
    }
}
