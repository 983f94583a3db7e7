//! Entries that belong to an instance, and the text that stores them.

use crate::model::{DestinationKey, Family, Protocol, ServiceKey};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Services and destinations that belong to an instance.
///
/// ```
/// use evener_ipvs::reconcile::Owned;
///
/// let text = "service tcp 192.0.2.1:80\ndestination 10.0.0.1:80\nservice fwmark 7 ipv4\n";
/// let owned: Owned = text.parse()?;
/// assert_eq!(owned.to_string(), text);
/// # Ok::<(), evener_ipvs::reconcile::OwnedError>(())
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Owned {
    services: BTreeMap<ServiceKey, BTreeSet<DestinationKey>>,
}

/// A text does not list entries.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line} is neither a service nor a destination: {text}")]
pub struct OwnedError {
    line: usize,
    text: String,
}

impl Owned {
    /// Returns true if there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Returns true if the service belongs to the instance.
    #[must_use]
    pub fn has_service(&self, service: &ServiceKey) -> bool {
        self.services.contains_key(service)
    }

    /// Returns true if the destination of a service belongs to the instance.
    #[must_use]
    pub fn has_destination(&self, service: &ServiceKey, key: &DestinationKey) -> bool {
        self.services.get(service).is_some_and(|destinations| destinations.contains(key))
    }

    pub(super) fn add(&mut self, service: ServiceKey, destinations: impl Iterator<Item = DestinationKey>) {
        self.services.entry(service).or_default().extend(destinations);
    }

    pub(super) fn retain(
        &mut self,
        keeps_service: impl Fn(&ServiceKey) -> bool,
        keeps_destination: impl Fn(&ServiceKey, &DestinationKey) -> bool,
    ) {
        self.services.retain(|service, destinations| {
            destinations.retain(|key| keeps_destination(service, key));
            keeps_service(service)
        });
    }
}

impl fmt::Display for Owned {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (service, destinations) in &self.services {
            match service {
                ServiceKey::Address { protocol, address, port } => {
                    let protocol = protocol.name().to_ascii_lowercase();
                    writeln!(out, "service {protocol} {}", SocketAddr::new(*address, *port))?;
                }
                ServiceKey::Fwmark { mark, family } => {
                    let family = if *family == Family::V4 { "ipv4" } else { "ipv6" };
                    writeln!(out, "service fwmark {mark} {family}")?;
                }
            }
            destinations.iter().try_for_each(|key| writeln!(out, "destination {key}"))?;
        }
        Ok(())
    }
}

impl FromStr for Owned {
    type Err = OwnedError;

    fn from_str(text: &str) -> Result<Self, OwnedError> {
        let mut owned = Self::default();
        let mut service = None;
        for (number, line) in text.lines().enumerate() {
            let wrong = || OwnedError { line: number + 1, text: line.chars().take(80).collect() };
            let words: Vec<&str> = line.split_whitespace().collect();
            match (words.as_slice(), service) {
                (["service", protocol, rest @ ..], _) => {
                    let key = parse_service(protocol, rest).ok_or_else(wrong)?;
                    owned.services.entry(key).or_default();
                    service = Some(key);
                }
                (["destination", address], Some(service)) => {
                    let address: SocketAddr = address.parse().map_err(|_| wrong())?;
                    owned.services.entry(service).or_default().insert(address.into());
                }
                ([], _) => {}
                _ => return Err(wrong()),
            }
        }
        Ok(owned)
    }
}

fn parse_service(protocol: &str, rest: &[&str]) -> Option<ServiceKey> {
    let protocol = match (protocol, rest) {
        ("fwmark", [mark, family]) => {
            let family = match *family {
                "ipv4" => Family::V4,
                "ipv6" => Family::V6,
                _ => return None,
            };
            return Some(ServiceKey::Fwmark { mark: mark.parse().ok()?, family });
        }
        ("tcp", _) => Protocol::Tcp,
        ("udp", _) => Protocol::Udp,
        ("sctp", _) => Protocol::Sctp,
        _ => return None,
    };
    let [address] = rest else { return None };
    let address: SocketAddr = address.parse().ok()?;
    Some(ServiceKey::Address { protocol, address: address.ip(), port: address.port() })
}
