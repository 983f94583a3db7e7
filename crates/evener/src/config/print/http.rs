//! The keys that only http services have.

use super::Lists;
use super::access::write_prefixes;
use super::source::{Table, prose};
use crate::config::edge::{redirect_defaults, respond_defaults};
use evener_core::pace::MinRate;
use evener_core::spec::{
    AbortOnClose, Balance, ForwardedMode, ForwardedSpec, Http2, HttpSpec, RedirectSpec, RespondSpec,
};
use evener_core::wire::http::HeaderLimits;

/// Writes all keys that differ from the defaults.
pub(super) fn write_http(table: &mut Table, http: &HttpSpec, lists: Lists<'_>) {
    let HttpSpec {
        balance,
        forwarded,
        limits,
        header_timeout,
        keepalive_timeout,
        stall_timeout,
        min_rate,
        abort_on_close,
        response_timeout,
        retries,
        redirect,
        respond,
        health,
        subject_field,
        http2,
    } = http;
    let HeaderLimits { bytes_max, fields_max } = limits;
    let defaults = HttpSpec::default();
    match balance {
        Balance::Request => {}
        Balance::Connection => table.set("balance_per", "connection"),
    }
    write_forwarded(table, forwarded, lists);
    write_redirect(table, redirect.as_ref());
    write_respond(table, respond.as_ref());
    table.some("health", health.as_ref());
    table.unless("retries", retries, &defaults.retries);
    table.unless("header_timeout", header_timeout, &defaults.header_timeout);
    table.unless("keepalive_timeout", keepalive_timeout, &defaults.keepalive_timeout);
    table.unless("stall_timeout", stall_timeout, &defaults.stall_timeout);
    write_min_rate(table, *min_rate);
    match abort_on_close {
        AbortOnClose::Idempotent => {}
        AbortOnClose::Never => table.set("abort_on_close", &false),
        AbortOnClose::Always => table.set("abort_on_close", &true),
    }
    table.unless("response_timeout", response_timeout, &defaults.response_timeout);
    table.unless("header_bytes_max", bytes_max, &defaults.limits.bytes_max);
    table.unless("header_fields_max", fields_max, &defaults.limits.fields_max);
    table.some("certificate_header", subject_field.as_ref());
    match http2 {
        Http2::On => {}
        Http2::Off => table.set("http2", &false),
    }
}

fn write_min_rate(table: &mut Table, min_rate: Option<MinRate>) {
    let Some(MinRate { bytes_per_second, window }) = min_rate else {
        return table.set("min_rate", &false);
    };
    if window == MinRate::DEFAULT.window {
        return table.unless("min_rate", &bytes_per_second, &MinRate::DEFAULT.bytes_per_second);
    }
    let mut nested = Table::new();
    nested.unless("rate", &bytes_per_second, &MinRate::DEFAULT.bytes_per_second);
    nested.set("window", &window);
    table.key("min_rate", nested);
}

fn mode_word(mode: ForwardedMode) -> &'static str {
    match mode {
        ForwardedMode::Replace => "replace",
        ForwardedMode::Append => "append",
        ForwardedMode::Off => "off",
    }
}

fn write_forwarded(table: &mut Table, forwarded: &ForwardedSpec, lists: Lists<'_>) {
    let ForwardedSpec { mode, trust, classic, standard } = forwarded;
    let defaults = ForwardedSpec::default();
    let mut nested = Table::new();
    nested.unless("mode", &mode_word(*mode), &mode_word(defaults.mode));
    write_prefixes(&mut nested, "trust", trust.as_ref(), lists);
    match (classic, standard) {
        // `(true, false)` is the default. `(false, false)` cannot be configured: `mode = "off"` is used
        // instead.
        (true, false) | (false, false) => {}
        (false, true) => nested.set("headers", "forwarded"),
        (true, true) => nested.set("headers", "both"),
    }
    match nested.is_empty() {
        true => {}
        false if trust.is_none() && !standard => table.set("forwarded", mode_word(*mode)),
        false => table.key("forwarded", nested),
    }
}

fn write_redirect(table: &mut Table, redirect: Option<&RedirectSpec>) {
    let Some(RedirectSpec { status, port }) = redirect else { return };
    let defaults = redirect_defaults();
    let mut nested = Table::new();
    nested.unless("status", status, &defaults.status);
    nested.unless("port", port, &defaults.port);
    if nested.is_empty() { table.set("redirect", "https") } else { table.key("redirect", nested) }
}

fn write_respond(table: &mut Table, respond: Option<&RespondSpec>) {
    let Some(RespondSpec { status, content_type, body }) = respond else { return };
    let defaults = respond_defaults();
    let mut nested = Table::new();
    nested.unless("status", status, &defaults.status);
    nested.unless("type", content_type, &defaults.content_type);
    if *body != defaults.body {
        nested.key("body", prose(body));
    }
    table.key("respond", nested);
}
