//! Random settings for servers that fail, and random names of pools.

use super::Chance;
use evener_core::spec::{NotifySpec, ProgramSpec, QuorumSpec, ServerSpec};
use std::sync::Arc;

impl Chance<'_> {
    pub(super) fn pool_name(&mut self) -> Arc<str> {
        let name = match self.below(3) {
            0 => self.pick(&["drop", "reject", "tarpit"]).to_owned(),
            1 => format!("127.0.0.1:{}", self.unique()),
            _ => format!("{}{}", self.word(), self.unique()),
        };
        match self.pools.iter().any(|(other, _)| **other == *name) {
            true => format!("{name} {}", self.unique()).into(),
            false => name.into(),
        }
    }

    /// Makes a server the sorry server of its pool.
    pub(super) fn sorry(&mut self, server: ServerSpec) -> ServerSpec {
        let name = self.or("sorry".into(), |chance| format!("sorry {}", chance.unique()).into());
        ServerSpec { name, weight: server.weight.max(1), tier: 1, is_sorry: true, ..server }
    }

    pub(super) fn quorum(&mut self) -> QuorumSpec {
        let weight = self.within(1..=1000);
        QuorumSpec { weight, hysteresis: self.or(0, |chance| chance.below(weight as usize) as u32) }
    }

    pub(super) fn program(&mut self) -> ProgramSpec {
        let path = format!("/usr/bin/{}", self.word());
        ProgramSpec { path, arguments: self.some(0..=3, Self::word) }
    }

    pub(super) fn notify(&mut self) -> NotifySpec {
        let [up, down, quorum_up, quorum_down] = [(); 4].map(|()| self.maybe(Self::program));
        NotifySpec { up, down, quorum_up, quorum_down, timeout: self.or(NotifySpec::TIMEOUT, Self::time) }
    }
}
