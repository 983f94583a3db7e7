//! Reads the settings for servers that fail: the quorum, the sorry server, the passive check and failover.

use super::{Builder, read_server};
use crate::config::address::{self, Part};
use crate::config::fields::Fields;
use crate::config::locate::Step;
use crate::config::raw::{Made, Table, Value};
use evener_core::spec::{Failover, PassiveSpec, QuorumSpec, ServerSpec};

/// Usual name of a sorry server.
pub(in crate::config) const SORRY_NAME: &str = "sorry";

impl<'a> Builder<'a> {
    /// Reads the sorry server of a pool with these servers.
    pub(super) fn sorry(
        &self,
        made: &'a Made,
        fields: &mut Fields<'a>,
        servers: &[ServerSpec],
    ) -> Option<ServerSpec> {
        static EMPTY: Table = Table::EMPTY;
        let given = fields.take("sorry")?;
        let (address, table, location): (&str, &Table, _) = match given {
            Value::Text(address) => (address, &EMPTY, made.location()),
            Value::Table(table) if table.list().first().is_some_and(|first| first.text().is_some()) => {
                (table.list()[0].text().unwrap_or_default(), table, made.location())
            }
            Value::Made(server) if server.builder() == "server" => {
                (server.name(), server.table(), server.location())
            }
            Value::Unknown => return None,
            _ => {
                fields
                    .must("sorry", "be an address such as \"10.0.0.9:80\" or server \"10.0.0.9:80\" { ... }");
                return None;
            }
        };
        let path = if matches!(given, Value::Made(_)) { Vec::new() } else { vec![Step::Named("sorry")] };
        let mut nested = Fields::of_server(fields.reading(), table, location, address, &path);
        let defaults = match self.server_at(address, made) {
            Ok(server) => ServerSpec { name: SORRY_NAME.into(), is_sorry: true, ..server },
            Err(error) => {
                let port = address::usual_port(fields.reading().run(), made);
                fields.problem("sorry", address::problem(address, &error, Part::Server, port));
                return None;
            }
        };
        let second = table.list().get(usize::from(matches!(given, Value::Table(_))));
        let server = read_server(defaults, second, &mut nested);
        if nested.has("tier") {
            nested.problem("tier", "a sorry server has no tier: remove the key");
        }
        if server.check.is_some() {
            nested.problem("check", "a sorry server has no check: remove the key");
        }
        if server.weight == 0 {
            nested.must("weight", "be 1 or more for a sorry server");
        }
        nested.finish();
        if servers.iter().any(|other| other.name == server.name) {
            let name = &server.name;
            fields.problem(
                "sorry",
                format!("a server is also named `{name}`: give the sorry server another name"),
            );
        }
        Some(server)
    }
}

/// Reads `quorum` and `hysteresis`.
pub(super) fn read_quorum(fields: &mut Fields<'_>) -> Option<QuorumSpec> {
    let weight = fields.integer("quorum", 1..=QuorumSpec::WEIGHT_MAX);
    let hysteresis = fields.integer("hysteresis", 0..=QuorumSpec::WEIGHT_MAX - 1);
    if hysteresis.is_some() && !fields.has("quorum") {
        fields.problem("hysteresis", "hysteresis needs a quorum: add quorum = 2");
    }
    let (weight, hysteresis) = (weight?, hysteresis.unwrap_or(0));
    if hysteresis >= weight {
        fields.must("hysteresis", format!("be less than the quorum, {weight}"));
        return None;
    }
    Some(QuorumSpec { weight, hysteresis })
}

/// Reads `failover`.
pub(super) fn read_failover(fields: &mut Fields<'_>) -> Failover {
    if fields.bool("failover") == Some(false) { Failover::Never } else { Failover::Next }
}

/// Reads `passive`.
pub(super) fn read_passive(fields: &mut Fields<'_>) -> PassiveSpec {
    let defaults = PassiveSpec::default();
    match fields.take("passive") {
        None | Some(Value::Bool(true)) => defaults,
        Some(Value::Bool(false)) => PassiveSpec { failures: 0, ..defaults },
        Some(Value::Table(table)) => {
            let mut nested = fields.within("passive", table);
            let failures = nested.integer("failures", 0..=1000).unwrap_or(defaults.failures);
            let down_for = nested.duration("down_for").unwrap_or(defaults.down_for);
            nested.finish();
            PassiveSpec { failures, down_for }
        }
        Some(_) => {
            fields.must("passive", "be false or { failures = 1, down_for = \"30s\" }");
            defaults
        }
    }
}
