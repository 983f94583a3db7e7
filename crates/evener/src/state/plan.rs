//! A plan: the changes that a configuration would make, and the clients and flows that it would move.

use crate::output::printable;
use crate::table::{self, Style, Tone, paragraph};
use evener_core::diff::{Action, Change, ChangeSet, FieldChange, Subject};
use evener_core::pool::{MoveReason, Tally};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The effect of a configuration on the running instance.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct PlanView {
    /// Identifies the running configuration and the new one; `apply` takes it.
    plan: String,
    changes: Vec<ChangeView>,
    clients: MovesView,
    flows: MovesView,
    /// Connections and requests at servers that are removed. They continue until they end.
    continuing: usize,
    /// Pools whose clients may move.
    pools: Vec<PoolMovesView>,
    warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct ChangeView {
    /// `add`, `remove` or `set`.
    action: String,
    /// `service`, `listener`, `pool`, `server`, `xdp` or `ipvs`.
    kind: String,
    name: String,
    /// Settings with other values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fields: Vec<FieldView>,
}

#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
struct FieldView {
    field: String,
    before: String,
    after: String,
}

/// Numbers of clients or flows.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
struct MovesView {
    /// Number that have a server now.
    tracked: usize,
    /// Number that get another server, or end.
    moved: usize,
    /// Number that are no longer bound to their server, and may get another one.
    may_move: usize,
    /// The numbers by reason.
    reasons: BTreeMap<String, ReasonView>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
struct ReasonView {
    moved: usize,
    may_move: usize,
}

/// Effect on the clients of a pool.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct PoolMovesView {
    pool: String,
    tracked: usize,
    moved: usize,
    may_move: usize,
    /// Part of all addresses that the policy places at another server, from a sample; absent if the policy does not
    /// place clients by their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    addresses_moved: Option<f64>,
}

impl PoolMovesView {
    pub(crate) fn new(pool: &str, tally: &Tally, addresses_moved: Option<f64>) -> Self {
        let MovesView { tracked, moved, may_move, .. } = MovesView::new(tally);
        Self { pool: pool.to_owned(), tracked, moved, may_move, addresses_moved }
    }
}

/// The counts of a plan.
#[derive(Debug, Default)]
pub(crate) struct PlanCounts {
    pub(crate) clients: Tally,
    pub(crate) flows: Tally,
    pub(crate) continuing: usize,
    pub(crate) pools: Vec<PoolMovesView>,
}

impl MovesView {
    fn new(tally: &Tally) -> Self {
        let mut reasons: BTreeMap<String, ReasonView> = BTreeMap::new();
        let mut of = |reason: &MoveReason, add: &dyn Fn(&mut ReasonView)| {
            add(reasons.entry(reason.name().to_owned()).or_default());
        };
        tally.moved.iter().for_each(|(reason, count)| of(reason, &|view| view.moved += count));
        tally.may_move.iter().for_each(|(reason, count)| of(reason, &|view| view.may_move += count));
        let (moved, may_move) = (tally.moved.values().sum(), tally.may_move.values().sum());
        Self { tracked: tally.tracked, moved, may_move, reasons }
    }
}

impl ChangeView {
    fn new(change: &Change) -> Self {
        let (action, fields) = match &change.action {
            Action::Add => ("add", &[][..]),
            Action::Remove => ("remove", &[][..]),
            Action::Set(fields) => ("set", &fields[..]),
        };
        let (kind, name) = match &change.subject {
            Subject::Admin => ("admin", String::new()),
            Subject::Xdp => ("xdp", String::new()),
            Subject::Ipvs => ("ipvs", String::new()),
            Subject::Service(service) => ("service", service.to_string()),
            Subject::Listener(service, address) => ("listener", format!("{service} {address}")),
            Subject::Pool(pool) => ("pool", pool.to_string()),
            Subject::Server(pool, server) => ("server", format!("{pool}/{server}")),
        };
        let field = |FieldChange { field, before, after }: &FieldChange| FieldView {
            field: field.clone(),
            before: before.clone(),
            after: after.clone(),
        };
        let fields = fields.iter().map(field).collect();
        Self { action: action.into(), kind: kind.into(), name, fields }
    }

    fn text(&self, style: Style) -> String {
        let (sign, tone) = match self.action.as_str() {
            "add" => ("+", Tone::Strong),
            "remove" => ("-", Tone::Bad),
            _ => ("~", Tone::Warning),
        };
        let field = |FieldView { field, before, after }: &FieldView| {
            if before == after { format!("{field} changed") } else { format!("{field} {before} -> {after}") }
        };
        let fields: Vec<String> = self.fields.iter().map(field).collect();
        let colon = if fields.is_empty() { "" } else { ": " };
        let name = [self.kind.as_str(), self.name.as_str()].join(" ");
        let line = format!("{sign} {}{colon}{}", name.trim_end(), fields.join(", "));
        paragraph(&printable(&line), 0, tone, style)
    }
}

impl PlanView {
    pub(crate) fn new(plan: String, changes: &ChangeSet, counts: PlanCounts, warnings: Vec<String>) -> Self {
        let PlanCounts { clients, flows, continuing, pools } = counts;
        Self {
            plan,
            changes: changes.iter().map(ChangeView::new).collect(),
            clients: MovesView::new(&clients),
            flows: MovesView::new(&flows),
            continuing,
            pools,
            warnings,
        }
    }

    /// Returns true if the configuration is the running one.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.changes.is_empty()
    }

    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Formats the plan for people.
    pub(crate) fn text(&self, style: Style) -> String {
        if self.is_unchanged() {
            return format!("no changes\nplan {}\n", self.plan);
        }
        let mut text: String = self.changes.iter().map(|change| change.text(style)).collect();
        let count = |action: &str| self.changes.iter().filter(|change| change.action == action).count();
        let line =
            format!("\n{} to add, {} to change, {} to remove\n", count("add"), count("set"), count("remove"));
        text += &line;
        text += &self.moves_text(style);
        for pool in &self.pools {
            if let Some(part) = pool.addresses_moved {
                let percent = 100.0 * part;
                let line =
                    format!("pool {}: about {percent:.1} % of all addresses get another server", pool.pool);
                text += &paragraph(&printable(&line), 0, Tone::Normal, style);
            }
        }
        text + &format!("plan {}\n", self.plan)
    }

    fn moves_text(&self, style: Style) -> String {
        let Self { clients, flows, continuing, .. } = self;
        let sentence = |what: &str, MovesView { tracked, moved, may_move, .. }: &MovesView| {
            let may = if *may_move > 0 { format!(", {may_move} may move") } else { String::new() };
            format!("{moved} of {tracked} {what} move{may}\n")
        };
        let mut text = sentence("tracked clients", clients) + &sentence("flows", flows);
        let reasons: std::collections::BTreeSet<&String> =
            clients.reasons.keys().chain(flows.reasons.keys()).collect();
        let number = |moves: &MovesView, reason: &String| {
            let view = moves.reasons.get(reason).cloned().unwrap_or_default();
            (view.moved + view.may_move).to_string()
        };
        if !reasons.is_empty() {
            let row =
                |reason: &&String| vec![(*reason).clone(), number(clients, reason), number(flows, reason)];
            let rows: Vec<Vec<String>> = reasons.iter().map(row).collect();
            text += &table::table(&["REASON", "CLIENTS", "FLOWS"], &rows);
        }
        if *continuing > 0 {
            let line = format!(
                "{continuing} connections and requests continue at servers that are removed, until they end"
            );
            text += &paragraph(&line, 0, Tone::Normal, style);
        }
        text
    }
}

