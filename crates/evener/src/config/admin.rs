//! The table `admin`: the API over TCP, and the file of the changes that operators made.

use super::fields::{Fields, Reading};
use super::raw::{Made, Value, shown};
use evener_core::spec::{AdminSpec, AdminTls, StateFile};
use std::net::SocketAddr;

/// Maximum number of host names.
const HOSTS_MAX: usize = 100;

/// Reads `admin { listen = "127.0.0.1:9900", token_file = "tokens" }`.
pub(super) fn read<'a>(reading: &'a Reading<'a>, made: &'a Made) -> AdminSpec {
    let mut fields = Fields::new(reading, made, "admin".into());
    let spec = AdminSpec {
        listen: read_listen(&mut fields),
        token_file: fields.path("token_file"),
        tls: read_tls(&mut fields),
        hosts: read_hosts(&mut fields),
        state_file: read_state_file(&mut fields),
    };
    if let Some(item) = made.table().list().first() {
        let message =
            format!("admin has only keys, such as listen = \"127.0.0.1:9900\", got {}", item.shown());
        fields.problem_with_item(0, item.text(), message);
    }
    check(&mut fields, &spec);
    fields.finish();
    spec
}

/// Refuses an address without tokens, and one that other machines can reach without TLS.
fn check(fields: &mut Fields<'_>, spec: &AdminSpec) {
    let Some(listen) = spec.listen else {
        for key in ["token_file", "tls", "hosts"] {
            if fields.has(key) {
                fields.problem(key, format!("{key} needs an address: add listen = \"127.0.0.1:9900\""));
            }
        }
        return;
    };
    if !fields.has("token_file") {
        fields.problem(
            "listen",
            "listen needs a file with tokens, because the API can change everything: add token_file = \"tokens\"",
        );
    }
    if !listen.ip().to_canonical().is_loopback() && !fields.has("tls") {
        let advice = "add tls = { certificate = \"api.crt\", key = \"api.key\" }, or listen on 127.0.0.1";
        fields.problem(
            "listen",
            format!("other machines can reach {listen}, and would send their tokens in clear: {advice}"),
        );
    }
}

fn read_listen(fields: &mut Fields<'_>) -> Option<SocketAddr> {
    let text = fields.text_such_as("listen", "an IP address with a port such as \"127.0.0.1:9900\"", "")?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        fields.must("listen", "be an IP address with a port such as \"127.0.0.1:9900\"");
    }
    parsed
}

/// Reads `tls = "api.pem"`, or `{ certificate = "api.crt", key = "api.key" }`.
fn read_tls(fields: &mut Fields<'_>) -> Option<AdminTls> {
    match fields.take("tls")? {
        Value::Text(file) if !file.is_empty() => {
            let file = fields.path_of("tls", file);
            Some(AdminTls { certificate: file.clone(), key: file })
        }
        Value::Table(table) => {
            let mut nested = fields.within("tls", table);
            let (certificate, key) = (nested.path("certificate"), nested.path("key"));
            if !nested.has("certificate") {
                nested.problem_here("tls has no certificate: add certificate = \"api.crt\"");
            }
            nested.finish();
            let certificate = certificate?;
            Some(AdminTls { key: key.unwrap_or_else(|| certificate.clone()), certificate })
        }
        _ => {
            fields.must("tls", "be a PEM file or { certificate = \"api.crt\", key = \"api.key\" }");
            None
        }
    }
}

fn read_hosts(fields: &mut Fields<'_>) -> Vec<String> {
    let hosts = fields.texts("hosts", "a host name or a list of host names", |text| {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if text.is_empty() || text.len() > 253 || !text.bytes().all(is_name) {
            return Err(format!("{} is not a host name", shown(text)));
        }
        Ok(text.to_ascii_lowercase())
    });
    let hosts = hosts.unwrap_or_default();
    if hosts.len() > HOSTS_MAX {
        fields.must("hosts", format!("have at most {HOSTS_MAX} names"));
    }
    hosts
}

fn read_state_file(fields: &mut Fields<'_>) -> StateFile {
    match fields.take("state_file") {
        None => StateFile::Default,
        Some(Value::Bool(false)) => StateFile::Off,
        Some(Value::Text(path)) if !path.is_empty() => StateFile::At(fields.path_of("state_file", path)),
        Some(_) => {
            fields.must("state_file", "be the path of a file, or false");
            StateFile::Default
        }
    }
}
