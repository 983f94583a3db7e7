//! Next hops of servers: the route to a server, the neighbour on it and the interface, as rtnetlink has them. The kernel
//! resolves neighbours when the plane requests it; messages about changes make the next hops due again.

use crate::contents::{Hop, Hops};
use crate::netlink::{Attributes, FLAG_DUMP, Request, Socket};
use evener_core::Time;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;
const LINK_FIXED: usize = 16;
const FIXED: usize = 12;
const ADDRESS_FIXED: usize = 8;
const CREATE: u16 = 0x400;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTN_UNICAST: u8 = 1;
/// States in which the address of a neighbour is valid: permanent, no ARP, reachable, probe, stale and delay.
const NUD_VALID: u16 = 0xde;
/// The kernel resolves the neighbour, as if it had a packet for it.
const NTF_USE: u8 = 1;

/// Links, neighbours, and addresses and routes of both families (`RTMGRP_*`).
const GROUPS: u32 = 1 | 4 | 0x10 | 0x40 | 0x100 | 0x400;

/// Time between changes and the next look at them, so that many changes are looked at together.
const SETTLE: Duration = Duration::from_millis(20);
/// Time until an unresolved neighbour is used again.
const RETRY: Duration = Duration::from_millis(500);
/// Time until resolved neighbours are used again, so that the kernel keeps and checks them.
const KEEP: Duration = Duration::from_secs(20);
/// Time without a next hop after which a server is reported.
const REPORT_AFTER: Duration = Duration::from_secs(3);
/// Time for which new servers wait for their next hops.
const PREPARE_MAX: Duration = Duration::from_millis(250);
/// Interval of looks at the next hops of new servers.
const PREPARE_STEP: Duration = Duration::from_millis(5);
/// Maximum number of addresses of this machine.
const ADDRESSES_MAX: usize = 4096;
/// Bytes of a message of the kernel at most.
const DATAGRAM_MAX: usize = 65_536;

/// A server whose next hop was missing for a while, or is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HopReport {
    Missing(IpAddr, String),
    Found(IpAddr),
}

/// Follows the next hops of servers.
#[derive(Debug)]
pub(crate) struct Neighbours {
    requests: Socket,
    changes: OwnedFd,
    wanted: BTreeSet<IpAddr>,
    hops: Hops,
    /// Routes of servers, until links, addresses or routes change.
    routes: HashMap<IpAddr, Route>,
    /// Servers without a next hop: since when, and whether they were reported.
    missing: HashMap<IpAddr, (Time, bool)>,
    next: Time,
    next_keep: Time,
    links_changed: bool,
    addresses_changed: bool,
}

/// The way to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    ifindex: u32,
    hop: IpAddr,
    mtu: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    mtu: u32,
    address: Option<[u8; 6]>,
}

