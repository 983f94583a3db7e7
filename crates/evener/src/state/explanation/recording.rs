//! Recorded choices: a file with the inputs of a choice and its explanation, and the derivation of the explanation
//! from the inputs, without an instance.

use super::Explanation;
use evener_core::limits::Limits;
use evener_core::recording::{ChoiceInputs, ServerInputs};
use evener_core::snapshot::{Admission, KnownOnly, Quorum};
use evener_core::spec::{Failover, Policy, Protocol, QueueSpec, QuorumSpec};
use evener_core::sticky::Assignment;
use evener_core::{ServerId, Time};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// Word by which files of this kind are known.
const FORMAT: &str = "evener-choice";
/// Version of the format that this program writes and reads.
const VERSION: u64 = 1;

/// A file with a recorded choice.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordedChoice {
    format: String,
    version: u64,
    /// Version of the program that made the choice.
    evener: String,
    recorded_at: String,
    inputs: InputsView,
    explanation: Explanation,
}

/// Reason why a choice cannot be derived from a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("not a recorded choice of `evener explain --record`: {0}")]
    Foreign(String),
    #[error("a recorded choice of version {0}; this program reads version {VERSION}")]
    Version(String),
    #[error("the recorded inputs are invalid: {0}")]
    Inputs(String),
    #[error(
        "the choice that follows from the recorded inputs is not the recorded one: the file was changed, or evener {0}, \
         which recorded it, chose in another manner"
    )]
    Differs(String),
}

