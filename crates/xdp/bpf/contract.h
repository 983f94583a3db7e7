/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The contract between the XDP program and its loader: every struct, enum and limit that both sides know.
 * src/contract.rs has the same in Rust; a test compares sizes and offsets. Addresses, ports and MAC addresses are in
 * network order, all else in host order. An IPv4 address is the first word of an address; the other words are 0.
 */
#ifndef EVENER_CONTRACT_H
#define EVENER_CONTRACT_H

#include <linux/types.h>

/*
 * Version of this file. Pinned maps of another version are replaced, with their associations lost: increase it only
 * if the layout of a map changes.
 */
#define CONTRACT_VERSION 2

/* Sizes of tables. Slot 0 of services, vips, returns, servers and pools means "none". */
#define SERVICES_MAX 4096
#define VIPS_MAX 8192
#define SERVERS_MAX 16384
#define POOLS_MAX 4096
#define RETURNS_MAX 65536
/* Next hops of clients. Hop 0 means "unknown". */
#define HOPS_MAX 1024
#define BUCKETS_V4 32768
#define BUCKETS_V6 32768
#define BUCKET_ENTRIES 4
#define BLOCK_SLOTS 16
/* Services that can have one server address and port in common, with NAT. */
#define SHARED_MAX 8
/* Prefixes of all lists, source prefixes with a token bucket, proven connection attempts, interfaces with a tarpit. */
#define PREFIXES_MAX 1048576
#define SOURCES_MAX 262144
#define ATTEMPTS_MAX 131072
#define TARPITS_MAX 256

/* ---- endpoints: who is behind an address and port ---- */

enum endpoint_kind {
	ENDPOINT_FREE = 0,
	/* Clients send to it. */
	ENDPOINT_VIP = 1,
	/* A server with NAT sends from it. */
	ENDPOINT_REAL = 2,
	/*
	 * An address of this machine, with port and protocol 0: what a server sends to it without an association goes to
	 * the kernel, such as responses to checks.
	 */
	ENDPOINT_LOCAL = 3,
};

/* The key of an endpoint of IPv4 is one word, so that it is compared and written at once. */
struct endpoint_v4 {
	__u32 address;
	__u16 port;
	__u8 protocol;
	__u8 kind;
	/* VIP: service and vip. REAL: position in returns, and 0. */
	__u32 a;
	__u32 b;
};

struct bucket_v4 {
	struct endpoint_v4 entries[BUCKET_ENTRIES];
};

struct endpoint_v6 {
	__u32 address[4];
	__u16 port;
	__u8 protocol;
	/* Written last, and cleared first. */
	__u8 kind;
	__u32 a;
	__u32 b;
	__u32 reserved;
};

struct bucket_v6 {
	struct endpoint_v6 entries[BUCKET_ENTRIES];
};

/* ---- services ---- */

enum forward {
	/* The destination address (and port) is replaced; responses pass here, too. */
	FORWARD_NAT = 0,
	/* Only the destination MAC address is replaced; the server has the virtual address. */
	FORWARD_DIRECT = 1,
	/* IP in IP (RFC 2003, RFC 2473). */
	FORWARD_IPIP = 2,
	/* Generic UDP Encapsulation, variant 1: IP directly in UDP (draft-ietf-intarea-gue). */
	FORWARD_GUE = 3,
};

enum next_hop {
	/* Packets leave to where they came from: the MAC addresses are exchanged. */
	NEXT_HOP_SENDER = 0,
	/* The next hops of servers and clients. */
	NEXT_HOP_ROUTE = 1,
};

enum choose_by {
	/* Slots of the table in turn. */
	CHOOSE_BY_TURN = 0,
	/* The slot of the client's hash. */
	CHOOSE_BY_CLIENT = 1,
};

