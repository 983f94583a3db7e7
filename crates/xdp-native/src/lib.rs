//! The header-only parts of the XDP program, compiled for this machine: for tests and fuzzing. The program in the
//! kernel is compiled from the same headers.
//!
//! Addresses and ports are in network order, as in the program.

use std::ffi::c_int;

/// Class of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// UDP or TCP, with a whole header.
    Transport,
    /// ICMP or ICMPv6, with a whole header.
    Icmp,
    /// A fragment without a transport header.
    Fragment,
    /// Not for the program.
    Other,
    /// Truncated or contradictory headers.
    Malformed,
}

/// Positions in a packet (`struct layers`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// Offset of the IP header.
    pub network: u16,
    /// Offset of the header behind the IP header and its extensions.
    pub transport: u16,
    /// 4, 6, or 0 if the packet is not IP.
    pub family: u8,
    /// Protocol of the header at `transport`.
    pub protocol: u8,
    /// 1 if the packet is a fragment.
    pub fragmented: u8,
    /// Unused.
    pub reserved: u8,
    /// Identification of the fragments of a packet.
    pub fragment_id: u32,
}

/// A part of a table of choices (`struct block`).
pub type Block = [u32; 16];

/// A table of choices as the program sees it, and its servers.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    blocks: &'a [Block],
    takes: &'a [u8],
}

/// Slots that are tried with failover (`PROBES_MAX` of choose.h).
const PROBES_MAX: u32 = 8;

/// `struct choices` of native.c.
#[repr(C)]
struct RawChoices {
    blocks: *const Block,
    takes: *const u8,
    servers: u32,
}

impl<'a> Choices<'a> {
    /// Returns choices among the slots of the blocks; `takes` has the `enum server_takes` of each server by its position,
    /// where position 0 means none.
    ///
    /// # Panics
    /// If the blocks have fewer slots than the first slot says.
    #[must_use]
    pub fn new(blocks: &'a [Block], takes: &'a [u8]) -> Self {
        let slots = blocks.first().map_or(0, |block| block[0] as usize);
        assert!(!blocks.is_empty() && slots < blocks.len() * 16, "{slots} slots in {} blocks", blocks.len());
        Self { blocks, takes }
    }

    /// Returns the position of the server for the hash of a client, or 0.
    #[must_use]
    pub fn of_client(&self, hash: u64) -> u32 {
        self.choose(hash, 1, PROBES_MAX)
    }

    /// Returns the position of the server for the hash of a client without failover: the server of the client's slot,
    /// or 0 if it takes no new clients.
    #[must_use]
    pub fn of_client_without_failover(&self, hash: u64) -> u32 {
        self.choose(hash, 1, 1)
    }

    /// Returns the position of the server for a turn, or 0.
    #[must_use]
    pub fn in_turn(&self, turn: u64) -> u32 {
        self.choose(turn, 0, PROBES_MAX)
    }

    fn choose(&self, number: u64, by: u8, probes: u32) -> u32 {
        let servers = self.takes.len() as u32;
        let raw = RawChoices { blocks: self.blocks.as_ptr(), takes: self.takes.as_ptr(), servers };
        // SAFETY: the slots are in the blocks, as `new` checked, and a position is compared with the number of servers.
        unsafe { evener_choose(&raw const raw, number, by, probes) }
    }
}

unsafe extern "C" {
    fn evener_choose(choices: *const RawChoices, number: u64, by: u8, probes: u32) -> u32;
    fn evener_parse(data: *const u8, end: *const u8, layers: *mut Layers) -> c_int;
    fn evener_parse_inner(data: *const u8, end: *const u8, family: c_int, layers: *mut Layers) -> c_int;
    safe fn evener_hash_client_v4(address: u32) -> u64;
    fn evener_hash_client_v6(address: *const u32) -> u64;
    safe fn evener_slot_of_client(client: u64, probe: u32, slots: u32) -> u32;
    safe fn evener_slot_in_turn(turn: u64, probe: u32, slots: u32) -> u32;
    safe fn evener_hash_endpoint_v4(key: u64) -> u64;
    safe fn evener_hash_endpoint_v6(high: u64, low: u64, port_protocol_kind: u32) -> u64;
    safe fn evener_difference16(before: u16, after: u16) -> u64;
    safe fn evener_difference32(before: u32, after: u32) -> u64;
    safe fn evener_checksum_after(check: u16, difference: u64) -> u16;
    safe fn evener_udp_checksum_after(check: u16, difference: u64) -> u16;
    fn evener_quic_read_id(payload: *const u8, end: *const u8, length: u32, id: *mut u8) -> c_int;
}

fn class(code: c_int) -> Parsed {
    match code {
        0 => Parsed::Transport,
        1 => Parsed::Icmp,
        2 => Parsed::Fragment,
        3 => Parsed::Other,
        4 => Parsed::Malformed,
        _ => unreachable!("enum parsed has five values"),
    }
}

