//! When the clients of a sticky table are spread too unevenly, and how many of them are to be chosen for anew. The rule is
//! that of mname-balancer, with shares: between two servers there may be as many clients as there are servers.

use crate::ServerId;

/// A server that gets clients now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Which.
    pub server: ServerId,
    /// How many clients it is the home of.
    pub clients: usize,
    /// How many of the clients it gets, in proportion to the others; not 0.
    pub share: u32,
    /// It is not at its limit. One that is would not get those that another one has too many.
    pub has_room: bool,
}

/// Clients that a server has too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    /// Which server.
    pub server: ServerId,
    /// How many; not 0.
    pub clients: usize,
}

/// What the fullest server has too many, if it has: where the most and the least clients differ by more than the number of
/// servers, what is beyond that. A server with twice the average share may have twice the clients.
#[must_use]
pub fn surplus(rivals: &[Rival]) -> Option<Surplus> {
    let count = rivals.len() as f64;
    let average = rivals.iter().map(|rival| f64::from(rival.share)).sum::<f64>() / count;
    let parts = |rival: &Rival| f64::from(rival.share) / average;
    let filled = |rival: &Rival| rival.clients as f64 / parts(rival);
    // Of equals the first one, so that a life can be replayed.
    let fullest = rivals.iter().rev().max_by(|a, b| filled(a).total_cmp(&filled(b)))?;
    let least = rivals.iter().filter(|rival| rival.has_room).map(filled).min_by(f64::total_cmp)?;
    let beyond = (filled(fullest) - least - count) * parts(fullest);
    (beyond >= 1.0).then_some(Surplus { server: fullest.server, clients: beyond as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `clients` or `clients*share`, `!` behind for a server that is full; the server and what it has too many.
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
        // A newcomer that starts slowly is not yet due its full share.
        check("160*256 0*16", Some((0, 156)));
    }

    #[test]
    fn nobody_is_sent_away_for_a_server_that_is_full() {
        check("100 0!", None);
        check("100! 0", Some((0, 98)));
        check("100 0! 50", Some((0, 47)));
        check("100! 0!", None);
    }
}
