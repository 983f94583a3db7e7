//! Output in terms of pen: responses of the control port, and the status page.

use super::facts::{Client, Facts, Server, number_of, pen_state};
use super::state::{Slot, State};
use evener_proxy::Open;
use std::fmt::{Display, Write as _};
use time::{OffsetDateTime, UtcOffset};

/// Maximum number of rows of connections on a page.
pub(super) const ROWS_MAX: usize = 10_000;
const HEADING_COLOR: &str = "#80f080";

/// Formats the response to `servers`.
pub(super) fn servers(state: &State, facts: &Facts) -> String {
    let mut out = String::new();
    for (number, (slot, server)) in state.servers.iter().zip(&facts.servers).enumerate() {
        let Slot { port, max, hard, weight, prio, .. } = slot;
        let Server { connections, sent, received, .. } = server;
        let _ = writeln!(
            out,
            "{number} addr {} port {port} conn {connections} max {max} hard {hard} weight {weight} prio {prio} sx {sent} \
             rx {received}",
            address(slot)
        );
    }
    out
}

/// Formats the address of a slot, which may be unused.
fn address(slot: &Slot) -> String {
    slot.address.map_or_else(|| "(unknown address family 0".into(), |address| address.to_string())
}

/// Formats the response to `recent`: clients of the last seconds.
pub(super) fn recent(facts: &Facts, seconds: u64) -> String {
    let line = |client: &Client| {
        let Client { address, connects, sent, received, .. } = client;
        format!("{address} connects {connects} sx {sent} rx {received}\n")
    };
    facts.clients.iter().filter(|client| client.age <= seconds).map(line).collect()
}

/// Formats the response to `connection N`.
pub(super) fn connection(number: i64, conn_max: u32, open: &[(usize, Open)], facts: &Facts) -> String {
    if !(0..i64::from(conn_max)).contains(&number) {
        return out_of_range(number);
    }
    let Some((_, open)) = open.iter().find(|(position, _)| *position as i64 == number) else {
        return format!(
            "Connection {number}:\nstate = 0\ndownfd = -1, upfd = -1\nclient = 0, server = 0\npend = 0\n"
        );
    };
    format!(
        "Connection {number}:\nstate = {}\ndownfd = {}, upfd = {}\nclient = {}, server = {}\npend = 0\n",
        pen_state(open),
        open.client_socket.unwrap_or(-1),
        open.server_socket.unwrap_or(-1),
        client_number(open, facts),
        number_of(open.server.as_ref())
    )
}

pub(super) fn out_of_range(number: i64) -> String {
    format!("Connection {number} out of range\n")
}

/// Formats the response to `socket N`.
pub(super) fn socket(socket: i64, open: &[(usize, Open)]) -> String {
    let has = |end: Option<i32>| end.is_some_and(|end| i64::from(end) == socket);
    let owner = open.iter().find(|(_, open)| has(open.client_socket) || has(open.server_socket));
    let number = owner.map_or(-1, |(number, _)| *number as i64);
    format!("Socket {socket} belongs to connection {number}\n")
}

fn client_number(open: &Open, facts: &Facts) -> i64 {
    let position = facts.clients.iter().position(|client| client.address == open.client.to_canonical());
    position.map_or(-1, |at| at as i64)
}

/// Formats the local time.
fn local_time(offset: UtcOffset) -> String {
    let now = OffsetDateTime::now_utc().to_offset(offset);
    let (date, [hour, minute, second]) = (now.date(), [now.hour(), now.minute(), now.second()]);
    format!("{date} {hour:02}:{minute:02}:{second:02}")
}

/// Formats the status page.
pub(super) fn html(state: &State, facts: &Facts, open: &[(usize, Open)], offset: UtcOffset) -> String {
    let current = facts.clients.first().map_or(0, |client| client.server.max(0));
    let mut out = format!(
        "<html>\n<head>\n<title>Pen status page</title>\n</head>\n<body bgcolor=\"#ffffff\"><h1>Pen status page</h1>\n\
         Time {}, {} servers, {current} current<p>\n",
        local_time(offset),
        state.servers.len()
    );
    table(&mut out, &SERVER_HEADING, state.servers.iter().zip(&facts.servers).enumerate().map(server_row));
    let _ = write!(out, "<h2>Active clients</h2>Max number of clients: {}<p>", state.clients_max());
    table(&mut out, &CLIENT_HEADING, facts.clients.iter().enumerate().map(client_row));
    let last = open.last().map_or(0, |(number, _)| *number);
    let (max, used) = (state.conn_max(), facts.connections);
    let _ = write!(
        out,
        "<h2>Active connections</h2>Number of connections: {max} max, {used} used, {last} last<p>"
    );
    table(&mut out, &CONNECTION_HEADING, open.iter().map(|open| connection_row(open, facts)));
    out.push_str("</body>\n</html>\n");
    out
}

const SERVER_HEADING: [&str; 11] = [
    "server",
    "address",
    "status",
    "port",
    "connections",
    "max soft",
    "max hard",
    "sent",
    "received",
    "weight",
    "prio",
];
const CLIENT_HEADING: [&str; 7] =
    ["client", "address", "age(secs)", "last server", "connects", "sent", "received"];
const CONNECTION_HEADING: [&str; 7] =
    ["connection", "downfd", "upfd", "pending data down", "pending data up", "client", "server"];

fn server_row((number, (slot, server)): (usize, (&Slot, &Server))) -> Vec<String> {
    row([
        &number,
        &address(slot),
        &server.out_since,
        &slot.port,
        &server.connections,
        &slot.max,
        &slot.hard,
        &server.sent,
        &server.received,
        &slot.weight,
        &slot.prio,
    ])
}

fn client_row((number, client): (usize, &Client)) -> Vec<String> {
    let Client { address, age, server, connects, sent, received } = client;
    row([&number, address, age, server, connects, sent, received])
}

fn connection_row((number, open): &(usize, Open), facts: &Facts) -> Vec<String> {
    let end = |end: Option<i32>| end.unwrap_or(-1);
    row([
        number,
        &end(open.client_socket),
        &end(open.server_socket),
        &open.to_client,
        &open.to_server,
        &client_number(open, facts),
        &number_of(open.server.as_ref()),
    ])
}

fn row<const N: usize>(cells: [&dyn Display; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// Formats a table with the markup of pen, for scripts that parse it.
fn table(out: &mut String, heading: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    out.push_str("<table bgcolor=\"#c0c0c0\">\n<tr>\n");
    for cell in heading {
        let _ = writeln!(out, "<td bgcolor=\"{HEADING_COLOR}\">{cell}</td>");
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>\n");
        for cell in row {
            let _ = writeln!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

/// Formats the statistics that SIGUSR1 logs if there is no file for the page.
pub(super) fn text(state: &State, facts: &Facts) -> Vec<String> {
    let mut lines = vec![format!(
        "{} servers, {} of {} connections, {} of {} clients",
        state.servers.len(),
        facts.connections,
        state.conn_max(),
        facts.clients.len(),
        state.clients_max()
    )];
    lines.extend(servers(state, facts).lines().map(|line| format!("server {line}")));
    let client = |client: &Client| {
        let Client { address, age, server, connects, sent, received } = client;
        format!("client {address} age {age} server {server} connects {connects} sx {sent} rx {received}")
    };
    lines.extend(facts.clients.iter().take(100).map(client));
    lines
}
