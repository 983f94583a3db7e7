//! Words of a command line as Python's argparse divides them into options, their values, and other words.

use std::collections::VecDeque;
use std::ffi::OsString;

/// An option with its names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArgumentOption {
    short: &'static str,
    long: &'static str,
    values: Values,
}

/// Number of values of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    None,
    One,
    /// At least one: all words up to the next option.
    Many,
}

impl ArgumentOption {
    /// Creates an option; a name can be empty.
    pub(super) const fn new(short: &'static str, long: &'static str, values: Values) -> Self {
        Self { short, long, values }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.short, self.long].into_iter().filter(|name| !name.is_empty())
    }

    /// Returns the name in messages.
    pub(super) fn text(&self) -> String {
        self.names().collect::<Vec<_>>().join("/")
    }
}

/// A part of the command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// An option with its values.
    Option(&'static ArgumentOption, Vec<String>),
    /// A word that belongs to no option.
    Positional(String),
    /// A word that looks like an option.
    Unknown(String),
}

/// A word, with the option that it begins and the value that is attached to it.
enum Word {
    Option(&'static ArgumentOption, Option<String>),
    Plain(String),
    Unknown(String),
}

/// Divides the words. Each error is one line.
pub(super) fn divide(
    words: Vec<OsString>,
    options: &'static [ArgumentOption],
) -> Result<Vec<Argument>, String> {
    let mut classified = VecDeque::new();
    let mut all_plain = false;
    for word in words {
        let word = word.into_string().map_err(|word| format!("{} is not UTF-8", word.display()))?;
        match word.as_str() {
            _ if all_plain => classified.push_back(Word::Plain(word)),
            "--" => all_plain = true,
            _ => classified.push_back(classify(word, options)?),
        }
    }
    let mut arguments = Vec::new();
    while let Some(word) = classified.pop_front() {
        arguments.push(match word {
            Word::Plain(word) => Argument::Positional(word),
            Word::Unknown(word) => Argument::Unknown(word),
            Word::Option(option, attached) => {
                Argument::Option(option, values(option, attached, &mut classified)?)
            }
        });
    }
    Ok(arguments)
}

fn classify(word: String, options: &'static [ArgumentOption]) -> Result<Word, String> {
    let is_number = word[1..word.len().max(1)].parse::<f64>().is_ok();
    if !word.starts_with('-') || word == "-" || is_number {
        return Ok(Word::Plain(word));
    }
    let named = |name: &str| options.iter().find(|option| option.names().any(|candidate| candidate == name));
    if let Some(option) = named(&word) {
        return Ok(Word::Option(option, None));
    }
    let (name, attached) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (word.as_str(), None),
    };
    if let Some(option) = named(name) {
        return Ok(Word::Option(option, attached));
    }
    let candidates = abbreviated(name, attached.as_deref(), &word, options);
    match candidates.len() {
        0 => Ok(Word::Unknown(word)),
        1 => {
            let (option, _, attached) = candidates.into_iter().next().expect("one");
            Ok(Word::Option(option, attached))
        }
        _ => {
            let names: Vec<&str> = candidates.iter().map(|(_, name, _)| *name).collect();
            Err(format!("ambiguous option: {word} could match {}", names.join(", ")))
        }
    }
}

/// An option that a word can mean, by this name, and the value that is attached to it.
type Candidate = (&'static ArgumentOption, &'static str, Option<String>);

/// Returns the options whose names begin with `name`, and the option of one letter to which a value is attached.
fn abbreviated(
    name: &str,
    attached: Option<&str>,
    word: &str,
    options: &'static [ArgumentOption],
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for option in options {
        for candidate in option.names() {
            let is_long = candidate.starts_with("--");
            if is_long == name.starts_with("--") && candidate.starts_with(name) {
                candidates.push((option, candidate, attached.map(str::to_owned)));
            } else if candidate.len() == 2 && !is_long && word.starts_with(candidate) {
                candidates.push((option, candidate, Some(word[2..].to_owned())));
            }
        }
    }
    candidates
}

fn values(
    option: &'static ArgumentOption,
    attached: Option<String>,
    rest: &mut VecDeque<Word>,
) -> Result<Vec<String>, String> {
    let wrong = |problem: String| Err(format!("argument {}: {problem}", option.text()));
    let max = match (option.values, &attached) {
        (Values::None, None) => return Ok(Vec::new()),
        (Values::None, Some(value)) => return wrong(format!("ignored explicit argument '{value}'")),
        (_, Some(_)) => 0,
        (Values::One, None) => 1,
        (Values::Many, None) => usize::MAX,
    };
    let mut values: Vec<String> = attached.into_iter().collect();
    while values.len() < max
        && let Some(Word::Plain(value)) = rest.pop_front_if(|word| matches!(word, Word::Plain(_)))
    {
        values.push(value);
    }
    match (values.is_empty(), option.values) {
        (false, _) => Ok(values),
        (true, Values::Many) => wrong("expected at least one argument".into()),
        (true, _) => wrong("expected one argument".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static OPTIONS: [ArgumentOption; 5] = [
        ArgumentOption::new("-p", "--port", Values::Many),
        ArgumentOption::new("-mp", "--max_ports", Values::One),
        ArgumentOption::new("-ma", "--max_associations", Values::One),
        ArgumentOption::new("-vs", "--virtual_server", Values::One),
        ArgumentOption::new("-h", "--help", Values::None),
    ];

    fn divided(line: &str) -> String {
        let parts = match divide(line.split_whitespace().map(OsString::from).collect(), &OPTIONS) {
            Ok(parts) => parts,
            Err(error) => return error,
        };
        let text = |part: &Argument| match part {
            Argument::Option(option, values) => format!("{}:{}", option.short, values.join(",")),
            Argument::Positional(word) => word.clone(),
            Argument::Unknown(word) => format!("?{word}"),
        };
        parts.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    /// The expected results are those of Python's argparse.
    #[test]
    fn words_are_divided_as_by_argparse() {
        let check = |line: &str, expected: &str| assert_eq!(divided(line), expected, "{line}");
        check("eth0 -p 1 2 -vs ::1", "eth0 -p:1,2 -vs:::1");
        check("-p 1 2 -- eth0", "-p:1,2,eth0");
        check("-vs a eth0 -p 1", "-vs:a eth0 -p:1");
        check("-p5683 -p=7 --port=8", "-p:5683 -p:7 -p:8");
        check("--port 1 2", "-p:1,2");
        check("--virtual a -v b", "-vs:a -vs:b");
        check("--max_p=3", "-mp:3");
        check("-mp=3 eth0", "-mp:3 eth0");
        check("-m 1", "ambiguous option: -m could match -mp, -ma");
        check("--max 1", "ambiguous option: --max could match --max_ports, --max_associations");
        check("-p -1 -", "-p:-1,-");
        check("-p", "argument -p/--port: expected at least one argument");
        check("-p -vs a", "argument -p/--port: expected at least one argument");
        check("-vs", "argument -vs/--virtual_server: expected one argument");
        check("--help=x", "argument -h/--help: ignored explicit argument 'x'");
        check("-x --nothing eth0", "?-x ?--nothing eth0");
    }
}
