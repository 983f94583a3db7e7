//! The contract of `bpf/contract.h`, in Rust: structs, enums and limits with the same layout. Fields are described
//! in the header. Addresses, ports and MAC addresses are in network order, all else in host order.

#![allow(missing_docs, reason = "the header describes the fields")]

use aya::Pod;

pub const CONTRACT_VERSION: u32 = 2;
pub const SERVICES_MAX: u32 = 4096;
pub const VIPS_MAX: u32 = 8192;
pub const SERVERS_MAX: u32 = 16384;
pub const POOLS_MAX: u32 = 4096;
pub const RETURNS_MAX: u32 = 65536;
pub const HOPS_MAX: u32 = 1024;
pub const BUCKETS_V4: u32 = 32768;
pub const BUCKETS_V6: u32 = 32768;
pub const BUCKET_ENTRIES: usize = 4;
pub const BLOCK_SLOTS: usize = 16;
pub const SHARED_MAX: u32 = 8;
pub const PREFIXES_MAX: u32 = 1048576;
pub const SOURCES_MAX: u32 = 262144;
pub const ATTEMPTS_MAX: u32 = 131072;
pub const TARPITS_MAX: u32 = 256;
pub const FLOW_SLOT_BITS: u32 = 14;
pub const FLOW_HOP_BITS: u32 = 10;
pub const REASONS_MAX: usize = 40;
pub const LAST_REASON: u32 = 39;
pub const CAPTURE_BYTES: u32 = 2048;
pub const IDENTITIES_MAX: u32 = 32768;

// enum endpoint_kind
pub const ENDPOINT_FREE: u8 = 0;
pub const ENDPOINT_VIP: u8 = 1;
pub const ENDPOINT_REAL: u8 = 2;
pub const ENDPOINT_LOCAL: u8 = 3;

// enum forward
pub const FORWARD_NAT: u8 = 0;
pub const FORWARD_DIRECT: u8 = 1;
pub const FORWARD_IPIP: u8 = 2;
pub const FORWARD_GUE: u8 = 3;

// enum next_hop
pub const NEXT_HOP_SENDER: u8 = 0;
pub const NEXT_HOP_ROUTE: u8 = 1;

// enum choose_by
pub const CHOOSE_BY_TURN: u8 = 0;
pub const CHOOSE_BY_CLIENT: u8 = 1;

// enum service_flags
pub const SERVICE_BY_ADDRESS: u32 = 1;
pub const SERVICE_IDLE: u32 = 2;
pub const SERVICE_LISTS: u32 = 4;
pub const SERVICE_RATE: u32 = 8;
pub const SERVICE_SYN_COOKIES: u32 = 16;
pub const SERVICE_QUIC: u32 = 32;
pub const SERVICE_CAPTURED: u32 = 64;
pub const SERVICE_REPORTED: u32 = 128;
pub const SERVICE_ONE_SLOT: u32 = 256;
pub const SERVICE_DEFENDED: u32 = 28;

// enum server_takes
pub const TAKES_NONE: u8 = 0;
pub const TAKES_KNOWN: u8 = 1;
pub const TAKES_NEW: u8 = 2;

// enum prefix_verdict
pub const PREFIX_ADMITTED: u8 = 0;
pub const PREFIX_DENIED: u8 = 1;

// enum reason
pub const REASON_MALFORMED: u8 = 0;
pub const REASON_TTL_EXCEEDED: u8 = 1;
pub const REASON_NO_SERVER: u8 = 2;
pub const REASON_REFUSED_EGRESS: u8 = 3;
pub const REASON_NO_NEXT_HOP: u8 = 4;
pub const REASON_TOO_BIG: u8 = 5;
pub const REASON_DENIED: u8 = 6;
pub const REASON_LIMITED: u8 = 7;
pub const REASON_SYN_CHALLENGED: u8 = 8;
pub const REASON_SYN_INVALID: u8 = 9;
pub const REASON_ICMP_UNKNOWN: u8 = 10;
pub const REASON_INTERNAL: u8 = 11;
pub const REASON_FRAGMENT_UNKNOWN: u8 = 12;
pub const REASON_UNSUPPORTED: u8 = 13;
pub const REASON_FLOW_NEW: u8 = 14;
pub const REASON_FLOW_MOVED: u8 = 15;
pub const REASON_FLOW_EXPIRED: u8 = 16;
pub const REASON_FLOW_BY_SERVER: u8 = 17;
pub const REASON_FLOW_NOT_STORED: u8 = 18;
pub const REASON_SECOND_CHANCE: u8 = 19;
pub const REASON_ICMP_TRANSLATED: u8 = 20;
pub const REASON_FRAGMENT: u8 = 21;
pub const REASON_QUIC_ROUTED: u8 = 22;
pub const REASON_QUIC_UNKNOWN: u8 = 23;
pub const REASON_SYN_VALIDATED: u8 = 24;
pub const REASON_RESPONDED_TTL: u8 = 25;
pub const REASON_RESPONDED_TOO_BIG: u8 = 26;
pub const REASON_TARPIT_ARP: u8 = 27;
pub const REASON_TARPIT_SYN: u8 = 28;
pub const REASON_TARPIT_SEGMENT: u8 = 29;
pub const REASON_EVENT_LOST: u8 = 30;
pub const REASONS: usize = 31;

// enum event_level
pub const EVENT_CRITICAL: u32 = 0;
pub const EVENT_ERROR: u32 = 1;
pub const EVENT_WARNING: u32 = 2;
pub const EVENT_INFO: u32 = 3;
pub const EVENT_DEBUG: u32 = 4;
pub const EVENT_TRACE: u32 = 5;