impl Neighbours {
    /// Begins to follow changes of the network namespace of this thread.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let changes = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&changes, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self {
            requests: Socket::open(libc::NETLINK_ROUTE)?,
            changes,
            wanted: BTreeSet::new(),
            hops: Hops::new(),
            routes: HashMap::new(),
            missing: HashMap::new(),
            next: Time::NEVER,
            next_keep: Time::ZERO,
            links_changed: false,
            addresses_changed: false,
        })
    }

    /// Sets the addresses of servers whose next hops are needed.
    pub(crate) fn set_wanted(&mut self, wanted: BTreeSet<IpAddr>, now: Time) {
        if self.wanted != wanted {
            self.hops.retain(|address, _| wanted.contains(address));
            self.routes.retain(|address, _| wanted.contains(address));
            self.missing.retain(|address, _| wanted.contains(address));
            self.wanted = wanted;
            self.next = now;
            self.next_keep = now;
        }
    }

    /// Begins with the next hops that an earlier process found, until they are looked for.
    pub(crate) fn begin_with(&mut self, hops: Hops) {
        self.hops = hops;
    }

    /// Sets the addresses of servers whose next hops are needed, and waits a moment for the next hops of new servers, so
    /// that a new server gets no packets before it can be reached.
    pub(crate) fn prepare(&mut self, wanted: BTreeSet<IpAddr>, now: impl Fn() -> Time) -> Vec<HopReport> {
        let new: Vec<IpAddr> = wanted.difference(&self.wanted).copied().collect();
        let began = now();
        self.set_wanted(wanted, began);
        let mut reports = Vec::new();
        while !new.is_empty() && now().since(began) < PREPARE_MAX {
            let (hops, found) = self.find(false, now());
            self.hops = hops;
            reports.extend(found);
            if new.iter().all(|address| !self.missing.contains_key(address)) {
                break;
            }
            std::thread::sleep(PREPARE_STEP);
        }
        reports
    }

    /// Returns the next hops.
    pub(crate) fn hops(&self) -> &Hops {
        &self.hops
    }

    /// Returns the time at which [`Self::on_time`] is due.
    pub(crate) fn deadline(&self) -> Time {
        if self.wanted.is_empty() { Time::NEVER } else { self.next.min(self.next_keep) }
    }

    /// Receives the messages about changes.
    pub(crate) fn on_changes(&mut self, now: Time) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            match recv(&self.changes, &mut buffer[..], RecvFlags::empty()) {
                Ok((received, _)) if received > 0 => {
                    let kind = buffer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
                    // RTM_NEWLINK and RTM_DELLINK.
                    self.links_changed |= matches!(kind, Some(16 | 17));
                    // RTM_NEWADDR and RTM_DELADDR.
                    self.addresses_changed |= matches!(kind, Some(20 | 21));
                    // A message about a neighbour leaves the routes.
                    if !matches!(kind, Some(NEW_NEIGHBOUR | DELETE_NEIGHBOUR)) {
                        self.routes.clear();
                    }
                }
                // Messages were lost.
                Err(rustix::io::Errno::NOBUFS) => {
                    (self.links_changed, self.addresses_changed) = (true, true);
                    self.routes.clear();
                }
                _ => break,
            }
        }
        self.next = self.next.min(now + SETTLE);
    }

    /// Returns true once after interfaces changed.
    pub(crate) fn take_links_changed(&mut self) -> bool {
        std::mem::take(&mut self.links_changed)
    }

    /// Returns true once after addresses of this machine changed.
    pub(crate) fn take_addresses_changed(&mut self) -> bool {
        std::mem::take(&mut self.addresses_changed)
    }

    /// Looks for the next hops if that is due. Returns true if some changed, and the reports.
    pub(crate) fn on_time(&mut self, now: Time) -> (bool, Vec<HopReport>) {
        if self.deadline() > now {
            return (false, Vec::new());
        }
        let keeps = self.next_keep <= now;
        if keeps {
            self.next_keep = now + KEEP;
            // Changes of policy rules send no message to these groups.
            self.routes.clear();
        }
        let (hops, reports) = self.find(keeps, now);
        self.next = if self.missing.is_empty() { Time::NEVER } else { now + RETRY };
        let changed = hops != self.hops;
        self.hops = hops;
        (changed, reports)
    }

    /// Finds the next hops of all servers.
    fn find(&mut self, keeps: bool, now: Time) -> (Hops, Vec<HopReport>) {
        let neighbours = self.neighbours().unwrap_or_default();
        let mut links: HashMap<u32, Option<Link>> = HashMap::new();
        let (mut hops, mut reports, mut used) = (Hops::new(), Vec::new(), HashSet::new());
        for address in self.wanted.clone() {
            let found = match self.known_route(address) {
                Err(why) => Err(why),
                Ok(route) => {
                    let neighbour = neighbours.get(&(route.ifindex, route.hop));
                    if (neighbour.is_none() || keeps) && used.insert((route.ifindex, route.hop)) {
                        self.resolve(route);
                    }
                    let link = *links
                        .entry(route.ifindex)
                        .or_insert_with(|| link(&mut self.requests, route.ifindex));
                    match (neighbour, link) {
                        (Some(destination), Some(Link { mtu, address: Some(source) })) => {
                            let mtu = route.mtu.unwrap_or(mtu).min(mtu);
                            Ok(Hop::new(route.ifindex, mtu, *destination, source))
                        }
                        (None, Some(_)) => Err(format!("the neighbour {} does not respond", route.hop)),
                        _ => Err("its interface has no MAC address".to_owned()),
                    }
                }
            };
            match found {
                Ok(hop) => {
                    hops.insert(address, hop);
                    if let Some((_, true)) = self.missing.remove(&address) {
                        reports.push(HopReport::Found(address));
                    }
                }
                Err(why) => {
                    let (since, is_reported) = self.missing.entry(address).or_insert((now, false));
                    if now.since(*since) < REPORT_AFTER {
                        // While its neighbour is resolved again, a server keeps the last next hop.
                        hops.extend(self.hops.get(&address).map(|hop| (address, *hop)));
                    } else if !std::mem::replace(is_reported, true) {
                        reports.push(HopReport::Missing(address, why));
                    }
                }
            }
        }
        (hops, reports)
    }

    /// Returns the source address that the kernel chooses for packets to an address.
    pub(crate) fn source_to(&mut self, address: IpAddr) -> Option<IpAddr> {
        let message = self.route_message(address).ok()?;
        Attributes::new(&message, FIXED).find(RTA_PREFSRC).and_then(ip)
    }

    /// Returns the addresses of this machine.
    pub(crate) fn local_addresses(&mut self) -> BTreeSet<IpAddr> {
        let request = Request::new(GET_ADDRESS, FLAG_DUMP, &[0; ADDRESS_FIXED]);
        let messages = self.requests.request(&request).unwrap_or_default();
        let address = |message: &Vec<u8>| {
            let attributes = Attributes::new(message, ADDRESS_FIXED);
            attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS)).and_then(ip)
        };
        messages.iter().filter_map(address).take(ADDRESSES_MAX).collect()
    }

    /// Returns the MAC address of an interface.
    pub(crate) fn mac_of(&mut self, ifindex: u32) -> Option<[u8; 6]> {
        link(&mut self.requests, ifindex)?.address
    }

    fn known_route(&mut self, address: IpAddr) -> Result<Route, String> {
        if let Some(route) = self.routes.get(&address) {
            return Ok(*route);
        }
        let route = self.route(address)?;
        self.routes.insert(address, route);
        Ok(route)
    }

    fn route(&mut self, address: IpAddr) -> Result<Route, String> {
        let message = self.route_message(address)?;
        let route = Route::parse(&message, address);
        route.ok_or_else(|| "it is not reached by a unicast route of an interface".to_owned())
    }

    fn route_message(&mut self, address: IpAddr) -> Result<Vec<u8>, String> {
        let (family, bytes) = parts(address);
        let fixed = [family, bytes.len() as u8 * 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let request = Request::new(GET_ROUTE, 0, &fixed).attribute(RTA_DST, &bytes);
        let messages = self.requests.request(&request);
        let messages = messages.map_err(|refused| format!("no route to it: {refused}"))?;
        messages.into_iter().next().ok_or_else(|| "no route to it".to_owned())
    }

    /// Makes the kernel resolve a neighbour, or check it again.
    fn resolve(&mut self, route: Route) {
        let (family, bytes) = parts(route.hop);
        let mut fixed = [0; FIXED];
        fixed[0] = family;
        fixed[4..8].copy_from_slice(&route.ifindex.to_ne_bytes());
        fixed[10] = NTF_USE;
        let request = Request::new(NEW_NEIGHBOUR, CREATE, &fixed).attribute(NDA_DST, &bytes);
        // A failure shows as a missing neighbour.
        let _ = self.requests.request(&request);
    }

    /// Returns the MAC addresses of all neighbours that are valid now.
    fn neighbours(&mut self) -> Option<HashMap<(u32, IpAddr), [u8; 6]>> {
        let mut found = HashMap::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let mut fixed = [0; FIXED];
            fixed[0] = family;
            let messages = self.requests.request(&Request::new(GET_NEIGHBOUR, FLAG_DUMP, &fixed)).ok()?;
            found.extend(messages.iter().filter_map(|message| neighbour(message)));
        }
        Some(found)
    }
}

