//! Options of pen's command line that change settings.

use super::address::{Listen, PenLog};
use super::command::{self, Step};
use super::{PenSettings, Slot};
use std::ffi::OsString;

impl PenSettings {
    /// Applies an option. Returns `None` if no setting has this letter.
    pub(in crate::compat::pen) fn apply_option(
        &mut self,
        letter: char,
        parser: &mut lexopt::Parser,
    ) -> Result<Option<Vec<Step>>, String> {
        if let Some(file) = self.tls.file_of_option(letter) {
            *file = Some(value(parser)?.into());
            return Ok(Some(Vec::new()));
        }
        match letter {
            'C' => self.control = Some(value(parser)?),
            'F' => self.config_file = Some(value(parser)?.into()),
            'H' => self.http = true,
            'N' => (self.hash, self.forget) = (true, true),
            'R' => self.tls.require_client_certificates(),
            'T' => self.tracking = number(letter, parser)?,
            'U' => self.udp = true,
            'W' => self.weight = true,
            'X' => self.exit_enabled = true,
            'b' => self.blacklist = number(letter, parser)?,
            'd' => self.debug += 1,
            'h' => self.hash = true,
            'l' => self.log = Some(PenLog::parse(&value(parser)?)?),
            'r' => self.roundrobin = true,
            's' => self.stubborn = true,
            'w' => self.web_stats = Some(value(parser)?.into()),
            'a' => {
                self.ascii = true;
                return Ok(Some(command::obsolete("ascii")));
            }
            'c' => self.execute_number(letter, "clients_max", number(letter, parser)?)?,
            'x' => self.execute_number(letter, "conn_max", number(letter, parser)?)?,
            't' => self.execute_number(letter, "timeout", number(letter, parser)?)?,
            'q' => {
                let given = number(letter, parser)?;
                self.backlog = given.max(Self::BACKLOG_MIN);
                if given < Self::BACKLOG_MIN {
                    let text = format!("listen_queue bumped to {}", Self::BACKLOG_MIN);
                    return Ok(Some(vec![Step::Warn(text)]));
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(Vec::new()))
    }

    /// Executes the command that is equivalent to an option, without its response.
    fn execute_number(&mut self, letter: char, verb: &str, number: u32) -> Result<(), String> {
        let done = self.execute(&format!("{verb} {number}"));
        done.map(drop).map_err(|error| format!("-{letter}: {error}"))
    }

    /// Sets the listen address and the servers of the command line.
    pub(in crate::compat::pen) fn set_servers(
        &mut self,
        listen: Option<&str>,
        servers: &[String],
        emergency: Option<&str>,
        abuse: Option<&str>,
    ) -> Result<(), String> {
        if let Some(listen) = listen {
            self.listen = Some(Listen::parse(listen)?);
        }
        let port = self.listen.as_ref().and_then(Listen::port);
        for (number, server) in servers.iter().enumerate() {
            *self.slot(number) = Slot::parse(server, port)?;
        }
        if let Some(server) = emergency {
            self.emergency = Some(Slot::parse(server, port)?);
        }
        if let Some(server) = abuse {
            self.abuse = Some(Slot::parse(server, port)?);
        }
        Ok(())
    }
}

/// Returns a word of the command line as text.
pub(in crate::compat::pen) fn text(word: OsString) -> Result<String, String> {
    word.into_string().map_err(|word| format!("{} is not UTF-8", word.display()))
}

/// Returns the value of the option that was just parsed.
pub(in crate::compat::pen) fn value(parser: &mut lexopt::Parser) -> Result<String, String> {
    text(parser.value().map_err(|error| error.to_string())?)
}

/// Returns the value of the option that was just parsed, as a number.
pub(in crate::compat::pen) fn number(letter: char, parser: &mut lexopt::Parser) -> Result<u32, String> {
    let given = value(parser)?;
    given.parse().map_err(|_| format!("-{letter}: `{given}` is not a number"))
}
