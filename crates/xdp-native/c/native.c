// SPDX-License-Identifier: MIT OR Apache-2.0
/* The header-only parts of the XDP program as functions of this machine. */
#include "hash.h"

#include "checksum.h"
#include "choose.h"
#include "contract.h"
#include "parse.h"
#include "quic.h"

/* A table of choices as the loader writes it, and what the servers take, by position. */
struct choices {
	const struct block *blocks;
	const __u8 *takes;
	__u32 servers;
};

/* The program has one array of servers; so does a thread of a test. */
static _Thread_local const struct choices *choices;

static always_inline __u32 slot_of_table(void *table, __u32 slot)
{
	const struct block *blocks = table;

	return blocks[(slot + 1) / BLOCK_SLOTS].slots[(slot + 1) % BLOCK_SLOTS];
}

static always_inline int server_takes(__u32 position, __u8 takes)
{
	return position && position < choices->servers && choices->takes[position] >= takes;
}

#include "probe.h"

__u32 evener_choose(const struct choices *from, __u64 number, __u8 by, __u32 probes)
{
	void *table = (void *)from->blocks;
	__u32 slots = slot_of_table(table, -1);

	choices = from;
	return slots ? choose_from(table, slots, number, by, probes) : 0;
}

int evener_parse(const void *data, const void *end, struct layers *layers)
{
	return parse_packet(data, end, layers);
}

/* A packet inside an ICMP error, which begins with an IP header. */
int evener_parse_inner(const void *data, const void *end, int family, struct layers *layers)
{
	return family == 4 ? parse_ipv4(data, end, layers) : parse_ipv6(data, end, layers);
}

__u64 evener_hash_client_v4(__u32 address)
{
	return hash_client_v4(address);
}

__u64 evener_hash_client_v6(const __u32 *address)
{
	return hash_client_v6(address);
}

__u32 evener_slot_of_client(__u64 client, __u32 probe, __u32 slots)
{
	return slot_of_client(client, probe, slots);
}

__u32 evener_slot_in_turn(__u64 turn, __u32 probe, __u32 slots)
{
	return slot_in_turn(turn, probe, slots);
}

__u64 evener_hash_endpoint_v4(__u64 key)
{
	return hash_endpoint_v4(key);
}

__u64 evener_hash_endpoint_v6(__u64 high, __u64 low, __u32 port_protocol_kind)
{
	return hash_endpoint_v6(high, low, port_protocol_kind);
}

__u64 evener_difference16(__u16 before, __u16 after)
{
	return difference16(before, after);
}

__u64 evener_difference32(__u32 before, __u32 after)
{
	return difference32(before, after);
}

__u16 evener_checksum_after(__u16 check, __u64 difference)
{
	return checksum_after(check, difference);
}

__u16 evener_udp_checksum_after(__u16 check, __u64 difference)
{
	return udp_checksum_after(check, difference);
}

int evener_quic_read_id(const void *payload, const void *end, __u32 length, __u8 *id)
{
	return quic_read_id(payload, end, length, id);
}
