//! Tables, sizes and durations as commands print them for people.

mod report;

pub(crate) use report::{Cell, ColorChoice, Row, Style, Tone, paragraph, report, shortened};

use std::time::Duration;

/// Formats columns that are as wide as their widest cell.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(&mut heading.iter().copied());
    rows.iter().for_each(|row| text += &line(&mut row.iter().map(String::as_str)));
    text
}

/// Formats a number of bytes, in powers of 1024.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = count as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

/// Formats a number of seconds, such as `1h 3m`.
pub(crate) fn seconds(count: u64) -> String {
    humantime::format_duration(Duration::from_secs(count)).to_string()
}

/// Formats a number in at most five characters: `99999`, `120k`, `1.2M`.
pub(crate) fn count(count: u64) -> String {
    if count < 100_000 { count.to_string() } else { scaled(count as f64, 1000.0, &["", "k", "M", "G", "T"]) }
}

/// Formats a number of bytes in at most five characters, in powers of 1024: `512B`, `1.2K`, `34M`.
pub(crate) fn short_bytes(count: u64) -> String {
    scaled(count as f64, 1024.0, &["B", "K", "M", "G", "T", "P", "E"])
}

/// Formats a number with the largest of the units that leaves at least 1, each of which is `step` times the unit
/// before.
fn scaled(number: f64, step: f64, units: &[&str]) -> String {
    let (mut number, mut unit) = (number, 0);
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    // A number that would be rounded to 10.0 has no decimal.
    if unit > 0 && number < 9.95 {
        format!("{number:.1}{}", units[unit])
    } else {
        format!("{number:.0}{}", units[unit])
    }
}

/// Formats a rate: `0.4`, `12`, `120k`.
pub(crate) fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 9.95 {
        format!("{per_second:.1}")
    } else {
        count(per_second.round() as u64)
    }
}

/// Formats a measured time in at most six characters, in milliseconds up to 10 s, so that a long time also looks longer
/// than a short one: `0.38ms`, `2.1ms`, `917ms`, `1234ms`, `12s`.
pub(crate) fn time(seconds: f64) -> String {
    let millis = seconds * 1e3;
    match millis {
        _ if millis < 0.995 => format!("{millis:.2}ms"),
        _ if millis < 9.95 => format!("{millis:.1}ms"),
        _ if millis < 9999.5 => format!("{millis:.0}ms"),
        _ => format!("{seconds:.0}s"),
    }
}

/// Formats the age of an event with one unit: `42s`, `3m`, `5h`, `12d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Formats `pool/server`, or a dash.
pub(crate) fn server_name(pool: Option<&str>, server: Option<&str>) -> String {
    match (pool, server) {
        (Some(pool), Some(server)) => format!("{pool}/{server}"),
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "22".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong  22\n");
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!([bytes(5), bytes(1536), bytes(5 << 40)].join(" "), "5 B 1.5 KiB 5.0 TiB");
        assert_eq!(seconds(3780), "1h 3m");
        assert_eq!([7, 99_999, 120_400, 1_250_000].map(count).join(" "), "7 99999 120k 1.2M");
        assert_eq!([0, 1023, 1536, 34 << 20, 10_200].map(short_bytes).join(" "), "0B 1023B 1.5K 34M 10K");
        assert_eq!([0.0, 0.44, 12.4, 120_400.0].map(rate).join(" "), "0 0.4 12 120k");
        assert_eq!([0.0004, 0.0021, 0.917, 1.2, 12.3].map(time).join(" "), "0.40ms 2.1ms 917ms 1200ms 12s");
        assert_eq!([59, 3599, 7200, 200_000].map(age).join(" "), "59s 59m 2h 2d");
    }
}
