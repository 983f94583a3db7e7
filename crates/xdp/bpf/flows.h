/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Associations of clients with servers. */
#ifndef EVENER_FLOWS_H
#define EVENER_FLOWS_H

#include "choose.h"
#include "lookup.h"
#include "packet.h"

union flow_key {
	struct flow_key_v4 v4;
	struct flow_key_v6 v6;
};

static always_inline void flow_key(union flow_key *key, int family, const void *address, __u16 port, __u16 vip)
{
	if (family == 4) {
		key->v4.address = *(const __u32 *)address;
		key->v4.port = port;
		key->v4.vip = vip;
	} else {
		__builtin_memcpy(key->v6.address, address, sizeof(key->v6.address));
		key->v6.port = port;
		key->v6.vip = vip;
	}
}

static always_inline struct flow *flow_of(int family, const union flow_key *key)
{
	if (family == 4)
		return bpf_map_lookup_elem(&flows_v4, &key->v4);
	return bpf_map_lookup_elem(&flows_v6, &key->v6);
}

static always_inline long store_flow(int family, const union flow_key *key, const struct flow *flow, __u64 flags)
{
	if (family == 4)
		return bpf_map_update_elem(&flows_v4, &key->v4, flow, flags);
	return bpf_map_update_elem(&flows_v6, &key->v6, flow, flags);
}

static always_inline __u64 hash_of_key(int family, const union flow_key *key)
{
	return family == 4 ? hash_client_v4(key->v4.address) : hash_client_v6(key->v6.address);
}

/* What an association says about a packet of a server. */
enum egress {
	EGRESS_KNOWN = 0,
	/* There is no association, or one with a server that is not available any more. */
	EGRESS_NEW,
	EGRESS_REFUSED,
};

static always_inline enum egress judge_egress(const struct flow *flow, __u32 slot)
{
	struct server *server, *sender;

	if (unlikely(!flow))
		return EGRESS_NEW;
	server = server_of_flow(flow);
	if (unlikely(!server))
		return EGRESS_NEW;
	if (likely(slot_of_flow(flow) == slot))
		return EGRESS_KNOWN;
	sender = server_at(slot);
	return server->takes >= TAKES_KNOWN && sender && sender->group == server->group ? EGRESS_REFUSED : EGRESS_NEW;
}

/*
 * Finds the service and virtual address that a packet of a shared server belongs to, among the returns from a position on:
 * the first with an association of this client and server, else the first that may have one. The key needs only the
 * client's address and port. Returns a position, or 0 if the client has other servers everywhere.
 */
static never_inline __u32 search_returns(int family, union flow_key *key, __u32 position)
{
	__u16 port = family == 4 ? key->v4.port : key->v6.port;
	__u32 first_new = 0;

	for (int i = 0; i < SHARED_MAX && position; i++) {
		struct returns *returns = returns_at(position);
		struct service *service = returns ? service_at(returns->service) : NULL;
		enum egress egress;

		if (!service)
			break;
		if (family == 4) {
			key->v4.port = service->flags & SERVICE_BY_ADDRESS ? 0 : port;
			key->v4.vip = returns->vip;
		} else {
			key->v6.port = service->flags & SERVICE_BY_ADDRESS ? 0 : port;
			key->v6.vip = returns->vip;
		}
		egress = judge_egress(flow_of(family, key), returns->server);
		if (egress == EGRESS_KNOWN)
			return position;
		if (egress == EGRESS_NEW && !first_new)
			first_new = position;
		position = returns->next;
	}
	return first_new;
}

#endif
