//! Real messages for tests, and functions that build other messages.

/// Returns the message of that name in `tests/data/dns.txt`.
pub(crate) fn sample(name: &str) -> Vec<u8> {
    let lines = include_str!("../../../tests/data/dns.txt").lines();
    let found = lines.filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == name);
    let (_, hex) = found.unwrap_or_else(|| panic!("no sample {name}"));
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Returns an OPT of this size, with this TTL and these options.
pub(crate) fn opt(size: u16, ttl: u32, options: &[u8]) -> Vec<u8> {
    record(&[0], 41, size, ttl, options)
}

/// Returns a record.
pub(crate) fn record(owner: &[u8], rtype: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u16).to_be_bytes();
    let [rtype, class] = [rtype, class].map(u16::to_be_bytes);
    [owner, &rtype, &class, &ttl.to_be_bytes(), &length, data].concat()
}

/// Appends records of a section (1 to 3) to a message.
pub(crate) fn with_records(mut message: Vec<u8>, section: usize, records: &[Vec<u8>]) -> Vec<u8> {
    message[5 + 2 * section] += records.len() as u8;
    message.extend(records.concat());
    message
}

/// Returns a query for a name and a type, with RD: `www.example.org A`.
pub(crate) fn query(text: &str) -> Vec<u8> {
    let (name, of_type) = text.split_once(' ').unwrap();
    let name = super::parse_name(name).unwrap();
    let of_type = super::type_number(of_type).unwrap().to_be_bytes();
    [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &name[..], &of_type, &[0, 1]].concat()
}

/// Returns the cache key of the query that [`query`] returns.
pub(crate) fn key(text: &str) -> Vec<u8> {
    let (query, mut key) = (query(text), Vec::new());
    assert!(super::Query::parse(&query).unwrap().cache_key(&query, &mut key));
    key
}

/// Returns a response to the query that [`query`] returns, with records such as `1 A 300` (section, type, TTL)
/// and `2 SOA 3600 60` (section, type, TTL, minimum).
pub(crate) fn response(text: &str, rcode: u8, records: &[&str]) -> Vec<u8> {
    let mut message = query(text);
    (message[2], message[3]) = (0x81, 0x80 | rcode);
    for text in records {
        let words: Vec<&str> = text.split(' ').collect();
        let (section, rtype, ttl) =
            (words[0], super::type_number(words[1]).unwrap(), words[2].parse().unwrap());
        let minimum = words.get(3).map(|minimum| minimum.parse::<u32>().unwrap().to_be_bytes());
        let data = minimum.map_or(vec![192, 0, 2, 1], |minimum| [&[0; 18], &minimum[..]].concat());
        let record = record(&[0xc0, 12], rtype, 1, ttl, &data);
        message = with_records(message, section.parse().unwrap(), &[record]);
    }
    message
}
