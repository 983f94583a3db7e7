/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The maps. All are pinned by the loader under their names, so that they outlive it. */
#ifndef EVENER_MAPS_H
#define EVENER_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"

/*
 * Endpoints are looked up for every packet, so they are not in a hash map of the kernel but in arrays, whose look-up is
 * inlined. The loader maps them into memory and writes entries in place (see hash.h for the two buckets of a key).
 */
#define TABLE(name_, type_, flags_, key_, value_, entries_)	\
	struct {						\
		__uint(type, type_);				\
		__uint(map_flags, flags_);			\
		__uint(max_entries, entries_);			\
		__type(key, key_);				\
		__type(value, value_);				\
	} name_ SEC(".maps")

#define ARRAY(name_, value_, entries_) TABLE(name_, BPF_MAP_TYPE_ARRAY, 0, __u32, value_, entries_)
#define SHARED_ARRAY(name_, value_, entries_) \
	TABLE(name_, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE, __u32, value_, entries_)
#define CPU_ARRAY(name_, value_, entries_) TABLE(name_, BPF_MAP_TYPE_PERCPU_ARRAY, 0, __u32, value_, entries_)
#define LRU(name_, key_, value_, entries_) TABLE(name_, BPF_MAP_TYPE_LRU_HASH, 0, key_, value_, entries_)

ARRAY(settings, struct config, 1);
SHARED_ARRAY(endpoints_v4, struct bucket_v4, BUCKETS_V4);
SHARED_ARRAY(endpoints_v6, struct bucket_v6, BUCKETS_V6);
ARRAY(services, struct service, SERVICES_MAX);
ARRAY(defences, struct defence, SERVICES_MAX);
ARRAY(vips, struct vip, VIPS_MAX);
ARRAY(servers, struct server, SERVERS_MAX);
ARRAY(returning, struct returns, RETURNS_MAX);

/*
 * Tables of choices by pool: blocks of slots. The number of blocks differs from table to table. (With __type, clang would
 * describe struct block by a forward declaration only, which the loader cannot read.)
 */
#define CHOICES(name_)						\
	struct {						\
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);	\
		__uint(max_entries, POOLS_MAX);			\
		__type(key, __u32);				\
		__array(values, struct {			\
			__uint(type, BPF_MAP_TYPE_ARRAY);	\
			__uint(map_flags, BPF_F_INNER_MAP);	\
			__uint(max_entries, 1);			\
			__uint(key_size, sizeof(__u32));		\
			__uint(value_size, sizeof(struct block));	\
		});						\
	} name_ SEC(".maps")

CHOICES(tables);
/* The tables before the last change, for packets in mid-flow without an association. */
CHOICES(tables_before);

SHARED_ARRAY(identities, struct identity, IDENTITIES_MAX);

CPU_ARRAY(turns, __u64, POOLS_MAX);

/* The loader sets the number of entries. */
LRU(flows_v4, struct flow_key_v4, struct flow, 1024);
LRU(flows_v6, struct flow_key_v6, struct flow, 1024);
/* Next hops of clients by number, the number of each, and how many numbers are taken. */
ARRAY(hops, struct hop, HOPS_MAX);
TABLE(hop_numbers, BPF_MAP_TYPE_HASH, 0, struct hop, __u32, HOPS_MAX);
ARRAY(hops_taken, __u32, 1);
LRU(fragments, struct fragment_key, struct fragment, 8192);

/* Prefix lists of services, and dark addresses. */
TABLE(prefixes_v4, BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, struct prefix_key_v4, __u32, PREFIXES_MAX);
TABLE(prefixes_v6, BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, struct prefix_key, __u32, PREFIXES_MAX);
/* Token buckets of source prefixes, and one for each service that serves prefixes without a bucket. */
LRU(sources, struct source_key, __u64, SOURCES_MAX);
ARRAY(sources_without, __u64, SERVICES_MAX);
LRU(attempts, struct attempt_key, struct attempt, ATTEMPTS_MAX);
CPU_ARRAY(syn_meters, struct syn_meter, SERVICES_MAX);
/* By index of the interface. */
TABLE(tarpits, BPF_MAP_TYPE_HASH, 0, __u32, struct tarpit, TARPITS_MAX);
/* Servers by the server IDs in connection IDs of QUIC. */
TABLE(quic_servers, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, struct quic_key, struct slot_and_id, SERVERS_MAX);
/* Time from which the next ICMP error may be sent. */
CPU_ARRAY(respond_limit, __u64, 1);

CPU_ARRAY(server_counts, struct server_counters, SERVERS_MAX);
CPU_ARRAY(service_counts, struct service_counters, SERVICES_MAX);
CPU_ARRAY(event_budgets, struct event_budget, 1);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

ARRAY(capturing, struct capture, 1);
/* Packets of the captured service, and number of the last captured one. */
CPU_ARRAY(capture_turns, __u64, 2);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 21);
} captures SEC(".maps");

#endif
