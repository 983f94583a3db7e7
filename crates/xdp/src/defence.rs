//! Writes the defence of services into the maps: prefix lists, limits of source prefixes and of SYNs, and dark
//! addresses. While a list changes, each address has its old or its new verdict at any moment.

mod steps;

use crate::contract::{
    CONFIG_TARPIT, Config, Defence, PREFIX_ADMITTED, PREFIX_DENIED, SERVICE_LISTS, SERVICE_RATE,
    SERVICE_SYN_COOKIES, Tarpit,
};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};
use evener_core::acl::{Access, Acl, Prefix};
use evener_core::spec::SourceRate;
use std::collections::BTreeMap;
use std::net::IpAddr;
use steps::Step;

/// Slot of services without a service: its list has the dark addresses.
const DARK: u32 = 0;
/// Bits of the service's number in front of an address.
const SERVICE_BITS: u32 = 32;
/// SYNs without a pause that are not a flood, as a time at the configured rate.
const SYN_BURST: u64 = 100_000_000;
/// The same, as a number of SYNs.
const SYN_BURST_MIN: u64 = 16;
const SECOND: u64 = 1_000_000_000;

/// Defence of a service.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceDefence<'a> {
    /// Clients that are admitted; `None` for all.
    pub clients: Option<&'a Acl>,
    /// Limit of the packets of each source prefix.
    pub rate: Option<SourceRate>,
    /// Number of SYNs a second, for each core, above which clients have to prove their address.
    pub syn_cookies: Option<u32>,
}

impl ServiceDefence<'_> {
    /// Returns the flags that the service has with this defence.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let lists = if self.clients.is_some() { SERVICE_LISTS } else { 0 };
        let rate = if self.rate.is_some() { SERVICE_RATE } else { 0 };
        lists | rate | if self.syn_cookies.is_some() { SERVICE_SYN_COOKIES } else { 0 }
    }

    fn limits(&self) -> Defence {
        let mut defence = Defence::default();
        if let Some(rate) = self.rate {
            defence.packet_ns = (SECOND / u64::from(rate.packets_per_second.max(1))).max(1);
            defence.burst_ns = defence.packet_ns * u64::from(rate.burst.max(1));
            (defence.prefix_v4, defence.prefix_v6) = (rate.prefix_v4, rate.prefix_v6);
        }
        match self.syn_cookies {
            // Each SYN is above the limit.
            Some(0) => defence.syn_ns = 1,
            Some(syns) => {
                defence.syn_ns = (SECOND / u64::from(syns)).max(1);
                defence.syn_burst_ns = SYN_BURST.max(defence.syn_ns * SYN_BURST_MIN);
            }
            None => {}
        }
        defence
    }
}

/// Dark addresses and the interfaces where they get responses.
#[derive(Clone, Copy, Debug)]
pub struct DarkAddresses<'a> {
    /// The list; admitted addresses are dark.
    pub addresses: &'a Acl,
    /// Addresses of hosts, such as this one, which are not dark although they are in the list.
    pub hosts: &'a [IpAddr],
    /// MAC addresses of the interfaces by their index.
    pub interfaces: &'a BTreeMap<u32, [u8; 6]>,
}

/// A list in which the longest match decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct List {
    rules: BTreeMap<Prefix, Access>,
    otherwise: Access,
}

/// The maps of the defence and the lists in them.
#[derive(Debug)]
pub struct Defences {
    v4: LpmTrie<MapData, [u32; 2], u32>,
    v6: LpmTrie<MapData, [u32; 5], u32>,
    tarpits: HashMap<MapData, u32, Tarpit>,
    /// Lists by service.
    lists: BTreeMap<u32, List>,
}

impl Defences {
    /// Takes the maps by name, and reads the lists that an earlier process wrote.
    ///
    /// # Errors
    /// A map is missing, has another type or cannot be read.
    pub fn take(
        mut take: impl FnMut(&str) -> Option<Map>,
        defences: &Array<MapData, Defence>,
    ) -> Result<Self, MapError> {
        let mut map = |name: &str| take(name).ok_or_else(|| MapError::InvalidName { name: name.into() });
        let v4: LpmTrie<_, [u32; 2], u32> = map("prefixes_v4")?.try_into()?;
        let v6: LpmTrie<_, [u32; 5], u32> = map("prefixes_v6")?.try_into()?;
        let mut lists: BTreeMap<u32, List> = BTreeMap::new();
        let mut found = |service: u32, address: IpAddr, bits: u32, verdict: u32| {
            let length = bits.saturating_sub(SERVICE_BITS) as u8;
            let prefix = Prefix::new(address, length);
            lists.entry(service).or_default().rules.insert(prefix, access(verdict));
        };
        for entry in v4.iter() {
            let (key, verdict) = entry?;
            let [service, address] = key.data();
            found(service, address_of(&[address]), key.prefix_len(), verdict);
        }
        for entry in v6.iter() {
            let (key, verdict) = entry?;
            let [service, address @ ..] = key.data();
            found(service, address_of(&address), key.prefix_len(), verdict);
        }
        for (service, list) in &mut lists {
            let denied = defences.get(service, 0)?.default_denied != 0;
            list.otherwise = if denied { Access::Deny } else { Access::Permit };
        }
        Ok(Self { v4, v6, tarpits: map("tarpits")?.try_into()?, lists })
    }