impl RecordedChoice {
    /// Creates the file of an explanation, and takes the inputs away from it. Returns `None` if the explanation has no
    /// inputs, because no server was to be chosen.
    pub(crate) fn new(explanation: &mut Explanation, now: SystemTime) -> Option<Self> {
        let inputs = *explanation.inputs.take()?;
        Some(Self {
            format: FORMAT.into(),
            version: VERSION,
            evener: env!("CARGO_PKG_VERSION").into(),
            recorded_at: humantime::format_rfc3339_seconds(now).to_string(),
            inputs,
            explanation: explanation.clone(),
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The text is not a recorded choice of this version.
    pub(crate) fn parse(text: &str) -> Result<Self, ReplayError> {
        let foreign = |error: serde_json::Error| ReplayError::Foreign(error.to_string());
        let value: Value = serde_json::from_str(text).map_err(foreign)?;
        if value["format"] != FORMAT {
            return Err(ReplayError::Foreign(format!("it has no `\"format\": \"{FORMAT}\"`")));
        }
        if value["version"] != VERSION {
            return Err(ReplayError::Version(value["version"].to_string()));
        }
        serde_json::from_value(value).map_err(foreign)
    }

    /// Derives the explanation from the inputs. What the service decided before the choice is taken as recorded.
    ///
    /// # Errors
    /// The inputs are invalid, or the derived explanation is not the recorded one.
    pub(crate) fn replay(self) -> Result<Explanation, ReplayError> {
        let (protocol, inputs) = self.inputs.parsed().map_err(ReplayError::Inputs)?;
        let mut derived = self.explanation.clone();
        derived.notes.truncate(self.inputs.notes_before);
        derived.note_codes.truncate(self.inputs.notes_before);
        derived.derive(protocol, &inputs.explain(), &inputs.pool, inputs.policy);
        let derived_text =
            serde_json::to_string(&derived).map_err(|error| ReplayError::Inputs(error.to_string()))?;
        // Both have been read from text, so that equal numbers are equal.
        let derived: Explanation =
            serde_json::from_str(&derived_text).map_err(|error| ReplayError::Inputs(error.to_string()))?;
        let text = |explanation| serde_json::to_value(explanation).unwrap_or_default();
        if text(&derived) == text(&self.explanation) {
            Ok(derived)
        } else {
            Err(ReplayError::Differs(self.evener))
        }
    }
}

/// The inputs of a choice.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputsView {
    protocol: String,
    /// Number of the notes about decisions before the choice.
    notes_before: usize,
    pool: String,
    policy: PolicyView,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    cookie: Option<String>,
    failover: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    quorum: Option<QuorumView>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    queue: Option<QueueView>,
    waiting: u32,
    turn: u64,
    seed: u64,
    client: IpAddr,
    now_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sticky: Option<StickyView>,
    servers: Vec<ServerView>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyView {
    name: String,
    /// Size of the Maglev table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    table: Option<u32>,
    /// Decay of the latencies.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    decay_ns: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuorumView {
    quorum: u32,
    hysteresis: u32,
    weight: u32,
    met: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueView {
    size: u32,
    timeout_ns: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StickyView {
    home: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    substitute: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerView {
    id: u32,
    name: String,
    placement_name: String,
    tier: u8,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    sorry: bool,
    weight: u32,
    share: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    hard: Option<u32>,
    permits: bool,
    admission: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reason: Option<String>,
    active: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    latency_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    latency_seen_ns: Option<u64>,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl InputsView {
    /// Describes the inputs of a choice that is made after `notes_before` notes.
    pub(super) fn new(inputs: &ChoiceInputs, protocol: Protocol, notes_before: usize) -> Self {
        let (table, decay_ns) = match inputs.policy {
            Policy::Maglev { table } => (Some(table), None),
            Policy::Ewma { decay } => (None, Some(nanos(decay))),
            _ => (None, None),
        };
        Self {
            protocol: protocol.name().into(),
            notes_before,
            pool: inputs.pool.to_string(),
            policy: PolicyView { name: inputs.policy.name().into(), table, decay_ns },
            cookie: inputs.cookie.as_deref().map(str::to_owned),
            failover: inputs.failover == Failover::Next,
            quorum: inputs.quorum.map(|Quorum { spec, weight, is_met }| QuorumView {
                quorum: spec.weight,
                hysteresis: spec.hysteresis,
                weight,
                met: is_met,
            }),
            queue: inputs.queue.map(|queue| QueueView { size: queue.size, timeout_ns: nanos(queue.timeout) }),
            waiting: inputs.waiting,
            turn: inputs.turn,
            seed: inputs.seed,
            client: inputs.client,
            now_ns: inputs.now.as_nanos(),
            sticky: inputs.assignment.map(|Assignment { home, substitute }| StickyView {
                home: home.0,
                substitute: substitute.map(|substitute| substitute.0),
            }),
            servers: inputs.servers.iter().map(ServerView::new).collect(),
        }
    }

    /// Returns the protocol and the inputs.
    ///
    /// # Errors
    /// No pool has these inputs.
    fn parsed(&self) -> Result<(Protocol, ChoiceInputs), String> {
        let protocols = [Protocol::Tcp, Protocol::Http, Protocol::Udp, Protocol::Dns];
        let known = protocols.into_iter().find(|protocol| protocol.name() == self.protocol);
        let protocol = known.ok_or_else(|| format!("`{}` is not a protocol", self.protocol))?;
        let quorum = self.quorum.as_ref().map(|quorum| Quorum {
            spec: QuorumSpec { weight: quorum.quorum, hysteresis: quorum.hysteresis },
            weight: quorum.weight,
            is_met: quorum.met,
        });
        let queue = self
            .queue
            .as_ref()
            .map(|queue| QueueSpec { size: queue.size, timeout: Duration::from_nanos(queue.timeout_ns) });
        let assignment = self.sticky.as_ref().map(|sticky| Assignment {
            home: ServerId(sticky.home),
            substitute: sticky.substitute.map(ServerId),
        });
        let inputs = ChoiceInputs {
            pool: self.pool.as_str().into(),
            policy: self.policy.parsed()?,
            cookie: self.cookie.as_deref().map(Into::into),
            failover: if self.failover { Failover::Next } else { Failover::Never },
            quorum,
            queue,
            waiting: self.waiting,
            turn: self.turn,
            seed: self.seed,
            client: self.client,
            now: Time::from_nanos(self.now_ns),
            assignment,
            servers: self.servers.iter().map(ServerView::parsed).collect::<Result<_, _>>()?,
        };
        inputs.validate().map_err(|error| error.to_string())?;
        Ok((protocol, inputs))
    }
}

impl PolicyView {
    fn parsed(&self) -> Result<Policy, String> {
        let policy = Policy::named(&self.name).ok_or_else(|| format!("`{}` is not a policy", self.name))?;
        Ok(match (policy, self.table, self.decay_ns) {
            (Policy::Maglev { .. }, Some(table), None) => Policy::Maglev { table },
            (Policy::Ewma { .. }, None, Some(decay)) => Policy::Ewma { decay: Duration::from_nanos(decay) },
            (Policy::Maglev { .. } | Policy::Ewma { .. }, ..) | (_, Some(_), _) | (_, _, Some(_)) => {
                return Err(format!(
                    "the settings of policy `{}` are incomplete or of another policy",
                    self.name
                ));
            }
            (policy, None, None) => policy,
        })
    }
}

impl ServerView {
    fn new(server: &ServerInputs) -> Self {
        let (admission, reason) = match &server.admission {
            Admission::Open => ("open", None),
            Admission::KnownOnly(KnownOnly::Drain) => ("drain", None),
            Admission::KnownOnly(KnownOnly::Weight) => ("weight_zero", None),
            Admission::Unchecked => ("unchecked", None),
            Admission::LastResort(reason) => ("last_resort", Some(reason.to_string())),
            Admission::Down(reason) => ("down", Some(reason.to_string())),
            Admission::Maintenance => ("maintenance", None),
        };
        Self {
            id: server.id.0,
            name: server.name.to_string(),
            placement_name: server.placement_name.to_string(),
            tier: server.tier,
            sorry: server.is_sorry,
            weight: server.weight,
            share: server.share,
            max: server.limits.soft,
            hard: server.limits.hard,
            permits: server.permits,
            admission: admission.into(),
            reason,
            active: server.active,
            latency_ns: server.latency.map(|(average, _)| average),
            latency_seen_ns: server.latency.map(|(_, seen_at)| seen_at.as_nanos()),
        }
    }

    fn parsed(&self) -> Result<ServerInputs, String> {
        let reason = || self.reason.as_deref().unwrap_or_default().into();
        let admission = match self.admission.as_str() {
            "open" => Admission::Open,
            "drain" => Admission::KnownOnly(KnownOnly::Drain),
            "weight_zero" => Admission::KnownOnly(KnownOnly::Weight),
            "unchecked" => Admission::Unchecked,
            "last_resort" => Admission::LastResort(reason()),
            "down" => Admission::Down(reason()),
            "maintenance" => Admission::Maintenance,
            other => return Err(format!("`{other}` is not an admission of a server")),
        };
        Ok(ServerInputs {
            id: ServerId(self.id),
            name: self.name.as_str().into(),
            placement_name: self.placement_name.as_str().into(),
            tier: self.tier,
            is_sorry: self.sorry,
            weight: self.weight,
            share: self.share,
            limits: Limits { soft: self.max, hard: self.hard },
            permits: self.permits,
            admission,
            active: self.active,
            latency: self.latency_ns.zip(self.latency_seen_ns.map(Time::from_nanos)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ExplainQuery;

    fn recorded(policy: Policy) -> String {
        let server = |id: u32| ServerInputs {
            id: ServerId(id),
            name: format!("10.0.0.{id}:80").as_str().into(),
            placement_name: format!("10.0.0.{id}:80").as_str().into(),
            tier: 1,
            is_sorry: false,
            weight: 1 + id,
            share: (1 + id) * 256,
            limits: Limits { soft: Some(5), hard: None },
            permits: id != 2,
            admission: if id == 3 { Admission::Down("connect: refused".into()) } else { Admission::Open },
            active: id,
            latency: Some((1_234_567 + u64::from(id), Time::from_nanos(7))),
        };
        let inputs = ChoiceInputs {
            pool: "web".into(),
            policy,
            cookie: None,
            failover: Failover::Next,
            quorum: None,
            queue: None,
            waiting: 0,
            turn: 3,
            seed: u64::MAX,
            client: [192, 0, 2, 7].into(),
            now: Time::from_nanos(12_345_678_901),
            assignment: Some(Assignment { home: ServerId(3), substitute: Some(ServerId(1)) }),
            servers: (0..8).map(server).collect(),
        };
        let mut explanation = Explanation::new(&ExplainQuery::of("www", inputs.client));
        explanation.note("cookie", "a note before the choice");
        explanation.inputs = Some(Box::new(InputsView::new(&inputs, Protocol::Tcp, 1)));
        explanation.derive(Protocol::Tcp, &inputs.explain(), &inputs.pool, policy);
        let file = RecordedChoice::new(&mut explanation, SystemTime::UNIX_EPOCH).unwrap();
        serde_json::to_string_pretty(&file).unwrap()
    }

    fn replay(text: &str) -> Result<Explanation, ReplayError> {
        RecordedChoice::parse(text)?.replay()
    }

    #[test]
    fn every_policy_chooses_again_as_recorded() {
        for name in Policy::NAMES {
            let text = recorded(Policy::named(name).unwrap());
            let explained = replay(&text).unwrap();
            assert_eq!(explained.servers.len(), 8, "{name}");
            assert_eq!(explained.sticky.as_deref(), Some("10.0.0.3:80"), "{name}");
        }
    }

    #[test]
    fn a_foreign_or_damaged_file_is_an_error() {
        let text = recorded(Policy::LeastConn);
        let check = |text: &str, expected: &str| {
            let error = replay(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} has no `{expected}`");
        };
        check("", "not a recorded choice");
        check("{}", "it has no `\"format\"");
        check("\u{7f}ELF", "not a recorded choice");
        check(&text.replace("\"version\": 1", "\"version\": 2"), "of version 2");
        check(&text.replace("\"open\"", "\"ajar\""), "`ajar` is not an admission");
        check(&text.replace("\"least_conn\"", "\"best\""), "`best` is not a policy");
        check(&text.replace("\"turn\"", "\"turns\""), "not a recorded choice");
        check(&text.replace("\"active\": 1", "\"active\": 4"), "not the recorded one");
        check(&text.replace("\"weight\": 3", "\"weight\": 300000"), "invalid weight");
        check(&text.replace("\"id\": 4", "\"id\": 5"), "two servers have the identity 5");
        check(&recorded(Policy::named("maglev").unwrap()).replace("65537", "65536"), "must be a prime");
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let text = recorded(Policy::P2c);
        for end in 0..text.len() {
            assert!(replay(&text[..end]).is_err(), "{end}");
        }
    }
}
