/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Fragments: the first one has the ports, the others follow it. */
#ifndef EVENER_FRAGMENT_H
#define EVENER_FRAGMENT_H

#include "checksum.h"
#include "forward.h"
#include "packet.h"

static always_inline void fragment_key(const struct packet *packet, int family, struct fragment_key *key)
{
	*key = (struct fragment_key){ .id = packet->fragment_id, .protocol = packet->protocol, .family = family };
	copy_address(family, key->source, source_of(packet, family));
	copy_address(family, key->destination, destination_of(packet, family));
}

/* Keeps the treatment of the first fragment for the others. */
static never_inline void store_fragment(const struct fragment_key *key, const struct fragment *fragment)
{
	bpf_map_update_elem(&fragments, key, fragment, BPF_ANY);
}

static always_inline void remember_fragment(const struct packet *packet, int family, __u32 service, __u32 vip, __u32 slot,
					    const struct flow *flow)
{
	struct fragment fragment = { .service = service, .vip = vip, .server = slot, .inbound = !flow };
	struct server *server = server_at(slot);
	struct fragment_key key;

	if (server)
		fragment.server_id = server->id;
	fragment_key(packet, family, &key);
	store_fragment(&key, &fragment);
}

#endif
