//! Tables, sizes and durations as commands print them for people.

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

/// Formats a number of bytes with one letter for its unit, in powers of 1024, such as `20.0M`.
pub(crate) fn bytes_short(count: u64) -> String {
    if count < 1024 { count.to_string() } else { bytes(count).replace(' ', "").replace("iB", "") }
}

/// Formats a number of events a second.
pub(crate) fn rate(per_second: f64) -> String {
    if per_second >= 10.0 || per_second == 0.0 {
        format!("{per_second:.0}/s")
    } else {
        format!("{per_second:.1}/s")
    }
}

/// Formats the largest unit of a time in seconds, such as `3h`.
pub(crate) fn age(count: u64) -> String {
    match count {
        0..60 => format!("{count}s"),
        60..3600 => format!("{}m", count / 60),
        3600..86_400 => format!("{}h", count / 3600),
        _ => format!("{}d", count / 86_400),
    }
}

/// Formats a number of seconds, such as `1h 3m`.
pub(crate) fn seconds(count: u64) -> String {
    humantime::format_duration(Duration::from_secs(count)).to_string()
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
        assert_eq!([bytes_short(5), bytes_short(1536), bytes_short(5 << 40)].join(" "), "5 1.5K 5.0T");
        assert_eq!([59, 60, 7199, 86_400].map(age).join(" "), "59s 1m 1h 1d");
        assert_eq!([0.0, 0.2, 9.96, 1234.4].map(rate).join(" "), "0/s 0.2/s 10.0/s 1234/s");
    }
}
