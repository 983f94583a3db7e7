//! Parsing of DNS queries and HTTP header sections, and lookups of cached responses.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail where it stands")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use evener_core::Time;
use evener_core::dns::{Cache, Freshness};
use evener_core::spec::DnsCacheSpec;
use evener_core::wire::dns::{self, Query};
use evener_core::wire::http::{HeaderLimits, Request, Response, Scan};
use std::hint::black_box;

/// A typical request of a browser.
const REQUEST: &[u8] = b"GET /assets/app-4f2c91d7.js?v=12 HTTP/1.1\r\nHost: www.example.org\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\n\
    Accept-Language: en-GB,en;q=0.8,de;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://www.example.org/start\r\nConnection: keep-alive\r\n\
    Cookie: session=2c1f6f0e7b6a4d3f; theme=dark; EVENER=5b1d0c9e2a77\r\nSec-Fetch-Dest: script\r\n\
    Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Site: same-origin\r\nIf-None-Match: \"4f2c91d7\"\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 28 Nov 2026 11:42:36 GMT\r\n\
    Content-Type: application/javascript\r\nContent-Length: 48213\r\nConnection: keep-alive\r\n\
    ETag: \"4f2c91d7\"\r\nCache-Control: public, max-age=31536000, immutable\r\nVary: Accept-Encoding\r\n\
    X-Content-Type-Options: nosniff\r\nAccept-Ranges: bytes\r\n\r\n";

/// Returns the message of that name in `tests/data/dns.txt`.
fn sample(name: &str) -> Vec<u8> {
    let lines = include_str!("../tests/data/dns.txt").lines();
    let hex = lines.filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == name).unwrap().1;
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn query(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dns query");
    for name in ["query", "query_edns", "query_subnet"] {
        let message = sample(name);
        group.bench_function(name, |bencher| bencher.iter(|| Query::parse(black_box(&message))));
    }
}

fn cache(criterion: &mut Criterion) {
    let (message, response) = (sample("query"), sample("response"));
    let cache = Cache::new(&DnsCacheSpec::default(), 1);
    let (mut key, mut out) = (Vec::new(), Vec::new());
    assert!(Query::parse(&message).unwrap().cache_key(&message, &mut key));
    assert!(cache.store(&key, &response, Time::ZERO));
    // The same steps as in the proxy: parse the query, build the key, look up the response.
    criterion.bench_function("dns cache/hit", |bencher| {
        bencher.iter(|| {
            let query = Query::parse(black_box(&message)).unwrap();
            assert!(query.cache_key(&message, &mut key));
            assert!(cache.lookup(&key, Time::ZERO, Freshness::Fresh, &mut out));
            dns::set_id(&mut out, dns::id(&message));
        });
    });
}

fn header_sections(criterion: &mut Criterion) {
    let limits = HeaderLimits::default();
    let mut group = criterion.benchmark_group("http header section");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    let mut request = Request::default();
    group.bench_function("request", |bencher| {
        bencher.iter(|| {
            let found = Scan::default().find(black_box(REQUEST), &limits).unwrap().unwrap();
            request.parse(&REQUEST[found.start..found.end], &limits).unwrap();
        });
    });
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    let mut response = Response::default();
    group.bench_function("response", |bencher| {
        bencher.iter(|| {
            let found = Scan::of_response().find(black_box(RESPONSE), &limits).unwrap().unwrap();
            response.parse(&RESPONSE[found.start..found.end], &limits).unwrap();
        });
    });
}

criterion_group!(benches, query, cache, header_sections);
criterion_main!(benches);
