/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Associations of clients with servers. */
#ifndef EVENER_FLOWS_H
#define EVENER_FLOWS_H

#include "maps.h"
#include "parse.h"

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

static always_inline long store_flow(int family, const union flow_key *key, const struct flow *flow)
{
	if (family == 4)
		return bpf_map_update_elem(&flows_v4, &key->v4, flow, BPF_ANY);
	return bpf_map_update_elem(&flows_v6, &key->v6, flow, BPF_ANY);
}

#endif
