//! The table `admin`.

use super::source::{Table, one_or_list};
use evener_core::spec::{AdminSpec, AdminTls, StateFile};

/// Writes `admin { ... }`.
pub(super) fn settings(admin: &AdminSpec) -> Table {
    let AdminSpec { listen, token_file, tls, hosts, state_file } = admin;
    let mut table = Table::of("admin");
    if let Some(listen) = listen {
        table.set("listen", &listen.to_string());
    }
    table.some("token_file", token_file.as_ref());
    match tls {
        Some(AdminTls { certificate, key }) if certificate == key => table.set("tls", certificate),
        Some(AdminTls { certificate, key }) => {
            let mut nested = Table::new();
            nested.set("certificate", certificate);
            nested.set("key", key);
            table.key("tls", nested);
        }
        None => {}
    }
    if !hosts.is_empty() {
        table.key("hosts", one_or_list(hosts.iter().cloned()));
    }
    match state_file {
        StateFile::Default => {}
        StateFile::Off => table.set("state_file", &false),
        StateFile::At(path) => table.set("state_file", path),
    }
    table
}
