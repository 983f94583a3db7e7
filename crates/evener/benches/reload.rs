//! A reload that changes one server of 10 000 in 100 services: reading the file, planning and applying.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail where it stands")]

use criterion::{Criterion, criterion_group, criterion_main};
use evener::instance::{Embedded, Options};
use std::fmt::Write as _;

/// Returns a configuration in which one server has this weight.
fn configuration(weight: u32) -> String {
    let mut text = String::new();
    for service in 0..100 {
        writeln!(text, "service \"s{service}\" {{ listen = \"127.0.0.1:0\",").unwrap();
        for server in 0..100 {
            let weight = if (service, server) == (7, 3) { weight } else { 1 };
            writeln!(text, "  {{ \"127.{}.{server}.1:80\", weight = {weight} }},", 20 + service).unwrap();
        }
        text += "}\n";
    }
    text
}

fn reload(bench: &mut Criterion) {
    let file = std::env::temp_dir().join(format!("evener-bench-{}.lua", std::process::id()));
    std::fs::write(&file, configuration(1)).unwrap();
    let instance = Embedded::start(&file, Options { workers: 2, ..Options::default() }).unwrap();
    assert_eq!(instance.reload().unwrap(), Vec::<String>::new());
    let mut weight = 1;
    bench.bench_function("reload_one_of_10_000_servers", |bench| {
        bench.iter(|| {
            weight = 3 - weight;
            std::fs::write(&file, configuration(weight)).unwrap();
            assert_eq!(instance.reload().unwrap().len(), 1);
        });
    });
    drop(instance);
    std::fs::remove_file(file).unwrap();
}

criterion_group!(benches, reload);
criterion_main!(benches);