enum service_flags {
	/* An association is per client address; by default it is per address and port. */
	SERVICE_BY_ADDRESS = 1 << 0,
	/* Associations end when they are unused for idle_seconds. */
	SERVICE_IDLE = 1 << 1,
	/* Clients are looked up in the prefix lists. */
	SERVICE_LISTS = 1 << 2,
	/* Source prefixes have token buckets. */
	SERVICE_RATE = 1 << 3,
	/* SYN cookies above a rate. */
	SERVICE_SYN_COOKIES = 1 << 4,
	/* QUIC connection IDs name servers. */
	SERVICE_QUIC = 1 << 5,
	/* Packets are sampled for a capture. */
	SERVICE_CAPTURED = 1 << 6,
	/* Each decision is an event: config.event_level is at least EVENT_DEBUG. */
	SERVICE_REPORTED = 1 << 7,
	/* A client gets the server of its slot or none: other slots are not tried. */
	SERVICE_ONE_SLOT = 1 << 8,
	/* Any of these flags needs work before a packet is forwarded. */
	SERVICE_DEFENDED = SERVICE_LISTS | SERVICE_RATE | SERVICE_SYN_COOKIES,
};

struct service {
	/* Identity; 0 if the slot is free. */
	__u32 id;
	__u32 flags;
	/* Slot in tables. */
	__u32 pool;
	__u32 idle_seconds;
	__u8 forward;
	__u8 next_hop;
	__u8 choose_by;
	/* Length of server IDs in QUIC connection IDs, in bytes. */
	__u8 quic_id_length;
	/* Destination port of GUE. */
	__u16 tunnel_port;
	__u16 reserved;
	/* Source addresses of tunnels. */
	__u32 tunnel_source_v4;
	__u32 tunnel_source_v6[4];
	/* Hash of the name of its pool. An association with a server of another group ends, because it is stale. */
	__u32 group;
	__u32 reserved_words[4];
};

/* Limits of a service, beside it because few packets need them. */
struct defence {
	/* Token bucket of a source prefix: time of one packet and of the whole bucket. */
	__u64 packet_ns;
	__u64 burst_ns;
	/* SYN cookies begin when SYNs arrive at shorter intervals, per CPU. */
	__u64 syn_ns;
	__u64 syn_burst_ns;
	__u8 prefix_v4;
	__u8 prefix_v6;
	/* 1: a client that no prefix matches is denied. */
	__u8 default_denied;
	__u8 reserved[5];
};

struct vip {
	__u32 service;
	/* 4 or 6. */
	__u32 family;
	__u32 address[4];
};

/* ---- servers ---- */

enum server_takes {
	/* Nothing: flows go to another server with their next packet. */
	TAKES_NONE = 0,
	/* Known flows. */
	TAKES_KNOWN = 1,
	/* New and known flows. */
	TAKES_NEW = 2,
};

struct server {
	/* Identity; 0 if the slot is free. An identity is never given to another server. */
	__u32 id;
	__u8 takes;
	/* 4 or 6. */
	__u8 family;
	/* 0: the port of the client's packet. */
	__u16 port;
	__u32 address[4];
	/* Next hop; ifindex 0 if it is unknown. */
	__u32 ifindex;
	__u32 mtu;
	__u8 destination_mac[6];
	__u8 source_mac[6];
	/* Hash of the name of its pool, as in struct service. */
	__u32 group;
	__u32 reserved[4];
};

/* A server that sends from an address and port, for one virtual address of one service. */
struct returns {
	__u32 service;
	__u32 vip;
	__u32 server;
	/* Next position for the same address and port; 0 at the end. */
	__u32 next;
	/* Port of the virtual address; 0: the port of the server's packet. */
	__u16 port;
	__u16 reserved;
};

/* A part of a table of choices. The first slot of block 0 is the number of slots; slot n is at n + 1. */
struct block {
	__u32 slots[BLOCK_SLOTS];
};

/* ---- associations ---- */

struct flow_key_v4 {
	__u32 address;
	/* 0 with SERVICE_BY_ADDRESS. */
	__u16 port;
	__u16 vip;
};

struct flow_key_v6 {
	__u32 address[4];
	__u16 port;
	__u16 vip;
};

/*
 * Bits of the first word of an association: slot of the server below, generation above. The generation of a server is
 * the lower bits of its identity.
 */
#define FLOW_SLOT_BITS 14
/* Bits of the second word: next hop of the client below, time of the last packet above. */
#define FLOW_HOP_BITS 10

/* Small, because the kernel puts it into an element of 64 bytes with IPv4: one cache line. */
struct flow {
	__u32 server;
	/*
	 * The next hop is known with NEXT_HOP_ROUTE only. The time is the coarse boot time in units of 2^30 ns; it is kept
	 * with SERVICE_IDLE only.
	 */
	__u32 hop_and_used;
};