    /// Writes the defence of the service in a slot. It has an effect for flags of the service that are set before or
    /// after: set [`ServiceDefence::flags`] after this.
    ///
    /// # Errors
    /// The kernel refuses an entry, for example because the lists of all services are too long. A list can then be
    /// partly replaced.
    pub fn write(
        &mut self,
        defences: &mut Array<MapData, Defence>,
        service: u32,
        wanted: &ServiceDefence<'_>,
    ) -> Result<(), MapError> {
        let list = wanted.clients.map(List::of).unwrap_or_default();
        self.write_list(defences, service, &list, wanted.limits())
    }

    /// Removes the defence of a slot that no service uses any more.
    ///
    /// # Errors
    /// The kernel refuses to remove an entry.
    pub fn remove(&mut self, defences: &mut Array<MapData, Defence>, service: u32) -> Result<(), MapError> {
        self.write(defences, service, &ServiceDefence::default())
    }

    /// Writes the dark addresses, or removes them.
    ///
    /// # Errors
    /// The kernel refuses an entry.
    pub fn write_dark(
        &mut self,
        defences: &mut Array<MapData, Defence>,
        settings: &mut Array<MapData, Config>,
        dark: Option<DarkAddresses<'_>>,
    ) -> Result<(), MapError> {
        let config = settings.get(&0, 0)?;
        let Some(dark) = dark else {
            settings.set(0, Config { flags: config.flags & !CONFIG_TARPIT, ..config }, 0)?;
            self.set_interfaces(&BTreeMap::new())?;
            return self.write_list(defences, DARK, &List::default(), Defence::default());
        };
        let hosts: Vec<_> = dark.hosts.iter().map(|host| (Prefix::new(*host, 128), Access::Deny)).collect();
        let list = List::of(&dark.addresses.after(&hosts));
        self.write_list(defences, DARK, &list, Defence::default())?;
        self.set_interfaces(dark.interfaces)?;
        settings.set(0, Config { flags: config.flags | CONFIG_TARPIT, ..config }, 0)
    }

    fn set_interfaces(&mut self, wanted: &BTreeMap<u32, [u8; 6]>) -> Result<(), MapError> {
        for (index, mac) in wanted {
            self.tarpits.insert(index, Tarpit { mac: *mac, reserved: 0 }, 0)?;
        }
        let present: Vec<u32> = self.tarpits.keys().collect::<Result<_, _>>()?;
        for index in present.iter().filter(|index| !wanted.contains_key(index)) {
            self.tarpits.remove(index)?;
        }
        Ok(())
    }

    fn write_list(
        &mut self,
        defences: &mut Array<MapData, Defence>,
        service: u32,
        wanted: &List,
        limits: Defence,
    ) -> Result<(), MapError> {
        let before = self.lists.remove(&service).unwrap_or_default();
        let mut present = before.clone();
        let result = before.steps_to(wanted).into_iter().try_for_each(|step| {
            self.take_step(defences, service, step, limits)?;
            present.take(step);
            Ok(())
        });
        if present != List::default() {
            self.lists.insert(service, present);
        }
        result
    }

    fn take_step(
        &mut self,
        defences: &mut Array<MapData, Defence>,
        service: u32,
        step: Step,
        limits: Defence,
    ) -> Result<(), MapError> {
        match step {
            Step::Default(otherwise) => {
                let default_denied = u8::from(otherwise == Access::Deny);
                defences.set(service, Defence { default_denied, ..limits }, 0)
            }
            Step::Set(prefix, access) => {
                let verdict =
                    u32::from(if access == Access::Permit { PREFIX_ADMITTED } else { PREFIX_DENIED });
                match keys(service, prefix) {
                    PrefixKey::V4(key) => self.v4.insert(&key, verdict, 0),
                    PrefixKey::V6(key) => self.v6.insert(&key, verdict, 0),
                }
            }
            Step::Remove(prefix) => match keys(service, prefix) {
                PrefixKey::V4(key) => self.v4.remove(&key),
                PrefixKey::V6(key) => self.v6.remove(&key),
            },
        }
    }
}

enum PrefixKey {
    V4(Key<[u32; 2]>),
    V6(Key<[u32; 5]>),
}

fn keys(service: u32, prefix: Prefix) -> PrefixKey {
    let (address, length) = prefix.network();
    let bits = SERVICE_BITS + u32::from(length);
    match address {
        IpAddr::V4(address) => PrefixKey::V4(Key::new(bits, [service, u32::from_ne_bytes(address.octets())])),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let mut words = [service; 5];
            for (word, bytes) in words[1..].iter_mut().zip(octets.as_chunks().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            PrefixKey::V6(Key::new(bits, words))
        }
    }
}

/// Returns the address of one or four words in network order.
fn address_of(words: &[u32]) -> IpAddr {
    match words {
        [word] => IpAddr::from(word.to_ne_bytes()),
        _ => {
            let mut octets = [0; 16];
            for (bytes, word) in octets.chunks_exact_mut(4).zip(words) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::from(octets)
        }
    }
}

fn access(verdict: u32) -> Access {
    if verdict == u32::from(PREFIX_ADMITTED) { Access::Permit } else { Access::Deny }
}
