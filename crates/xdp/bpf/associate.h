/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Choice of a server for a client without an association, and the association's making. */
#ifndef EVENER_ASSOCIATE_H
#define EVENER_ASSOCIATE_H

#include "choose.h"
#include "flows.h"
#include "forward.h"
#include "lookup.h"

/* Length of idle times' unit as a power of two of nanoseconds. */
#define USED_SHIFT 30

/* What is known about an association to be made. */
enum fact {
	FACT_IPV4 = 1 << 0,
	/* The association's server is not available. */
	FACT_MOVED = 1 << 1,
	/* The association was idle for too long. */
	FACT_EXPIRED = 1 << 2,
	/* The server sent the first packet. */
	FACT_BY_SERVER = 1 << 3,
	/* The time of the last packet is kept. */
	FACT_IDLE = 1 << 4,
	/* The client has no association, unless another CPU makes it at the same time. */
	FACT_NONE = 1 << 5,
	/* The next hop of the client is kept. */
	FACT_ROUTE = 1 << 6,
};

/* From this bit on: the slot of the server. */
#define FACT_SLOT_SHIFT 16

/* A slot of a table of choices, counted from 0; slot -1 is the number of slots. Returns 0 if there is none. */
static always_inline __u32 slot_of_table(void *table, __u32 slot)
{
	__u32 position = (slot + 1) / BLOCK_SLOTS;
	struct block *block = bpf_map_lookup_elem(table, &position);

	return block ? block->slots[(slot + 1) % BLOCK_SLOTS] : 0;
}

static always_inline int server_takes(__u32 position, __u8 takes)
{
	struct server *server = server_at(position);

	return server && server->id && server->takes >= takes;
}

#include "probe.h"

/* The next turn of a pool on this CPU. The CPUs begin with different slots, so that few clients are spread, too. */
static always_inline __u64 next_turn(__u32 pool)
{
	__u64 *turn = bpf_map_lookup_elem(&turns, &pool);

	return (turn ? (*turn)++ : 0) + bpf_get_smp_processor_id();
}

/* Server that the table before the last change has for the client, if it still takes known flows. */
static always_inline __u32 second_chance(__u32 pool, __u64 client)
{
	void *table = bpf_map_lookup_elem(&tables_before, &pool);
	__u32 slots = table ? slot_of_table(table, -1) : 0;
	__u32 position;

	if (!slots)
		return 0;
	position = slot_of_table(table, slot_of_client(client, 0, slots));
	return server_takes(position, TAKES_KNOWN) ? position : 0;
}

/*
 * Chooses a server for a new client of a service. A packet in mid-flow without an association belonged to one that was
 * evicted, or that another balancer had: the table before the last change then names its server, with tables by client.
 * Returns the slot of the server, or 0.
 */
never_inline __u32 choose_server(__u32 service_slot, __u64 client, __u32 mid_flow)
{
	struct service *service = service_at(service_slot);
	__u32 pool, slots, chosen;
	void *table;

	if (!service)
		return 0;
	pool = service->pool;
	table = bpf_map_lookup_elem(&tables, &pool);
	if (!table)
		return 0;
	slots = slot_of_table(table, -1);
	if (!slots)
		return 0;
	if (service->choose_by != CHOOSE_BY_CLIENT)
		return choose_from(table, slots, next_turn(pool), CHOOSE_BY_TURN, PROBES_MAX);
	chosen = choose_from(table, slots, client, CHOOSE_BY_CLIENT,
			     service->flags & SERVICE_ONE_SLOT ? 1 : PROBES_MAX);
	if (mid_flow) {
		__u32 before = second_chance(pool, client);

		if (before && before != chosen) {
			count(service_slot, REASON_SECOND_CHANCE);
			return before;
		}
	}
	return chosen;
}

/* The time now, as associations keep it: at the place of its bits. */
static always_inline __u32 now_used(void)
{
	return (__u32)(bpf_ktime_get_coarse_ns() >> USED_SHIFT) << FLOW_HOP_BITS;
}

/* The time of the last packet, at the place of its bits. */
static always_inline __u32 used_of(const struct flow *flow)
{
	return flow->hop_and_used & ~(HOPS_MAX - 1);
}

/* Notes that an association is used now. */
static always_inline void use_flow(struct flow *flow)
{
	__u32 now = now_used();

	if (used_of(flow) != now)
		flow->hop_and_used = hop_of_flow(flow) | now;
}

/*
 * Associations that are older than the idle time of their service have no time yet. The difference of two times is right
 * up to 2^22 units, which are 52 days.
 */
static always_inline int is_idle(const struct flow *flow, const struct service *service)
{
	__u64 unused = (now_used() - used_of(flow)) >> FLOW_HOP_BITS;

	return used_of(flow) && unused << USED_SHIFT > (__u64)service->idle_seconds * 1000000000ULL;
}

/* Reason for which an association is made. */
static always_inline __u32 reason_of(__u32 facts)
{
	if (facts & FACT_BY_SERVER)
		return REASON_FLOW_BY_SERVER;
	if (facts & FACT_EXPIRED)
		return REASON_FLOW_EXPIRED;
	return facts & FACT_MOVED ? REASON_FLOW_MOVED : REASON_FLOW_NEW;
}

/* Hash of a client, for services that choose by it. */
static always_inline __u64 client_of(int family, const union flow_key *key, const struct service *service)
{
	return service->choose_by == CHOOSE_BY_CLIENT ? hash_of_key(family, key) : 0;
}

#endif
