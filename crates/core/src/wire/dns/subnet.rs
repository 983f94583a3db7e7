//! Options that Evener adds to queries for servers: the client's network (RFC 7871) and the hop count. They
//! are removed from responses, because the client did not send them.

use super::options::{HOPS, HOPS_SIGN, OPTION_HEADER_BYTES, SUBNET, remove_opt, retain_options};
use super::{MESSAGE_BYTES_MAX, Query, RCODE, SERVFAIL, TYPE_OPT, UDP_BYTES, number_at};
use crate::dns::network;
use std::net::IpAddr;

/// Size of an OPT without options.
const OPT_BYTES: usize = 11;
/// Maximum size of the subnet option: header, family, two prefix lengths, and the longest address.
const SUBNET_BYTES_MAX: usize = OPTION_HEADER_BYTES + 4 + 16;
const HOPS_BYTES: usize = OPTION_HEADER_BYTES + 3;

/// Addition to a query by [`Query::with_client_subnet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// A whole OPT, because the query had none.
    Record,
    /// An option in the OPT of the query, perhaps with the hop count.
    Option,
    /// The hop count alone, in the OPT of the query.
    Hops,
}

impl Query {
    /// Writes the message with the first `bits` of the client's address (RFC 7871, section 6) to `out`.
    /// Returns `None`, and leaves `out` as it was, if the message has to be passed on unchanged. The reasons
    /// are: it already has a subnet option (section 7.1.1 would allow a change), is not a standard query, is
    /// signed, has an OPT of an unknown version or with records after it, or would be too long.
    pub fn with_client_subnet(
        &self,
        message: &[u8],
        client: IpAddr,
        bits: u8,
        out: &mut Vec<u8>,
    ) -> Option<Added> {
        self.with_options(message, Some((client, bits)), false, out)
    }

    /// Writes the message with the client's network, if `subnet` is given, and with a hop count of one, if
    /// `counts_hops` is true. Returns `None` as [`Self::with_client_subnet`] does, and if nothing is added.
    pub fn with_options(
        &self,
        message: &[u8],
        subnet: Option<(IpAddr, u8)>,
        counts_hops: bool,
        out: &mut Vec<u8>,
    ) -> Option<Added> {
        let message = self.whole(message);
        if !self.may_take_options() {
            return None;
        }
        let mut buffer = [0; SUBNET_BYTES_MAX];
        let mut options = Vec::with_capacity(SUBNET_BYTES_MAX + HOPS_BYTES);
        if let Some((client, bits)) = subnet.filter(|_| !self.has_option(SUBNET)) {
            options.extend_from_slice(write_option(client, bits, &mut buffer));
        }
        if counts_hops {
            options.extend_from_slice(&HOPS.to_be_bytes());
            options.extend_from_slice(&[0, 3, HOPS_SIGN[0], HOPS_SIGN[1], 1]);
        }
        let option = &options[..];
        if option.is_empty() {
            return None;
        }
        if message.len() + OPT_BYTES + option.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        if !self.has_edns() {
            return add_record(message, option, out);
        }
        let added = add_option(message, self.extensible_opt_at()?, option, out);
        added.map(|added| if options.len() == HOPS_BYTES { Added::Hops } else { added })
    }
}

/// Writes the option: code, length, family, source and scope prefix length, and the significant bytes of the
/// address.
fn write_option(client: IpAddr, bits: u8, buffer: &mut [u8; SUBNET_BYTES_MAX]) -> &[u8] {
    let client = client.to_canonical();
    let (family, bits) = match client {
        IpAddr::V4(_) => (1, bits.min(32)),
        IpAddr::V6(_) => (2, bits.min(128)),
    };
    // Bits beyond the prefix are zero, and bytes beyond the prefix are omitted (section 6).
    let bytes = usize::from(bits).div_ceil(8);
    match network(client, bits, bits) {
        IpAddr::V4(address) => buffer[8..12].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => buffer[8..24].copy_from_slice(&address.octets()),
    }
    let [high, low] = SUBNET.to_be_bytes();
    buffer[..8].copy_from_slice(&[high, low, 0, 4 + bytes as u8, 0, family, bits, 0]);
    &buffer[..8 + bytes]
}