/* Next hop of clients. */
struct hop {
	/* 0 if there is none. */
	__u32 ifindex;
	__u8 mac[6];
	/* Address of the interface that the packets of clients came to. */
	__u8 local_mac[6];
};

struct fragment_key {
	__u32 source[4];
	__u32 destination[4];
	__u32 id;
	__u8 protocol;
	__u8 family;
	__u16 reserved;
};

/* Treatment of the first fragment, repeated for the others. */
struct fragment {
	__u32 service;
	__u32 vip;
	__u32 server;
	__u32 server_id;
	/* 1: from a client, 0: from a server. */
	__u8 inbound;
	__u8 reserved[3];
	/* From a server: next hop of the client. */
	__u32 hop;
};

/* ---- defence ---- */

/*
 * Keys of longest-prefix matches; prefix counts the bits of service, too. Service 0 has the list of dark addresses, in
 * which PREFIX_ADMITTED means that the address is dark.
 */
struct prefix_key_v4 {
	__u32 prefix;
	__u32 service;
	__u32 address;
};

struct prefix_key {
	__u32 prefix;
	__u32 service;
	__u32 address[4];
};

enum prefix_verdict {
	PREFIX_ADMITTED = 0,
	PREFIX_DENIED = 1,
};

struct source_key {
	__u32 service;
	__u32 address[4];
};

/* A TCP connection attempt whose client answered the challenge. */
struct attempt_key {
	__u32 service;
	__u32 vip;
	__u32 address[4];
	__u16 port;
	__u16 vip_port;
};

struct attempt {
	/* Until then, SYNs of the attempt pass (bpf_ktime_get_ns). */
	__u64 until_ns;
	/* Their sequence numbers are at most 65535 after this one. */
	__u32 sequence;
	__u32 reserved;
};

/* SYNs of a service on one CPU. */
struct syn_meter {
	/* The bucket of SYNs is full until then. */
	__u64 full_until_ns;
	/* Unknown segments other than SYNs are dropped until then. */
	__u64 strict_until_ns;
};

/* Address of an interface with a tarpit. */
struct tarpit {
	__u8 mac[6];
	__u16 reserved;
};

struct quic_key {
	__u32 service;
	__u8 length;
	__u8 id[15];
};

struct slot_and_id {
	__u32 server;
	__u32 server_id;
};

/* ---- what is counted ---- */

struct server_counters {
	__u64 packets_in;
	__u64 bytes_in;
	__u64 packets_out;
	__u64 bytes_out;
	/* Associations made. */
	__u64 flows;
	__u64 reserved[3];
};

/* Reasons; each has a counter per service. Slot 0 of services counts where no service is known. */
enum reason {
	/* Dropped. */
	REASON_MALFORMED = 0,
	REASON_TTL_EXCEEDED,
	REASON_NO_SERVER,
	REASON_REFUSED_EGRESS,
	REASON_NO_NEXT_HOP,
	REASON_TOO_BIG,
	REASON_DENIED,
	REASON_LIMITED,
	REASON_SYN_CHALLENGED,
	REASON_SYN_INVALID,
	REASON_ICMP_UNKNOWN,
	REASON_INTERNAL,
	/* Passed to the kernel. */
	REASON_FRAGMENT_UNKNOWN,
	REASON_UNSUPPORTED,
	/* Forwarded; worth counting. */
	REASON_FLOW_NEW,
	REASON_FLOW_MOVED,
	REASON_FLOW_EXPIRED,
	REASON_FLOW_BY_SERVER,
	/* The association could not be stored. The packet was forwarded by the choice alone. */
	REASON_FLOW_NOT_STORED,
	REASON_SECOND_CHANCE,
	REASON_ICMP_TRANSLATED,
	REASON_FRAGMENT,
	REASON_QUIC_ROUTED,
	REASON_QUIC_UNKNOWN,
	REASON_SYN_VALIDATED,
	/* A response was sent. */
	REASON_RESPONDED_TTL,
	REASON_RESPONDED_TOO_BIG,
	/* ARP requests and IPv6 neighbour solicitations. */
	REASON_TARPIT_ARP,
	REASON_TARPIT_SYN,
	REASON_TARPIT_SEGMENT,
	/* Events that the ring had no room for, or that the rate limit left out. */
	REASON_EVENT_LOST,
	REASONS,
};

