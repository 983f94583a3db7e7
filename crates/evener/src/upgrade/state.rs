//! The state of an instance as records of messages: servers, clients of sticky tables, counters, access rules of
//! operators, and cached responses.

use data_encoding::BASE64;
use evener_core::acl::{Access, Prefix};
use evener_core::dns::{Cache, StoredResponse};
use evener_core::health::{Probe, Verdict};
use evener_core::pool::{Pool, Server};
use evener_core::spec::AdminState;
use evener_core::sticky::{Assignment, StickyClient};
use evener_core::{ServerId, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Names of a server in both instances: pool, server, and its address.
pub(crate) type ServerName = (Arc<str>, Arc<str>, String);

/// Returns the names of a server.
pub(crate) fn name_of(pool: &Pool, server: &Server) -> ServerName {
    (Arc::clone(&pool.spec().name), Arc::clone(&server.spec.name), server.target.to_string())
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerRecord {
    pool: String,
    server: String,
    address: String,
    /// Administrative state.
    state: String,
    /// End of the administrative state, in nanoseconds since the origin.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    state_until: Option<u64>,
    verdict: String,
    /// Reason of the verdict.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
}

impl ServerRecord {
    pub(crate) fn new(pool: &Pool, server: &Server) -> Self {
        let (pool, name, address) = name_of(pool, server);
        // Passive failures end by themselves, and are noticed again.
        let passive = server.health.is_only_passively_down();
        let verdict = if passive { Verdict::Up } else { server.health.verdict() };
        Self {
            pool: pool.to_string(),
            server: name.to_string(),
            address,
            state: server.state.name().to_owned(),
            state_until: server.state_until.map(Time::as_nanos),
            verdict: verdict.name().to_owned(),
            reason: server.health.reason().filter(|_| !passive).map(str::to_owned),
        }
    }

    /// Returns the names of the server.
    pub(crate) fn name(&self) -> ServerName {
        (self.pool.as_str().into(), self.server.as_str().into(), self.address.clone())
    }

    /// Returns the administrative state that an operator has set, with its end.
    pub(crate) fn state(&self) -> Option<(AdminState, Option<Time>)> {
        let known = AdminState::ALL.into_iter().find(|state| state.name() == self.state)?;
        (known != AdminState::Ready).then(|| (known, self.state_until.map(Time::from_nanos)))
    }

    /// Returns the verdict as the result of a probe.
    pub(crate) fn probe(&self) -> Option<Probe> {
        match (self.verdict.as_str(), &self.reason) {
            ("up", _) => Some(Probe::Pass),
            ("down", Some(reason)) => Some(Probe::Fail(reason.clone())),
            _ => None,
        }
    }
}

/// A client of a sticky table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StickyRecord {
    #[serde(rename = "c")]
    client: IpAddr,
    /// Position of the record of its server.
    #[serde(rename = "h")]
    home: u32,
    /// Position of the record of its substitute.
    #[serde(rename = "s", skip_serializing_if = "Option::is_none", default)]
    substitute: Option<u32>,
    /// Time at which it was seen last, in nanoseconds since the origin.
    #[serde(rename = "t")]
    seen_at: u64,
}

impl StickyRecord {
    /// Creates the record of a client. `positions` has the positions of the records of the servers of its pool.
    pub(crate) fn new(client: &StickyClient, positions: &BTreeMap<ServerId, u32>) -> Option<Self> {
        Some(Self {
            client: client.address,
            home: *positions.get(&client.assignment.home)?,
            substitute: client.assignment.substitute.and_then(|id| positions.get(&id).copied()),
            seen_at: client.seen_at.as_nanos(),
        })
    }

    /// Returns the client, with its pool. `servers` are the servers of this instance by the positions of their
    /// records.
    pub(crate) fn client<'a>(
        &self,
        servers: &'a [Option<(Arc<str>, ServerId)>],
        now: Time,
    ) -> Option<(&'a str, StickyClient)> {
        let server = |at: u32| servers.get(at as usize).and_then(Option::as_ref);
        let (pool, home) = server(self.home)?;
        let substitute = self.substitute.and_then(server).map(|(_, id)| *id);
        let client = StickyClient {
            address: self.client,
            assignment: Assignment { home: *home, substitute },
            seen_at: Time::from_nanos(self.seen_at).min(now),
        };
        Some((pool, client))
    }
}

/// An access rule of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccessRecord {
    service: String,
    /// `permit` or `deny`.
    rule: String,
    prefix: String,
    /// End of the rule, in nanoseconds since the origin.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    until: Option<u64>,
}

impl AccessRecord {
    pub(crate) fn new(service: &str, access: Access, prefix: Prefix, until: Option<Time>) -> Self {
        Self {
            service: service.to_owned(),
            rule: if access == Access::Deny { "deny" } else { "permit" }.to_owned(),
            prefix: prefix.to_string(),
            until: until.map(Time::as_nanos),
        }
    }

    /// Returns the name of the service.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// Returns the rule and its end. Returns `None` if the record is malformed.
    pub(crate) fn rule(&self) -> Option<(Access, Prefix, Option<Time>)> {
        let access = match self.rule.as_str() {
            "deny" => Access::Deny,
            "permit" => Access::Permit,
            _ => return None,
        };
        Some((access, self.prefix.parse().ok()?, self.until.map(Time::from_nanos)))
    }
}

/// A cached response of a DNS service. Bytes are in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedRecord {
    #[serde(rename = "s")]
    service: String,
    #[serde(rename = "k")]
    key: String,
    #[serde(rename = "r")]
    response: String,
    /// Time at which it was stored, in nanoseconds since the origin.
    #[serde(rename = "t")]
    stored_at: u64,
}

impl CachedRecord {
    pub(crate) fn new(service: &str, stored: &StoredResponse) -> Self {
        Self {
            service: service.to_owned(),
            key: BASE64.encode(stored.key()),
            response: BASE64.encode(stored.message()),
            stored_at: stored.stored_at().as_nanos(),
        }
    }

    /// Returns the name of the service.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// Stores the response.
    pub(crate) fn store_in(&self, cache: &Cache, now: Time) {
        let bytes = |text: &str| BASE64.decode(text.as_bytes()).ok();
        if let Some((key, response)) = bytes(&self.key).zip(bytes(&self.response)) {
            cache.store(&key, &response, Time::from_nanos(self.stored_at).min(now));
        }
    }
}

/// Numbers of counters, by names that stay the same in later versions.
pub(crate) type Numbers = Vec<(String, u64)>;

/// Subject of counters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CountersOf {
    /// Events of the instance.
    Events,
    /// A service.
    Service(String),
    /// A server, or the checks of it.
    Server { pool: String, server: String, address: String, checks: bool },
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CountersRecord {
    of: CountersOf,
    numbers: Numbers,
}

impl CountersRecord {
    /// Creates the record of the growth since `before`. Returns `None` if nothing grew.
    pub(crate) fn of_growth(of: &CountersOf, before: &Numbers, now: &Numbers) -> Option<Self> {
        let before: BTreeMap<&str, u64> = before.iter().map(|(name, value)| (&**name, *value)).collect();
        let growth = now.iter().map(|(name, value)| {
            (name.clone(), value.saturating_sub(before.get(&**name).copied().unwrap_or(0)))
        });
        let numbers: Numbers = growth.filter(|(_, value)| *value > 0).collect();
        (!numbers.is_empty()).then(|| Self { of: of.clone(), numbers })
    }

    /// Returns the subject and the numbers.
    pub(crate) fn into_parts(self) -> (CountersOf, Numbers) {
        (self.of, self.numbers)
    }
}
