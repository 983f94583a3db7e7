//! The explanation for a service of the XDP plane: the associations of the client, and the table of choices for new
//! ones.

use super::super::connections::AssociationView;
use super::{Explanation, ServerReason};
use crate::planes::Listed;
use evener_core::acl::Access;
use evener_core::address::Target;
use evener_core::explain::{self as core, Reason};
use evener_core::hash::of_client;
use evener_core::snapshot::{NoServer, Request, Snapshot, Takes};
use evener_core::spec::{PoolSpec, ServiceSpec};
use evener_core::table::{ChoiceTable, ChooseBy, PoolTable};
use evener_core::{Random, ServerId, Time};

impl Explanation {
    /// Adds the server that the kernel would choose for a new association of the client, and the reasons. `acl` in
    /// `service` is the access list with the rules of the operator.
    pub(crate) fn explain_in_kernel(
        &mut self,
        service: &ServiceSpec,
        pool: &PoolSpec,
        snapshot: &Snapshot,
        now: Time,
    ) {
        self.permitted = service.acl.as_ref().is_none_or(|acl| acl.access(self.client) == Access::Permit);
        if !self.permitted {
            self.refusal = Some("drop".into());
            self.note(
                "denied",
                "the access list of the service refuses this client: its packets are dropped",
            );
            self.result = "refused".into();
            return;
        }
        if service.xdp.as_ref().is_some_and(|xdp| xdp.quic_id_length.is_some()) {
            self.note("quic", "a QUIC connection ID that names a server counts more than the association");
        }
        self.pool = Some(pool.name.to_string());
        self.policy = Some(pool.policy.name().into());
        let is_tunnel = service.xdp.as_ref().is_some_and(|xdp| xdp.forward.tunnel().is_some());
        let is_v4 = self.client.is_ipv4();
        // Without a tunnel, servers and clients have the same address family.
        let table = PoolTable::derive(pool, snapshot).filtered(|row| {
            is_tunnel || !matches!(row.target, Target::Ip(address) if address.is_ipv4() != is_v4)
        });
        let choices = ChoiceTable::derive(&table);
        let chosen = match choices.by() {
            ChooseBy::Turn => None,
            ChooseBy::Client => choices.pick(&table, of_client(self.client)),
        };
        self.add_quorum(snapshot.quorum().copied());
        self.add_choice(&choices, &table);
        self.servers = servers_of(&table, &choices, chosen, snapshot, &Request::of(self.client, now));
        self.moving = table
            .rows()
            .filter(|(_, row)| row.role.takes == Takes::None)
            .map(|(_, row)| row.name.to_string())
            .collect();
    }

    /// Notes how the server for a new association is chosen.
    fn add_choice(&mut self, choices: &ChoiceTable, table: &PoolTable) {
        match (choices.by(), choices.slots().len()) {
            (_, 0) => {
                let refusal = if table.rows().next().is_none() { NoServer::Empty } else { NoServer::Down };
                self.note(core::code_of(refusal), format!("the client gets no server: {refusal}"));
                self.result = core::code_of(refusal).into();
            }
            (ChooseBy::Turn, _) => {
                self.by_chance = true;
                self.note(
                    "by_turn",
                    "each processor of the kernel gives its new clients to the servers in turn",
                );
                self.result = "chosen".into();
            }
            (ChooseBy::Client, slots) => {
                let slot = of_client(self.client) % slots as u64;
                self.note(
                    "slot",
                    format!("the client's hash names slot {slot} of the table of {slots} slots"),
                );
                self.result = "chosen".into();
            }
        }
    }

    /// Adds the associations of the client.
    pub(crate) fn add_associations(&mut self, listed: &Listed) {
        if !self.permitted {
            return;
        }
        for association in &AssociationView::all(listed) {
            let client = association.client();
            let server = association.server().filter(|name| !self.moving.iter().any(|moving| moving == name));
            let Some(server) = server.map(str::to_owned) else {
                self.note(
                    "association_moves",
                    format!("{client} is associated with a server that takes no clients: its next packet goes to another"),
                );
                continue;
            };
            self.note("associated", format!("{client} is associated with {server} and stays there"));
            if !association.is_by_address() {
                continue;
            }
            self.sticky = Some(server.clone());
            self.by_chance = false;
            self.result = "chosen".into();
            for row in &mut self.servers {
                let is_known = row.server == server;
                if row.code == "chosen" && !is_known {
                    (row.code, row.reason) =
                        ("later_candidate".into(), "it has the slot of the client".into());
                }
                (row.rank, row.why) = (is_known.then_some(1), is_known.then(|| "sticky".into()));
                if is_known {
                    (row.code, row.reason) =
                        ("chosen".into(), "chosen: the client is associated with it".into());
                }
            }
            self.servers.sort_by_key(|row| row.rank.is_none());
        }
    }
}

/// Returns the servers with the reasons for and against them, the chosen server first.
fn servers_of(
    table: &PoolTable,
    choices: &ChoiceTable,
    chosen: Option<ServerId>,
    snapshot: &Snapshot,
    request: &Request,
) -> Vec<ServerReason> {
    let explained = core::explain(snapshot, request, &mut Random::seeded(0));
    let reason_against = |name: &str| {
        let row = explained.servers.iter().find(|row| *row.server == *name)?;
        let is_against = !matches!(row.reason, Reason::Candidate(..) | Reason::Further);
        is_against.then(|| (row.reason.code(), row.reason.to_string()))
    };
    let describe = |id: ServerId| -> (usize, &'static str, String) {
        let Some(row) = table.row(id) else { return (3, "", String::new()) };
        if Some(id) == chosen {
            return (0, "chosen", "chosen: it has the slot".into());
        }
        if row.role.takes == Takes::New && row.role.is_candidate {
            let share = format!("takes new clients, weight {}", row.weight);
            return match choices.by() {
                ChooseBy::Turn => (1, "candidate", share),
                ChooseBy::Client => (1, "later_candidate", format!("{share}; the slot is another server's")),
            };
        }
        match reason_against(&row.name) {
            Some((code, reason)) => (2, code, reason),
            None => (2, "later_candidate", "its tier takes no new clients now".into()),
        }
    };
    let mut rows: Vec<(usize, ServerReason)> = table
        .rows()
        .map(|(id, row)| {
            let (order, code, reason) = describe(id);
            let reason = ServerReason {
                server: row.name.to_string(),
                tier: row.tier,
                score: None,
                code: code.into(),
                rank: (order == 0).then_some(1),
                why: (order == 0).then(|| "policy".into()),
                reason,
            };
            (order, reason)
        })
        .collect();
    rows.sort_by_key(|(order, _)| *order);
    rows.into_iter().map(|(_, row)| row).collect()
}
