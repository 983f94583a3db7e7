//! Detection of an uneven sticky table, and the number of clients to rebalance. The rule of mname-balancer,
//! extended by shares: the numbers of clients of two servers may differ by the number of servers.

use crate::ServerId;

/// A server that can get clients now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Identity of the server.
    pub server: ServerId,
    /// Number of clients whose home is the server.
    pub clients: usize,
    /// Share of the clients, relative to the shares of the other servers; not 0.
    pub share: u32,
    /// The server is below its limit. A full server could not take the surplus of another one.
    pub has_room: bool,
}

/// Number of clients beyond the share of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    /// Identity of the server.
    pub server: ServerId,
    /// Number of clients; not 0.
    pub clients: usize,
}

/// Returns the surplus of the fullest server, if there is one. The largest and the smallest number of clients
/// may differ by the number of servers; the rest is surplus. A server with twice the average share may have
/// twice the clients.
#[must_use]
pub fn surplus(rivals: &[Rival]) -> Option<Surplus> {
    let count = rivals.len() as f64;
    let average = rivals.iter().map(|rival| f64::from(rival.share)).sum::<f64>() / count;
    let parts = |rival: &Rival| f64::from(rival.share) / average;
    let filled = |rival: &Rival| rival.clients as f64 / parts(rival);
    // The first of equally filled servers, so that a simulation can be replayed.
    let fullest = rivals.iter().rev().max_by(|a, b| filled(a).total_cmp(&filled(b)))?;
    let least = rivals.iter().filter(|rival| rival.has_room).map(filled).min_by(f64::total_cmp)?;
    let beyond = (filled(fullest) - least - count) * parts(fullest);
    (beyond >= 1.0).then_some(Surplus { server: fullest.server, clients: beyond as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `clients` or `clients*share`, with `!` for a full server; the expected server and its surplus.
    #[track_caller]
    fn check(servers: &str, expected: Option<(u32, usize)>) {
        let rival = |(at, word): (usize, &str)| {
            let open = word.trim_end_matches('!');
            let (clients, share) = open.split_once('*').unwrap_or((open, "1"));
            Rival {
                server: ServerId(at as u32),
                clients: clients.parse().unwrap(),
                share: share.parse().unwrap(),
                has_room: open == word,
            }
        };
        let rivals: Vec<Rival> = servers.split_whitespace().enumerate().map(rival).collect();
        assert_eq!(
            surplus(&rivals).map(|surplus| (surplus.server.0, surplus.clients)),
            expected,
            "{servers}"
        );
    }

    #[test]
    fn a_difference_up_to_the_number_of_servers_is_even_enough() {
        check("", None);
        check("100", None);
        check("2 0", None);
        check("3 0", Some((0, 1)));
        check("0 3", Some((1, 1)));
        check("5 4 2", None);
        check("5 9 5", Some((1, 1)));
        check("1000 0", Some((0, 998)));
        check("50 50 0", Some((0, 47)));
        check("10 30 29 12", Some((1, 16)));
    }

    #[test]
    fn shares_are_considered() {
        check("200*2 100", None);
        check("200*2 102", None);
        check("200*2 103", Some((1, 1)));
        check("100*2 100", Some((1, 48)));
        check("300*256 100*256", Some((0, 198)));
        check("300*100 100", Some((1, 96)));
        check("300*100 3", None);
        check("160*16 10*1", None);
        // A new server in slow start does not get its full share yet.
        check("160*256 0*16", Some((0, 156)));
    }

    #[test]
    fn no_client_is_moved_for_a_full_server() {
        check("100 0!", None);
        check("100! 0", Some((0, 98)));
        check("100 0! 50", Some((0, 47)));
        check("100! 0!", None);
    }
}