#define REASONS_MAX 40
/* The last reason is noted there, for captures. */
#define LAST_REASON 39

struct service_counters {
	__u64 reasons[REASONS_MAX];
};

/* ---- events ---- */

/* Levels as in sbulb; an event is reported if its level is at most the configured one. */
enum event_level {
	EVENT_CRITICAL = 0,
	EVENT_ERROR = 1,
	EVENT_WARNING = 2,
	EVENT_INFO = 3,
	EVENT_DEBUG = 4,
	EVENT_TRACE = 5,
};

enum event_kind {
	EVENT_FLOW_NEW = 0,
	EVENT_FLOW_REUSED,
	EVENT_FLOW_MOVED,
	EVENT_FLOW_BY_SERVER,
	EVENT_EGRESS,
	EVENT_DROPPED,
	EVENT_PASSED,
	EVENT_SAMPLE,
};

struct event {
	__u64 time_ns;
	__u32 service;
	__u32 server;
	/* enum event_kind, enum reason, enum event_level, IPPROTO_*. */
	__u8 kind;
	__u8 reason;
	__u8 level;
	__u8 protocol;
	/* 4, 6, or 0 if the packet is not IP. */
	__u8 family;
	__u8 reserved[3];
	__u16 source_port;
	__u16 destination_port;
	__u16 new_source_port;
	__u16 new_destination_port;
	__u32 source[4];
	__u32 destination[4];
	/* Addresses after rewriting; equal to the old ones if they stay. */
	__u32 new_source[4];
	__u32 new_destination[4];
};

/* Events of a CPU in one second. */
struct event_budget {
	__u64 second;
	__u64 events;
};

/* ---- captures ---- */

/* Bytes of a captured packet at most. */
#define CAPTURE_BYTES 2048

enum capture_stage {
	/* As the packet arrived. */
	CAPTURE_BEFORE = 0,
	/* As the packet leaves. */
	CAPTURE_AFTER = 1,
};

/* The current capture; there is one at most. */
struct capture {
	/* Time of bpf_ktime_get_ns at which the capture ends, whether or not its process is alive. */
	__u64 until_ns;
	/* Slot of the service, which also has SERVICE_CAPTURED. */
	__u32 service;
	/* One packet in so many is captured. */
	__u32 every;
	/* Bytes of each packet that are stored. */
	__u32 bytes;
	/* The process that reads the packets. */
	__u32 process;
	__u32 reserved[2];
};

/* A captured packet; CAPTURE_BYTES follow. */
struct captured {
	__u64 time_ns;
	__u32 service;
	/* Both stages of a packet have the same number, which is never 0. */
	__u32 number;
	/* Length of the packet. 0 after the decision: the packet was dropped. */
	__u32 length;
	/* Bytes that are stored. */
	__u32 stored;
	/* enum capture_stage, and after the decision enum reason (REASONS: none) and the action. */
	__u8 stage;
	__u8 reason;
	__u8 action;
	__u8 reserved;
	__u32 reserved_word;
};

/* ---- settings of the whole program ---- */

enum config_flags {
	/* Requests to dark addresses get responses. */
	CONFIG_TARPIT = 1 << 0,
};

struct config {
	__u32 version;
	__u32 flags;
	/* enum event_level. */
	__u32 event_level;
	/* Events per CPU and second at most. */
	__u32 events_per_second;
	/* One packet in so many is captured. */
	__u32 sample_every;
	/* Bytes of a captured packet at most. */
	__u32 sample_length;
	__u8 reserved[8];
	/* Key of hashes that outsiders should not predict. */
	__u64 key;
};

/* ---- the loader's own ---- */

/*
 * Hash of the names of the thing in a slot, by which another process finds the slots of servers, services, virtual
 * addresses and pools, in this order; the program does not read them. Entry 0 has the next id of a thing.
 */
struct identity {
	__u64 words[2];
};

/* SERVERS_MAX + SERVICES_MAX + VIPS_MAX + POOLS_MAX */
#define IDENTITIES_MAX 32768

#endif