fn add_record(message: &[u8], option: &[u8], out: &mut Vec<u8>) -> Option<Added> {
    let count = number_at(message, 10)?.checked_add(1)?;
    out.clear();
    out.extend_from_slice(message);
    out[10..12].copy_from_slice(&count.to_be_bytes());
    out.push(0);
    out.extend_from_slice(&TYPE_OPT.to_be_bytes());
    // The maximum size for a client that announced no size.
    out.extend_from_slice(&(UDP_BYTES as u16).to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(option.len() as u16).to_be_bytes());
    out.extend_from_slice(option);
    Some(Added::Record)
}

fn add_option(message: &[u8], opt: usize, option: &[u8], out: &mut Vec<u8>) -> Option<Added> {
    let length_at = opt + OPT_BYTES - 2;
    let length = number_at(message, length_at)?.checked_add(option.len() as u16)?;
    out.clear();
    out.extend_from_slice(message);
    out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    out.extend_from_slice(option);
    Some(Added::Option)
}

/// Removes the addition of [`Query::with_client_subnet`] or [`Query::with_options`] from a response. A response
/// that is malformed, signed, or without the addition is not changed.
pub fn strip(response: &mut Vec<u8>, added: Added) {
    match added {
        Added::Hops => {
            retain_options(response, |code| code != HOPS);
        }
        Added::Option => {
            retain_options(response, |code| code != SUBNET && code != HOPS);
        }
        Added::Record => {
            // Without the OPT the low part of an extended RCODE would have another meaning (RFC 6891, section
            // 6.1.3).
            if remove_opt(response).is_some_and(|rcode_high| rcode_high != 0) {
                response[3] = response[3] & !RCODE | SERVFAIL;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{opt, record, sample, with_records};
    use super::*;

    fn add(message: &[u8], client: &str, bits: u8) -> Option<(Added, Vec<u8>)> {
        let mut out = b"before".to_vec();
        let query = Query::parse(message).unwrap();
        let added = query.with_client_subnet(message, client.parse().unwrap(), bits, &mut out);
        if added.is_none() {
            assert_eq!(out, b"before");
        }
        added.map(|added| (added, out))
    }

    #[test]
    fn a_network_is_added_in_a_new_opt_or_to_the_existing_opt() {
        let check = |client: &str, bits, option: &[u8]| {
            let expected = with_records(sample("query"), 3, &[opt(512, 0, option)]);
            assert_eq!(add(&sample("query"), client, bits), Some((Added::Record, expected)));
            let with = |options: &[u8]| with_records(sample("query"), 3, &[opt(4096, 0x8000, options)]);
            let cookie = [0, 10, 0, 1, 7];
            let expected = with(&[&cookie, option].concat());
            assert_eq!(add(&with(&cookie), client, bits), Some((Added::Option, expected)));
        };
        check("192.0.2.77", 24, &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
        check("::ffff:192.0.2.77", 24, &[0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
        check("192.0.255.77", 20, &[0, 8, 0, 7, 0, 1, 20, 0, 192, 0, 240]);
        check("192.0.2.77", 99, &[0, 8, 0, 8, 0, 1, 32, 0, 192, 0, 2, 77]);
        check("192.0.2.77", 0, &[0, 8, 0, 4, 0, 1, 0, 0]);
        check("2001:db8:1:2ff::1", 56, &[0, 8, 0, 11, 0, 2, 56, 0, 32, 1, 13, 184, 0, 1, 2]);
        let all = [&[0, 8, 0, 20, 0, 2, 128, 0, 32, 1, 13, 184][..], &[0; 11], &[1]].concat();
        check("2001:db8::1", 255, &all);
    }

    #[test]
    fn hops_are_added_counted_and_removed_from_the_response() {
        const ONE: [u8; 7] = [0xfe, 0xad, 0, 3, b'e', b'v', 1];
        let with = |options: &[u8]| with_records(sample("query"), 3, &[opt(1232, 0, options)]);
        let subnet = [0, 8, 0, 4, 0, 1, 0, 0];
        for (message, expected, kind) in [
            (sample("query"), with_records(sample("query"), 3, &[opt(512, 0, &ONE)]), Added::Record),
            (with(&[]), with(&ONE), Added::Hops),
            // The client's own network stays.
            (with(&subnet), with(&[&subnet[..], &ONE].concat()), Added::Hops),
        ] {
            let mut marked = Vec::new();
            let query = Query::parse(&message).unwrap();
            assert_eq!(query.hops(&message), 0);
            assert_eq!(query.with_options(&message, None, true, &mut marked), Some(kind));
            assert_eq!(marked, expected);
            let query = Query::parse(&marked).unwrap();
            let mut next = marked.clone();
            query.count_hop(&mut next);
            assert_eq!((query.hops(&marked), query.hops(&next), next.len()), (1, 2, marked.len()));
            let (mut key, mut plain) = (Vec::new(), Vec::new());
            let is_plain = Query::parse(&message).unwrap().cache_key(&message, &mut plain);
            assert_eq!(query.cache_key(&marked, &mut key), is_plain);
            // The response has the same OPT as the query.
            marked[2] |= 0x80;
            let mut response = message.clone();
            response[2] |= 0x80;
            strip(&mut marked, kind);
            assert_eq!(marked, response);
        }
        // Options of another program, and malformed options.
        for option in
            [&[0xfe, 0xad, 0, 3, b'x', b'v', 9][..], &[0xfe, 0xad, 0, 2, b'e', b'v'], &[0xfe, 0xad, 0, 0]]
        {
            let message = with(option);
            let (query, mut next) = (Query::parse(&message).unwrap(), message.clone());
            query.count_hop(&mut next);
            assert_eq!((query.hops(&message), &next), (0, &message));
        }
    }

    #[test]
    fn messages_that_cannot_take_the_option_are_not_changed() {
        let check = |message: &[u8]| assert_eq!(add(message, "192.0.2.1", 24), None);
        ["query_subnet", "query_tsig", "update", "notify"].into_iter().for_each(|name| check(&sample(name)));
        let with = |records: &[Vec<u8>]| with_records(sample("query"), 3, records);
        check(&with(&[opt(1232, 0x1_0000, &[])]));
        check(&with(&[opt(1232, 0, &[]), record(&[0], 16, 1, 0, &[])]));
        let long = with(&[record(&[0], 16, 1, 0, &[0; 65_470])]);
        assert!(Query::parse(&long).is_ok());
        check(&long);
        let just = with(&[record(&[0], 16, 1, 0, &[0; 65_469])]);
        assert_eq!(add(&just, "192.0.2.1", 24).unwrap().1.len(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn additions_are_removed_from_the_response() {
        let check = |response: Vec<u8>, added, expected: Vec<u8>| {
            let mut stripped = response;
            strip(&mut stripped, added);
            assert_eq!(stripped, expected);
        };
        let with = |ttl, options: &[u8]| with_records(sample("response"), 3, &[opt(1232, ttl, options)]);
        let (cookie, subnet) = ([0, 10, 0, 1, 7], [0, 8, 0, 7, 0, 1, 24, 16, 192, 0, 2]);
        check(with(0, &subnet), Added::Record, sample("response"));
        check(with(0, &[&subnet[..], &cookie].concat()), Added::Option, with(0, &cookie));
        check(with(0, &[&cookie, &subnet[..]].concat()), Added::Option, with(0, &cookie));
        check(with(0, &cookie), Added::Option, with(0, &cookie));
        check(sample("response"), Added::Record, sample("response"));
        check(sample("response"), Added::Option, sample("response"));
        let mut failed = sample("response");
        failed[3] |= SERVFAIL;
        check(with(0x100_0000, &subnet), Added::Record, failed);
        check(sample("query_tsig"), Added::Record, sample("query_tsig"));
    }
}
