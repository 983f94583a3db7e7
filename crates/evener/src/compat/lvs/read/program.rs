//! Programs: hooks, and the programs of MISC_CHECK.

use super::Reader;
use crate::compat::lvs::syntax::Statement;
use crate::compat::lvs::{Hooks, VirtualServer};

impl Reader {
    /// Reads `notify_up "/path argument" [USER [GROUP]]` into the hook of a key.
    pub(super) fn hook(&mut self, line: &Statement, key: &'static str, hooks: &mut Hooks) {
        let Some(program) = self.program(line) else { return };
        hooks.insert(key, program);
    }

    /// Reads a program and its arguments, which one text has.
    pub(super) fn program(&mut self, line: &Statement) -> Option<Vec<String>> {
        let program = line.arguments().first().map_or(Vec::new(), |text| words(text));
        if !program.first().is_some_and(|path| path.starts_with('/')) {
            self.wrong(line, "the absolute path of a program");
            return None;
        }
        if line.arguments().len() > 1 {
            let user = line.arguments()[1..].join(" ");
            self.notes.push(format!(
                "{}: the program runs with the rights of Evener, not as {user}",
                line.location()
            ));
        }
        Some(program)
    }

    /// Gives a virtual server the hooks of its real servers, which have one set.
    pub(super) fn share_hooks(&mut self, server: &mut VirtualServer) {
        for real in &server.servers {
            for (key, program) in &real.hooks {
                let shared = server.hooks.entry(key).or_insert_with(|| program.clone());
                if shared != program {
                    let line = real.line.unwrap_or_default();
                    self.notes.push(format!(
                        "line {line}: the servers share one program for `{key}`, the first; EVENER_SERVER names the server"
                    ));
                }
            }
        }
    }
}

/// Splits a command at its spaces, outside of quotes.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in text.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn spaces_in_quotes_do_not_split_a_command() {
        assert_eq!(words(" /a  b 'c d' \"\" e\"f g\" "), ["/a", "b", "c d", "", "ef g"]);
    }
}