/// Parses a packet with its Ethernet header.
#[must_use]
pub fn parse(packet: &[u8]) -> (Parsed, Layers) {
    let mut layers = Layers::default();
    let range = packet.as_ptr_range();
    // SAFETY: both pointers belong to the packet, and the parser reads between them only (the fuzz target checks that).
    let code = unsafe { evener_parse(range.start, range.end, &raw mut layers) };
    (class(code), layers)
}

/// Parses a packet that begins with an IP header of a family (4 or 6).
#[must_use]
pub fn parse_inner(packet: &[u8], family: u8) -> (Parsed, Layers) {
    let mut layers = Layers::default();
    let range = packet.as_ptr_range();
    // SAFETY: as in `parse`.
    let code = unsafe { evener_parse_inner(range.start, range.end, family.into(), &raw mut layers) };
    (class(code), layers)
}

/// Returns the hash of an IPv4 client by which the program chooses.
#[must_use]
pub fn hash_client_v4(address: u32) -> u64 {
    evener_hash_client_v4(address)
}

/// Returns the hash of an IPv6 client by which the program chooses.
#[must_use]
pub fn hash_client_v6(address: [u32; 4]) -> u64 {
    // SAFETY: the function reads four words.
    unsafe { evener_hash_client_v6(address.as_ptr()) }
}

/// Returns the slot of a table for a client's hash, at a probe.
#[must_use]
pub fn slot_of_client(client: u64, probe: u32, slots: u32) -> u32 {
    evener_slot_of_client(client, probe, slots)
}

/// Returns the slot of a table for a turn, at a probe.
#[must_use]
pub fn slot_in_turn(turn: u64, probe: u32, slots: u32) -> u32 {
    evener_slot_in_turn(turn, probe, slots)
}

/// Returns the hash of an IPv4 endpoint.
#[must_use]
pub fn hash_endpoint_v4(key: u64) -> u64 {
    evener_hash_endpoint_v4(key)
}

/// Returns the hash of an IPv6 endpoint.
#[must_use]
pub fn hash_endpoint_v6(high: u64, low: u64, port_protocol_kind: u32) -> u64 {
    evener_hash_endpoint_v6(high, low, port_protocol_kind)
}

/// Returns the difference that a new port makes to a checksum.
#[must_use]
pub fn difference16(before: u16, after: u16) -> u64 {
    evener_difference16(before, after)
}

/// Returns the difference that a new word of an address makes to a checksum.
#[must_use]
pub fn difference32(before: u32, after: u32) -> u64 {
    evener_difference32(before, after)
}

/// Returns a checksum after a change of the bytes that it covers.
#[must_use]
pub fn checksum_after(check: u16, difference: u64) -> u16 {
    evener_checksum_after(check, difference)
}

/// Returns a checksum of UDP after a change, where 0 means that there is none.
#[must_use]
pub fn udp_checksum_after(check: u16, difference: u64) -> u16 {
    evener_udp_checksum_after(check, difference)
}

/// Longest server ID in a connection ID of QUIC.
pub const QUIC_ID_MAX: usize = 15;

/// Reads the server ID of a length from the connection ID in a datagram of QUIC. Returns `None` if the connection ID names
/// no server.
#[must_use]
pub fn quic_server_id(payload: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut id = [0; QUIC_ID_MAX];
    let range = payload.as_ptr_range();
    // SAFETY: both pointers belong to the payload, and the function writes 15 bytes at most.
    let is_found =
        unsafe { evener_quic_read_id(range.start, range.end, length as u32, id.as_mut_ptr()) } == 1;
    is_found.then(|| id[..length].to_vec())
}

/// The constants, sizes and offsets of the contract as the C compiler has them.
pub mod layout {
    unsafe extern "C" {
        #[link_name = "evener_constants"]
        static CONSTANTS: [i64; 0];
        #[link_name = "evener_layout"]
        static LAYOUT: [usize; 0];
    }

    /// Returns the first constants of the contract, in the order of the header.
    ///
    /// # Safety
    /// The contract has at least so many constants.
    #[must_use]
    pub unsafe fn constants(count: usize) -> &'static [i64] {
        // SAFETY: the caller says so.
        unsafe { std::slice::from_raw_parts((&raw const CONSTANTS).cast(), count) }
    }

    /// Returns sizes and offsets of the contract: of each struct its size, and of each field offset and size.
    ///
    /// # Safety
    /// The contract has at least so many of them.
    #[must_use]
    pub unsafe fn numbers(count: usize) -> &'static [usize] {
        // SAFETY: the caller says so.
        unsafe { std::slice::from_raw_parts((&raw const LAYOUT).cast(), count) }
    }
}
