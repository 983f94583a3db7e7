//! Errors of the command-line parser in the words of Evener.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::error::Error as _;

/// Returns the message about an error. Returns `None` for the text of `--help` and `--version`, which the parser
/// returns as an error.
pub(super) fn message(error: &clap::Error, command: &str) -> Option<String> {
    let argument = first(error, ContextKind::InvalidArg).unwrap_or_default();
    let name = name_of(&argument);
    let value = first(error, ContextKind::InvalidValue).unwrap_or_default();
    Some(match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => return None,
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let near = first(error, ContextKind::SuggestedArg);
            let near = near.map(|near| format!("; did you mean `{}`?", name_of(&near)));
            let list = || format!("; `evener {command} --help` lists the options");
            format!("`{argument}` is not an option of `evener {command}`{}", near.unwrap_or_else(list))
        }
        ErrorKind::InvalidSubcommand => {
            let word = first(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            let near = first(error, ContextKind::SuggestedSubcommand);
            let near = near.map(|near| format!("; did you mean `{near}`?"));
            let list = || format!("; `evener {command} --help` lists the commands");
            format!("`{word}` is not a command of `evener {command}`{}", near.unwrap_or_else(list))
        }
        ErrorKind::UnknownArgument => {
            format!("`{argument}` is one word too many; `evener {command} --help` lists the arguments")
        }
        ErrorKind::InvalidValue => {
            let values = all(error, ContextKind::ValidValue);
            let values = if values.is_empty() { String::new() } else { format!(": {}", or(&values)) };
            let near = first(error, ContextKind::SuggestedValue);
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            match value.as_str() {
                "" => format!("{name} needs a value{values}"),
                value => format!("`{value}` is not a value of {name}{values}{near}"),
            }
        }
        ErrorKind::ValueValidation => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            format!("`{value}` is not a value of {name}: {}", cause_of(&cause))
        }
        ErrorKind::TooManyValues => format!("{name} takes no value, got `{value}`"),
        ErrorKind::MissingRequiredArgument => {
            let missing = all(error, ContextKind::InvalidArg);
            let missing: Vec<&str> = missing.iter().map(|one| name_of(one)).collect();
            let are = if missing.len() > 1 { "are" } else { "is" };
            format!("{} {are} missing; `evener {command} --help` shows the usage", missing.join(" and "))
        }
        ErrorKind::ArgumentConflict => {
            let others = all(error, ContextKind::PriorArg);
            let others: Vec<&str> = others.iter().map(|one| name_of(one)).collect();
            match others.as_slice() {
                [] => format!("{name} cannot be used with other arguments"),
                [other] if *other == name => format!("{name} is given twice"),
                others => format!("{name} cannot be used together with {}", others.join(" or ")),
            }
        }
        _ => {
            let text = error.to_string();
            let text = text.split("\n\n").next().unwrap_or_default();
            text.trim_start_matches("error: ").replace('\'', "`")
        }
    })
}

/// Returns the texts of a context of an error.
fn all(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(one)) => vec![one.clone()],
        Some(ContextValue::Strings(several)) => several.clone(),
        _ => Vec::new(),
    }
}

fn first(error: &clap::Error, kind: ContextKind) -> Option<String> {
    all(error, kind).into_iter().next()
}

/// Returns the name of an argument without its value: `--for` of `--for <TIME>`, `SERVER` of `<SERVER>`.
fn name_of(argument: &str) -> &str {
    let name = argument.split([' ', '=']).next().unwrap_or_default();
    name.trim_start_matches(['<', '[']).trim_end_matches(['.', '>', ']'])
}

/// Returns the cause of an invalid value. The causes of integers are in the words of the parser.
fn cause_of(cause: &str) -> String {
    if let Some((_, range)) = cause.split_once(" is not in ") {
        return match range.split_once("..") {
            Some((low, high))
                if high.is_empty() || high.parse::<u64>().is_ok_and(|high| high == u64::MAX) =>
            {
                format!("it must be at least {low}")
            }
            Some((low, high)) => format!("it must be between {low} and {}", high.trim_start_matches('=')),
            None => cause.to_owned(),
        };
    }
    match cause {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "it must be a whole number".into()
        }
        "number too large to fit in target type" => "the number is too large".into(),
        cause => cause.to_owned(),
    }
}

/// Returns words with `or` before the last word.
fn or(words: &[String]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
