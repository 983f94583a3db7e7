//! Fields of checks that differ.

use super::{Fields, Wanted};
use crate::spec::{CheckKind, CheckSpec, ScriptFunction};
use std::mem::discriminant;

pub(super) fn checks(fields: &mut Fields, old: Option<&CheckSpec>, new: Option<&CheckSpec>) {
    match (old, new) {
        // Checks of different kinds have different settings.
        (Some(old), Some(new)) if discriminant(&old.kind) != discriminant(&new.kind) => {
            let text = |spec: &CheckSpec| Fields::describe(|all| check(all, spec, spec));
            fields.push("check", text(old), text(new));
        }
        (old, new) => fields.table("check", old, new, check),
    }
}

fn check(fields: &mut Fields, old: &CheckSpec, new: &CheckSpec) {
    let CheckSpec { kind, every, timeout, rise, fall, jitter, warm_up, port } = new;
    check_kind(fields, &old.kind, kind);
    fields.field("every", &old.every, every);
    fields.field("timeout", &old.timeout, timeout);
    fields.field("rise", &old.rise, rise);
    fields.field("fall", &old.fall, fall);
    fields.field("jitter", &old.jitter, jitter);
    fields.field("warm_up", &old.warm_up, warm_up);
    fields.field("port", &old.port, port);
}

fn check_kind(fields: &mut Fields, old: &CheckKind, new: &CheckKind) {
    if fields.wanted == Wanted::All {
        fields.push("kind", String::new(), new.name().into());
    }
    match (old, new) {
        (
            CheckKind::Stream { send: old_send, begins: old_begins, expect: old_expect, tls: old_tls },
            CheckKind::Stream { send, begins, expect, tls },
        ) => {
            fields.field("send", old_send, send);
            fields.field("begins", old_begins, begins);
            fields.field("expect", old_expect, expect);
            fields.field("tls", old_tls, tls);
        }
        (CheckKind::Http { .. }, CheckKind::Http { .. }) => http(fields, old, new),
        (
            CheckKind::Dns { name: old_name, qtype: old_qtype, rcode: old_rcode },
            CheckKind::Dns { name, qtype, rcode },
        ) => {
            fields.field("name", old_name, name);
            fields.field("type", old_qtype, qtype);
            fields.field("rcode", old_rcode, rcode);
        }
        (
            CheckKind::Script { function: old_function, on_error: old_on_error },
            CheckKind::Script { function, on_error },
        ) => {
            let shown = |function: &ScriptFunction| format!("function at {}", function.location);
            if old_function != function || fields.wanted == Wanted::All {
                fields.push("run", shown(old_function), shown(function));
            }
            fields.field("on_error", old_on_error, on_error);
        }
        (CheckKind::Smtp { helo: old_helo }, CheckKind::Smtp { helo }) => {
            fields.field("helo", old_helo, helo);
        }
        (CheckKind::Exec { program: old }, CheckKind::Exec { program }) => {
            fields.field("program", old, program);
        }
        (CheckKind::Udp { send: old_send, expect: old_expect }, CheckKind::Udp { send, expect }) => {
            fields.field("send", old_send, send);
            fields.field("expect", old_expect, expect);
        }
        (
            CheckKind::Tcp
            | CheckKind::Stream { .. }
            | CheckKind::Http { .. }
            | CheckKind::Dns { .. }
            | CheckKind::Script { .. }
            | CheckKind::Smtp { .. }
            | CheckKind::Exec { .. }
            | CheckKind::Udp { .. },
            _,
        ) => {}
    }
}

fn http(fields: &mut Fields, old: &CheckKind, new: &CheckKind) {
    let (
        CheckKind::Http {
            method: old_method,
            path: old_path,
            host: old_host,
            status: old_status,
            body: old_body,
            regex: old_regex,
            digest: old_digest,
            tls: old_tls,
        },
        CheckKind::Http { method, path, host, status, body, regex, digest, tls },
    ) = (old, new)
    else {
        return;
    };
    fields.field("method", old_method, method);
    fields.field("path", old_path, path);
    fields.field("host", old_host, host);
    fields.field("status", old_status, status);
    fields.field("body", old_body, body);
    fields.field("regex", old_regex, regex);
    fields.field("digest", old_digest, digest);
    fields.field("tls", old_tls, tls);
}