/// The outcome of `POST /v1/apply`.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ApplyView {
    /// The changes that were made, one text each.
    changes: Vec<String>,
    /// Seconds until the configuration before comes back, unless `POST /v1/confirm` arrives; absent without `confirm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirm_within_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl ApplyView {
    pub(crate) fn new(changes: Vec<String>, confirm: Option<Duration>, warnings: Vec<String>) -> Self {
        Self { changes, confirm_within_s: confirm.map(|time| time.as_secs()), warnings }
    }

    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Formats the outcome for people.
    pub(crate) fn text(&self) -> String {
        let mut text: String = match self.changes.as_slice() {
            [] => "applied; nothing changed\n".into(),
            changes => changes.iter().map(|change| format!("{}\n", printable(change))).collect(),
        };
        if let Some(seconds) = self.confirm_within_s {
            let time = table::seconds(seconds);
            text += &format!("goes back in {time} unless `evener confirm` keeps it\n");
        }
        text
    }
}

/// An applied configuration that waits for its confirmation.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ConfirmationView {
    /// The applied file.
    file: String,
    /// Seconds until the configuration before comes back.
    left_s: u64,
}

impl ConfirmationView {
    pub(crate) fn new(file: String, left: Duration) -> Self {
        Self { file, left_s: left.as_secs() }
    }

    pub(crate) fn text(&self, style: Style) -> String {
        let Self { file, left_s } = self;
        let left = table::seconds(*left_s);
        let line = format!("{file} goes back in {left} unless `evener confirm` keeps it");
        paragraph(&printable(&line), 0, Tone::Warning, style)
    }
}
