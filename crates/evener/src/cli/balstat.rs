//! `evener balstat`: the servers, and the clients in sticky tables with their servers, as the two tables of
//! mname-balancer's `balstat`.

use super::AdminArgs;
use super::client::{print_json, table};
use super::connections::{path_with, say_rest};
use crate::admin::client::Client;
use crate::admin::sticky::{HomeView, RememberedView, StickyView};

/// `evener balstat [POOL] [--limit N]`
pub(super) async fn balstat(
    pool: Option<&str>,
    limit: Option<usize>,
    admin_args: &AdminArgs,
) -> anyhow::Result<()> {
    let path = path_with("/v1/sticky", &[("pool", pool)], limit);
    let seen: StickyView = Client::find(admin_args.socket.as_deref())?.get(&path).await?;
    if admin_args.json {
        return print_json(&seen);
    }
    if seen.servers.is_empty() && seen.clients.is_empty() {
        eprintln!("no pool that is sticky by address has servers");
    }
    print!("{}", text(&seen));
    say_rest(seen.clients.len(), seen.total);
    Ok(())
}

fn text(seen: &StickyView) -> String {
    let id = |id: Option<u32>, server: &str| id.map_or_else(|| server.to_owned(), |id| id.to_string());
    let backend = |server: &HomeView| {
        let ok = if server.ok { "ok" } else { "-" };
        let id = id(server.id, &server.server);
        vec![id, ok.into(), server.clients.to_string(), server.address.clone()]
    };
    let peer = |client: &RememberedView| vec![id(client.id, &client.server), client.client.to_string()];
    let backends: Vec<_> = seen.servers.iter().map(backend).collect();
    let peers: Vec<_> = seen.clients.iter().map(peer).collect();
    format!(
        "BACKENDS\n{}\nREMOTE PEERS\n{}",
        table(&["ID", "OK", "REMOTES", "PATH"], &backends),
        table(&["BACKEND", "ADDRESS"], &peers)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tables_are_printed() {
        let server = |server: &str, id, ok, clients| HomeView {
            pool: "mname".into(),
            server: server.into(),
            id,
            address: format!("/s/{server}"),
            ok,
            clients,
        };
        let client = RememberedView {
            client: "192.0.2.7".parse().unwrap(),
            pool: "mname".into(),
            server: "5300".into(),
            id: Some(5300),
            meanwhile: None,
            seen_s: 3,
        };
        let servers = vec![server("5300", Some(5300), true, 1), server("plain", None, false, 0)];
        let seen = StickyView { total: 1, servers, clients: vec![client] };
        let expected = "BACKENDS\nID     OK  REMOTES  PATH\n5300   ok  1        /s/5300\nplain  -   0        /s/plain\n\
                        \nREMOTE PEERS\nBACKEND  ADDRESS\n5300     192.0.2.7\n";
        assert_eq!(text(&seen), expected);
    }
}