impl AsFd for Neighbours {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

impl Route {
    fn parse(message: &[u8], address: IpAddr) -> Option<Self> {
        let attributes = Attributes::new(message, FIXED);
        if *message.get(7)? != RTN_UNICAST {
            return None;
        }
        let via = attributes.find(RTA_VIA).and_then(|via| ip(via.get(2..)?));
        let gateway = attributes.find(RTA_GATEWAY).and_then(ip).or(via);
        Some(Self {
            ifindex: attributes.u32(RTA_OIF)?,
            hop: gateway.unwrap_or(address),
            mtu: attributes.nested(RTA_METRICS).u32(RTAX_MTU),
        })
    }
}

fn neighbour(message: &[u8]) -> Option<((u32, IpAddr), [u8; 6])> {
    let attributes = Attributes::new(message, FIXED);
    let state = u16::from_ne_bytes([*message.get(8)?, *message.get(9)?]);
    let address = attributes.find(NDA_LLADDR)?.try_into().ok()?;
    let key = (word(message, 4)?, ip(attributes.find(NDA_DST)?)?);
    (state & NUD_VALID != 0).then_some((key, address))
}

fn link(requests: &mut Socket, ifindex: u32) -> Option<Link> {
    let mut fixed = [0; LINK_FIXED];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let messages = requests.request(&Request::new(GET_LINK, 0, &fixed)).ok()?;
    let attributes = Attributes::new(messages.first()?, LINK_FIXED);
    let address = attributes.find(IFLA_ADDRESS).and_then(|bytes| bytes.try_into().ok());
    Some(Link { mtu: attributes.u32(IFLA_MTU)?, address })
}
