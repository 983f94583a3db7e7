//! Output in terms of pen: responses of the control port, and the status page.

use super::{ClientView, InstanceView, number_of, pen_state};
use crate::compat::pen::settings::{PenSettings, Slot, SlotTraffic};
use crate::state::ConnectionView;
use std::fmt::{Display, Write as _};
use time::{OffsetDateTime, UtcOffset};

/// Maximum number of rows of connections on a page.
pub(in crate::compat::pen) const ROWS_MAX: usize = 10_000;
const HEADING_COLOR: &str = "#80f080";

impl InstanceView {
    /// Formats the response to `servers`.
    pub(in crate::compat::pen) fn servers(&self, settings: &PenSettings) -> String {
        let rows = self.numbered_servers(settings);
        rows.map(|(number, (slot, traffic))| slot.status_line(number, traffic)).collect()
    }

    fn numbered_servers<'a>(
        &'a self,
        settings: &'a PenSettings,
    ) -> impl Iterator<Item = (usize, (&'a Slot, &'a SlotTraffic))> {
        settings.slots().iter().zip(&self.servers).enumerate()
    }

    /// Formats the response to `recent`: clients of the last seconds.
    pub(in crate::compat::pen) fn recent(&self, seconds: u64) -> String {
        let line = |client: &ClientView| {
            let ClientView { address, connects, sent, received, .. } = client;
            format!("{address} connects {connects} sx {sent} rx {received}\n")
        };
        self.clients.iter().filter(|client| client.age <= seconds).map(line).collect()
    }

    /// Formats the response to `idlers`.
    pub(in crate::compat::pen) fn idlers(&self, settings: &PenSettings) -> String {
        format!("Idlers: {}/{}\n", self.idlers, settings.idlers())
    }

    /// Formats the response to `connection N`.
    pub(in crate::compat::pen) fn connection(
        &self,
        number: i64,
        settings: &PenSettings,
        open: &[(usize, ConnectionView)],
    ) -> String {
        if !(0..i64::from(settings.conn_max())).contains(&number) {
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
            open.client_socket().unwrap_or(-1),
            open.server_socket().unwrap_or(-1),
            self.client_number(open),
            number_of(open.server())
        )
    }

    fn client_number(&self, open: &ConnectionView) -> i64 {
        let address = open.client().to_canonical();
        let position = self.clients.iter().position(|client| client.address == address);
        position.map_or(-1, |at| at as i64)
    }

    /// Formats the status page.
    pub(in crate::compat::pen) fn html(
        &self,
        settings: &PenSettings,
        open: &[(usize, ConnectionView)],
        offset: UtcOffset,
    ) -> String {
        let current = self.clients.first().map_or(0, |client| client.server.max(0));
        let mut out = format!(
            "<html>\n<head>\n<title>Pen status page</title>\n</head>\n<body bgcolor=\"#ffffff\"><h1>Pen status page</h1>\n\
             Time {}, {} servers, {current} current<p>\n",
            local_time(offset),
            settings.slots().len()
        );
        let servers = self.numbered_servers(settings);
        let servers = servers.map(|(number, (slot, traffic))| slot.status_row(number, traffic));
        table(&mut out, &SERVER_HEADING, servers);
        let _ = write!(out, "<h2>Active clients</h2>Max number of clients: {}<p>", settings.clients_max());
        table(&mut out, &CLIENT_HEADING, self.clients.iter().enumerate().map(client_row));
        let last = open.last().map_or(0, |(number, _)| *number);
        let (max, used) = (settings.conn_max(), self.connections);
        let _ = write!(
            out,
            "<h2>Active connections</h2>Number of connections: {max} max, {used} used, {last} last<p>"
        );
        table(&mut out, &CONNECTION_HEADING, open.iter().map(|open| self.connection_row(open)));
        out.push_str("</body>\n</html>\n");
        out
    }

    fn connection_row(&self, (number, open): &(usize, ConnectionView)) -> Vec<String> {
        let end = |end: Option<i32>| end.unwrap_or(-1);
        row([
            number,
            &end(open.client_socket()),
            &end(open.server_socket()),
            &open.to_client(),
            &open.to_server(),
            &self.client_number(open),
            &number_of(open.server()),
        ])
    }

    /// Formats the statistics that SIGUSR1 logs if there is no file for the page.
    pub(in crate::compat::pen) fn statistics(&self, settings: &PenSettings) -> Vec<String> {
        let mut lines = vec![format!(
            "{} servers, {} of {} connections, {} of {} clients",
            settings.slots().len(),
            self.connections,
            settings.conn_max(),
            self.clients.len(),
            settings.clients_max()
        )];
        lines.extend(self.servers(settings).lines().map(|line| format!("server {line}")));
        let client = |client: &ClientView| {
            let ClientView { address, age, server, connects, sent, received } = client;
            format!("client {address} age {age} server {server} connects {connects} sx {sent} rx {received}")
        };
        lines.extend(self.clients.iter().take(100).map(client));
        lines
    }
}

/// Formats the response to a number that no connection can have.
pub(in crate::compat::pen) fn out_of_range(number: i64) -> String {
    format!("Connection {number} out of range\n")
}

/// Formats the response to `socket N`.
pub(in crate::compat::pen) fn socket(socket: i64, open: &[(usize, ConnectionView)]) -> String {
    let has = |end: Option<i32>| end.is_some_and(|end| i64::from(end) == socket);
    let owner = open.iter().find(|(_, open)| has(open.client_socket()) || has(open.server_socket()));
    let number = owner.map_or(-1, |(number, _)| *number as i64);
    format!("Socket {socket} belongs to connection {number}\n")
}

/// Formats the local time.
fn local_time(offset: UtcOffset) -> String {
    let now = OffsetDateTime::now_utc().to_offset(offset);
    let (date, [hour, minute, second]) = (now.date(), [now.hour(), now.minute(), now.second()]);
    format!("{date} {hour:02}:{minute:02}:{second:02}")
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

fn client_row((number, client): (usize, &ClientView)) -> Vec<String> {
    let ClientView { address, age, server, connects, sent, received } = client;
    row([&number, address, age, server, connects, sent, received])
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
