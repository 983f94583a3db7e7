//! The ceilings of `xtask/tidy.toml`: the maximum number of findings of each measure in each part of the
//! workspace. Ceilings only go down; `cargo xtask tidy --lower` lowers them to the present numbers.

use super::Measure;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Numbers of findings, by measure and part.
pub(super) type Counts = BTreeMap<(Measure, String), usize>;

/// Parses the subset of TOML that [`emit`] writes: tables of numbers.
pub(super) fn parse(text: &str) -> anyhow::Result<Counts> {
    let (mut counts, mut measure) = (Counts::new(), None);
    for (at, line) in text.lines().enumerate() {
        let wrong = |what: &str| anyhow::anyhow!("xtask/tidy.toml:{}: {what} in `{line}`", at + 1);
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let known = Measure::ALL.into_iter().find(|measure| measure.name() == name);
            measure = Some(known.ok_or_else(|| wrong("no such measure"))?);
        } else if let Some((part, number)) = line.split_once('=') {
            let measure = measure.ok_or_else(|| wrong("no measure before"))?;
            let number = number.trim().parse().map_err(|_| wrong("not a number"))?;
            counts.insert((measure, part.trim().into()), number);
        } else if !line.is_empty() {
            return Err(wrong("neither `[measure]` nor `part = number`"));
        }
    }
    Ok(counts)
}

/// Writes ceilings as `xtask/tidy.toml` has them.
pub(super) fn emit(counts: &Counts) -> String {
    let mut text = String::from(
        "# The most findings that `cargo xtask tidy` accepts, by measure and part. Parts without a line have 0.\n\
         # The numbers only go down: `cargo xtask tidy --lower`.\n",
    );
    for measure in Measure::ALL {
        let _ = write!(text, "\n[{}]\n", measure.name());
        let of_measure = counts.iter().filter(|((of, _), count)| *of == measure && **count > 0);
        of_measure.for_each(|((_, part), count)| {
            let _ = writeln!(text, "{part} = {count}");
        });
    }
    text
}

/// Returns the ceilings after `--lower`: each is the smaller of the old ceiling and the present number.
pub(super) fn lowered(ceilings: &Counts, counts: &Counts) -> Counts {
    let present = |key| counts.get(key).copied().unwrap_or(0);
    ceilings.iter().map(|(key, ceiling)| (key.clone(), present(key).min(*ceiling))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(list: &[(Measure, &str, usize)]) -> Counts {
        list.iter().map(|(measure, part, count)| ((*measure, (*part).into()), *count)).collect()
    }

    #[test]
    fn written_ceilings_are_parsed_again() {
        let ceilings = counts(&[(Measure::Openers, "core", 3), (Measure::RawIndices, "proxy", 59)]);
        assert_eq!(parse(&emit(&ceilings)).unwrap(), ceilings);
    }

    #[test]
    fn ceilings_only_go_down() {
        let ceilings = counts(&[(Measure::Openers, "core", 3), (Measure::Openers, "proxy", 5)]);
        let present = counts(&[(Measure::Openers, "core", 4), (Measure::Openers, "evener", 2)]);
        let expected = counts(&[(Measure::Openers, "core", 3), (Measure::Openers, "proxy", 0)]);
        assert_eq!(lowered(&ceilings, &present), expected);
    }

    #[test]
    fn wrong_lines_are_refused_with_their_number() {
        for wrong in ["\n[depth]", "\na = 1", "[openers]\na = b", "[openers]\na"] {
            let message = parse(wrong).unwrap_err().to_string();
            assert!(message.starts_with("xtask/tidy.toml:2: "), "{message}");
        }
    }
}
