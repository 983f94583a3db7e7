//! The reference of all keys and functions of a configuration. The checks of keys, the hints, `evener help KEY`,
//! the manual page, the annotations for editors and the tables of docs/configuration.md use it.

mod admin;
pub(crate) mod annotations;
mod check;
mod dns;
mod functions;
pub(crate) mod help;
mod http;
mod ipvs;
mod library;
pub(crate) mod manual;
mod pool;
mod server;
mod service;
mod tls;
mod xdp;

/// A key, or a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Tables that can have the key: `service`, `pool.sticky`, `check.http`. Empty for a function.
    tables: &'static [&'static str],
    name: &'static str,
    /// Protocols of the services that can use the key. Empty: all protocols.
    protocols: &'static [&'static str],
    /// Plane of the services that can use the key; empty: all planes.
    plane: &'static str,
    /// Values that the key takes, in Markdown, or the syntax of a function.
    kind: &'static str,
    /// Default in Markdown; empty if there is none to state.
    default: &'static str,
    /// Effect of the key, in Markdown.
    text: &'static str,
    /// Contents of a table with the key.
    example: &'static str,
    /// Section of docs/configuration.md with more about the key.
    section: &'static str,
}

impl Key {
    const NONE: Self = Self {
        tables: &[],
        name: "",
        protocols: &[],
        plane: "",
        kind: "",
        default: "",
        text: "",
        example: "",
        section: "",
    };

    /// Returns the name of the key in its table.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the tables that can have the key.
    #[cfg(test)]
    pub(super) fn tables(&self) -> &'static [&'static str] {
        self.tables
    }

    /// Returns the contents of a table with the key.
    pub(super) fn example(&self) -> &'static str {
        self.example
    }

    /// Returns true if the key takes words or tables, which cannot be guessed.
    pub(super) fn takes_words(&self) -> bool {
        ["table", "word", "\""].iter().any(|form| self.kind.contains(form))
    }

    /// Returns the default, if it is one value.
    pub(super) fn word_default(&self) -> Option<&'static str> {
        let value = self.default.strip_prefix('`')?.strip_suffix('`')?;
        (!value.contains('`')).then_some(value)
    }

    /// Returns the protocols of the services that can use the key, or none if all can.
    pub(super) fn protocols(&self) -> &'static [&'static str] {
        self.protocols
    }

    /// Returns the plane of the services that can use the key; empty if all can.
    pub(super) fn plane(&self) -> &'static str {
        self.plane
    }

    /// Returns true if services of a protocol can use the key.
    #[cfg(test)]
    pub(super) fn fits(&self, protocol: &str) -> bool {
        self.protocols.is_empty() || self.protocols.contains(&protocol)
    }

    /// Returns the path of the key in a table.
    fn path_in(&self, table: &str) -> String {
        if table.is_empty() { self.name.to_owned() } else { format!("{table}.{}", self.name) }
    }
}

/// Returns all keys and functions, in the order of the documentation.
pub(super) fn all() -> impl Iterator<Item = &'static Key> {
    let parts = [
        service::KEYS,
        xdp::KEYS,
        ipvs::KEYS,
        http::KEYS,
        dns::KEYS,
        pool::KEYS,
        server::KEYS,
        check::KEYS,
        tls::KEYS,
        admin::KEYS,
        functions::KEYS,
    ];
    parts.into_iter().flatten()
}

/// Returns the keys of a table.
pub(super) fn keys_of(table: &str) -> impl Iterator<Item = &'static Key> {
    all().filter(move |key| key.tables.contains(&table))
}

/// Returns the key of a name in a table.
pub(super) fn find(table: &str, name: &str) -> Option<&'static Key> {
    keys_of(table).find(|key| key.name == name)
}

/// Returns true if the path names a key, a table or a function.
#[cfg(test)]
pub(super) fn has(path: &str) -> bool {
    let is_key = path.rsplit_once('.').is_some_and(|(table, name)| find(table, name).is_some());
    is_key || find("", path).is_some() || keys_of(path).next().is_some()
}

/// Returns every table with a key of this name, with the key.
pub(super) fn tables_with(name: &str) -> impl Iterator<Item = (&'static str, &'static Key)> {
    let named = all().filter(move |key| key.name == name);
    named.flat_map(|key| key.tables.iter().map(move |table| (*table, key)))
}

/// Returns the reference's name of a table, from the declaration and the keys that lead from it to the table. A
/// service with its own servers has the tables of a pool, too.
pub(super) fn table_of(declaration: &str, keys: &str) -> String {
    let keys = keys.trim_end_matches('.');
    let first = keys.split('.').next().unwrap_or_default();
    let is_of_pool = declaration == "service" && find("service", first).is_none() && !first.is_empty();
    let declaration = if is_of_pool { "pool" } else { declaration };
    if keys.is_empty() { declaration.to_owned() } else { format!("{declaration}.{keys}") }
}

#[cfg(test)]
mod tests;
