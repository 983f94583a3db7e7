/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Look-ups in the maps that the loader writes. */
#ifndef EVENER_LOOKUP_H
#define EVENER_LOOKUP_H

#include "hash.h"
#include "maps.h"
#include "parse.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys of endpoints are compared as words");

/* Values of an endpoint: a in the low half, b in the high half. 0 if there is no such endpoint. */
static always_inline __u64 endpoint_in_v4(__u32 position, __u64 key)
{
	struct bucket_v4 *bucket = bpf_map_lookup_elem(&endpoints_v4, &position);

	if (!bucket)
		return 0;
#pragma unroll
	for (int i = 0; i < BUCKET_ENTRIES; i++) {
		__u64 *words = (__u64 *)&bucket->entries[i];

		if (words[0] == key)
			return words[1];
	}
	return 0;
}

static always_inline __u64 endpoint_v4(__u32 address, __u16 port, __u8 protocol, __u8 kind)
{
	__u64 key = address | (__u64)port << 32 | (__u64)protocol << 48 | (__u64)kind << 56;
	__u64 hash = hash_endpoint_v4(key);
	__u64 found = endpoint_in_v4(hash & (BUCKETS_V4 - 1), key);

	if (found)
		return found;
	return endpoint_in_v4((hash >> 32) & (BUCKETS_V4 - 1), key);
}

static always_inline __u64 endpoint_in_v6(__u32 position, __u64 high, __u64 low, __u32 rest)
{
	struct bucket_v6 *bucket = bpf_map_lookup_elem(&endpoints_v6, &position);

	if (!bucket)
		return 0;
#pragma unroll
	for (int i = 0; i < BUCKET_ENTRIES; i++) {
		struct endpoint_v6 *entry = &bucket->entries[i];
		__u64 *words = (__u64 *)entry->address;

		if (words[1] == low && words[0] == high && *(__u32 *)&entry->port == rest)
			return entry->a | (__u64)entry->b << 32;
	}
	return 0;
}

static always_inline __u64 endpoint_v6(const void *address, __u16 port, __u8 protocol, __u8 kind)
{
	const __u64 *words = address;
	__u32 rest = port | (__u32)protocol << 16 | (__u32)kind << 24;
	__u64 hash = hash_endpoint_v6(words[0], words[1], rest);
	__u64 found = endpoint_in_v6(hash & (BUCKETS_V6 - 1), words[0], words[1], rest);

	if (found)
		return found;
	return endpoint_in_v6((hash >> 32) & (BUCKETS_V6 - 1), words[0], words[1], rest);
}

static always_inline __u64 endpoint(int family, const void *address, __u16 port, __u8 protocol, __u8 kind)
{
	if (family == 4)
		return endpoint_v4(*(const __u32 *)address, port, protocol, kind);
	return endpoint_v6(address, port, protocol, kind);
}

static always_inline struct service *service_at(__u32 slot)
{
	return bpf_map_lookup_elem(&services, &slot);
}

static always_inline struct server *server_at(__u32 slot)
{
	return bpf_map_lookup_elem(&servers, &slot);
}

static always_inline struct vip *vip_at(__u32 slot)
{
	return bpf_map_lookup_elem(&vips, &slot);
}

static always_inline struct returns *returns_at(__u32 position)
{
	return bpf_map_lookup_elem(&returning, &position);
}

/* The server of a slot if it is still the one with this identity and takes known flows. */
static always_inline struct server *known_server(__u32 slot, __u32 id)
{
	struct server *server = server_at(slot);

	if (unlikely(!server || server->id != id || server->takes < TAKES_KNOWN || !id))
		return NULL;
	return server;
}

/* First word of an association with a server; its bits are described at struct flow. */
static always_inline __u32 flow_server(__u32 slot, const struct server *server)
{
	return slot | server->id << FLOW_SLOT_BITS;
}

/* Slot of the server of an association. */
static always_inline __u32 slot_of_flow(const struct flow *flow)
{
	return flow->server & (SERVERS_MAX - 1);
}

/* The server of an association if its slot still has the same server. */
static always_inline struct server *server_of_flow(const struct flow *flow)
{
	__u32 slot = slot_of_flow(flow);
	struct server *server = server_at(slot);

	if (unlikely(!server || flow_server(slot, server) != flow->server || !server->id))
		return NULL;
	return server;
}

/* The server of an association if it is available to known flows. */
static always_inline struct server *known_server_of_flow(const struct flow *flow)
{
	struct server *server = server_of_flow(flow);

	return likely(server && server->takes >= TAKES_KNOWN) ? server : NULL;
}

/*
 * Functions that are not static are verified apart, once.
 *
 * Counters are per CPU, and a program is not interrupted by itself: no atomic additions.
 */
static always_inline void count_deep(__u32 service, __u32 reason)
{
	struct service_counters *counters = bpf_map_lookup_elem(&service_counts, &service);

	if (counters && reason < LAST_REASON) {
		counters->reasons[reason]++;
		counters->reasons[LAST_REASON] = reason;
	}
}

never_inline int count(__u32 service, __u32 reason)
{
	count_deep(service, reason);
	return 0;
}

static always_inline int drop(__u32 service, __u32 reason)
{
	count(service, reason);
	return XDP_DROP;
}

static always_inline int pass(__u32 service, __u32 reason)
{
	count(service, reason);
	return XDP_PASS;
}

static always_inline void count_in(__u32 server, __u32 bytes)
{
	struct server_counters *counters = bpf_map_lookup_elem(&server_counts, &server);

	if (counters) {
		counters->packets_in++;
		counters->bytes_in += bytes;
	}
}

static always_inline void count_out(__u32 server, __u32 bytes)
{
	struct server_counters *counters = bpf_map_lookup_elem(&server_counts, &server);

	if (counters) {
		counters->packets_out++;
		counters->bytes_out += bytes;
	}
}

static always_inline void count_flow(__u32 server)
{
	struct server_counters *counters = bpf_map_lookup_elem(&server_counts, &server);

	if (counters)
		counters->flows++;
}

#endif