// enum event_kind
pub const EVENT_FLOW_NEW: u8 = 0;
pub const EVENT_FLOW_REUSED: u8 = 1;
pub const EVENT_FLOW_MOVED: u8 = 2;
pub const EVENT_FLOW_BY_SERVER: u8 = 3;
pub const EVENT_EGRESS: u8 = 4;
pub const EVENT_DROPPED: u8 = 5;
pub const EVENT_PASSED: u8 = 6;
pub const EVENT_SAMPLE: u8 = 7;

// enum capture_stage
pub const CAPTURE_BEFORE: u8 = 0;
pub const CAPTURE_AFTER: u8 = 1;

// enum config_flags
pub const CONFIG_TARPIT: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointV4 {
    pub address: u32,
    pub port: u16,
    pub protocol: u8,
    pub kind: u8,
    pub a: u32,
    pub b: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for EndpointV4 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketV4 {
    pub entries: [EndpointV4; BUCKET_ENTRIES],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for BucketV4 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointV6 {
    pub address: [u32; 4],
    pub port: u16,
    pub protocol: u8,
    pub kind: u8,
    pub a: u32,
    pub b: u32,
    pub reserved: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for EndpointV6 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketV6 {
    pub entries: [EndpointV6; BUCKET_ENTRIES],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for BucketV6 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub id: u32,
    pub flags: u32,
    pub pool: u32,
    pub idle_seconds: u32,
    pub forward: u8,
    pub next_hop: u8,
    pub choose_by: u8,
    pub quic_id_length: u8,
    pub tunnel_port: u16,
    pub reserved: u16,
    pub tunnel_source_v4: u32,
    pub tunnel_source_v6: [u32; 4],
    pub group: u32,
    pub reserved_words: [u32; 4],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Service {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defence {
    pub packet_ns: u64,
    pub burst_ns: u64,
    pub syn_ns: u64,
    pub syn_burst_ns: u64,
    pub prefix_v4: u8,
    pub prefix_v6: u8,
    pub default_denied: u8,
    pub reserved: [u8; 5],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Defence {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    pub service: u32,
    pub family: u32,
    pub address: [u32; 4],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Vip {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Server {
    pub id: u32,
    pub takes: u8,
    pub family: u8,
    pub port: u16,
    pub address: [u32; 4],
    pub ifindex: u32,
    pub mtu: u32,
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    pub group: u32,
    pub reserved: [u32; 4],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Server {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    pub service: u32,
    pub vip: u32,
    pub server: u32,
    pub next: u32,
    pub port: u16,
    pub reserved: u16,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Returns {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub slots: [u32; BLOCK_SLOTS],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Block {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKeyV4 {
    pub address: u32,
    pub port: u16,
    pub vip: u16,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for FlowKeyV4 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKeyV6 {
    pub address: [u32; 4],
    pub port: u16,
    pub vip: u16,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for FlowKeyV6 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub server: u32,
    pub hop_and_used: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Flow {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub local_mac: [u8; 6],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Hop {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentKey {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub id: u32,
    pub protocol: u8,
    pub family: u8,
    pub reserved: u16,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for FragmentKey {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    pub service: u32,
    pub vip: u32,
    pub server: u32,
    pub server_id: u32,
    pub inbound: u8,
    pub reserved: [u8; 3],
    pub hop: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Fragment {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixKeyV4 {
    pub prefix: u32,
    pub service: u32,
    pub address: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for PrefixKeyV4 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixKey {
    pub prefix: u32,
    pub service: u32,
    pub address: [u32; 4],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for PrefixKey {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceKey {
    pub service: u32,
    pub address: [u32; 4],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for SourceKey {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptKey {
    pub service: u32,
    pub vip: u32,
    pub address: [u32; 4],
    pub port: u16,
    pub vip_port: u16,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for AttemptKey {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    pub until_ns: u64,
    pub sequence: u32,
    pub reserved: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Attempt {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynMeter {
    pub full_until_ns: u64,
    pub strict_until_ns: u64,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for SynMeter {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tarpit {
    pub mac: [u8; 6],
    pub reserved: u16,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Tarpit {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuicKey {
    pub service: u32,
    pub length: u8,
    pub id: [u8; 15],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for QuicKey {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotAndId {
    pub server: u32,
    pub server_id: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for SlotAndId {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounters {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub flows: u64,
    pub reserved: [u64; 3],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for ServerCounters {}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCounters {
    pub reasons: [u64; REASONS_MAX],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for ServiceCounters {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub time_ns: u64,
    pub service: u32,
    pub server: u32,
    pub kind: u8,
    pub reason: u8,
    pub level: u8,
    pub protocol: u8,
    pub family: u8,
    pub reserved: [u8; 3],
    pub source_port: u16,
    pub destination_port: u16,
    pub new_source_port: u16,
    pub new_destination_port: u16,
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub new_source: [u32; 4],
    pub new_destination: [u32; 4],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Event {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventBudget {
    pub second: u64,
    pub events: u64,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for EventBudget {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    pub until_ns: u64,
    pub service: u32,
    pub every: u32,
    pub bytes: u32,
    pub process: u32,
    pub reserved: [u32; 2],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Capture {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    pub time_ns: u64,
    pub service: u32,
    pub number: u32,
    pub length: u32,
    pub stored: u32,
    pub stage: u8,
    pub reason: u8,
    pub action: u8,
    pub reserved: u8,
    pub reserved_word: u32,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Captured {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub version: u32,
    pub flags: u32,
    pub event_level: u32,
    pub events_per_second: u32,
    pub sample_every: u32,
    pub sample_length: u32,
    pub reserved: [u8; 8],
    pub key: u64,
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Config {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub words: [u64; 2],
}

// SAFETY: the struct has the C layout, no padding and only integers.
unsafe impl Pod for Identity {}
