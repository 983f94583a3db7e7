//! Random settings of the admin API.

use super::Chance;
use evener_core::spec::{AdminSpec, AdminTls, StateFile};

impl Chance<'_> {
    pub(super) fn admin(&mut self) -> AdminSpec {
        let path = |chance: &mut Self| format!("/etc/evener/{}", chance.unique());
        let state_file = match self.below(3) {
            0 => StateFile::Default,
            1 => StateFile::Off,
            _ => StateFile::At(path(self)),
        };
        if self.one_in(3) {
            return AdminSpec { state_file, ..AdminSpec::default() };
        }
        let tls = self.one_in(2).then(|| {
            let certificate = path(self);
            let key = if self.one_in(2) { certificate.clone() } else { path(self) };
            AdminTls { certificate, key }
        });
        let listen = if tls.is_some() { "192.0.2.1:9900" } else { "[::1]:9900" };
        let hosts = (0..self.below(3)).map(|_| format!("lb{}.example.org", self.unique())).collect();
        AdminSpec { listen: listen.parse().ok(), token_file: Some(path(self)), tls, hosts, state_file }
    }
}
