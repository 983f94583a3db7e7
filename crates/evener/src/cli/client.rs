//! The commands that send a request to a running instance.

use super::{AccessCommand, AdminArgs};
use crate::admin::Reloaded;
use crate::admin::access::AccessRequest;
use crate::admin::client::Refused;
use crate::config;
use crate::output::printable;
use crate::state::RuleView;
use evener_core::acl::Prefix;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// Last line of a reload that failed.
const NOT_RELOADED: &str = "not reloaded: the instance continues with its previous configuration";

/// `evener reload`
pub(super) async fn reload(admin_args: &AdminArgs) -> anyhow::Result<()> {
    let reloaded = admin_args.client()?.post("/v1/reload", &Value::Null).await;
    let reloaded: Reloaded = reloaded.map_err(|error: anyhow::Error| {
        if error.is::<Refused>() { anyhow::anyhow!("{error:#}\n{NOT_RELOADED}") } else { error }
    })?;
    if !admin_args.is_json() {
        reloaded.warnings().iter().for_each(|warning| eprintln!("evener: {}", printable(warning)));
    }
    admin_args.print(&reloaded, Reloaded::text)
}

/// `evener access`
pub(super) async fn access(admin_args: &AdminArgs) -> anyhow::Result<()> {
    let rules: Vec<RuleView> = admin_args.client()?.get("/v1/access").await?;
    admin_args.print(&rules, |rules| match rules.as_slice() {
        [] => "no rules: `evener deny` and `evener permit` add them; the rules of the configuration are not listed\n"
            .into(),
        rules => RuleView::text(rules),
    })
}

/// `evener deny|permit|forget SERVICE PREFIX`
pub(super) async fn change_access(
    command: &AccessCommand,
    action: &str,
    time: Option<Duration>,
) -> anyhow::Result<()> {
    let wanted = AccessRequest::new(&command.service, &command.prefix, action, time);
    let done: Value = command.admin_args.client()?.post("/v1/access", &wanted).await?;
    command.admin_args.print(&done, |done| {
        let change = done["done"].as_str().unwrap_or_default();
        format!("{}: {change}{}\n", command.service, network_note(&command.prefix))
    })
}

/// Returns a note about a prefix that is written with an address inside its network, such as `10.1.2.3/8`. Returns an
/// empty text for other prefixes.
fn network_note(written: &str) -> String {
    let prefix = written.parse::<Prefix>().ok();
    match prefix.and_then(|prefix| Some((prefix, config::address_inside(written, prefix)?))) {
        Some((prefix, address)) => {
            format!(" ({written} means the whole network {prefix}, not only {address})")
        }
        None => String::new(),
    }
}

/// Percent-encodes all bytes except unreserved characters (RFC 3986, sections 2.1 and 2.3).
pub(super) fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

impl AdminArgs {
    /// Prints a response: as JSON if requested, else as text.
    pub(super) fn print<T: Serialize>(
        &self,
        response: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if self.is_json() {
            println!("{}", serde_json::to_string_pretty(response)?);
        } else {
            print!("{}", text(response));
        }
        Ok(())
    }

    /// Prints a response as [`Self::print`] does. If the text shows fewer entries than there are, a note on
    /// standard error gives both numbers: `(shown, all)`.
    pub(super) fn print_part<T: Serialize>(
        &self,
        response: &T,
        text: impl FnOnce(&T) -> String,
        (shown, all): (usize, usize),
    ) -> anyhow::Result<()> {
        self.print(response, text)?;
        if !self.is_json() && shown < all {
            eprintln!("{shown} of {all} are shown; {} more with a higher --limit N", all - shown);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_characters_are_percent_encoded() {
        assert_eq!(percent_encoded("a b/ü"), "a%20b%2F%C3%BC");
    }
}
