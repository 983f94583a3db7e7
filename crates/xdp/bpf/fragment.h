/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Fragments: the first one has the ports, and the others get its treatment. */
#ifndef EVENER_FRAGMENT_H
#define EVENER_FRAGMENT_H

#include "flows.h"
#include "forward.h"
#include "packet.h"
#include "report.h"
#include "tunnel.h"

static always_inline void fragment_key(const struct packet *packet, int family, struct fragment_key *key)
{
	struct layers layers;

	unpack(packet->parsed, &layers);
	/* Later fragments of IPv6 have the type of the first extension header instead (RFC 8200, section 4.5). */
	*key = (struct fragment_key){ .id = layers.fragment_id, .family = family };
	if (family == 4)
		key->protocol = packet->protocol;
	copy_address(family, key->source, source_of(packet, family));
	copy_address(family, key->destination, destination_of(packet, family));
}

static always_inline int is_fragmented(const struct packet *packet)
{
	struct layers layers;

	unpack(packet->parsed, &layers);
	return layers.fragmented;
}

/* Flag of an argument of remember(): the packet is from a client. */
#define FRAGMENT_INBOUND (1U << 31)

/* Next hop of the client, for fragments of a server. */
static always_inline void add_hop(struct fragment *fragment, const struct packet *packet, int family)
{
	struct service *service = service_at(fragment->service);
	struct ports *ports = packet->transport;
	union flow_key key;
	struct flow *flow;

	if (!service || packet->transport + sizeof(struct udphdr) > packet->end)
		return;
	flow_key(&key, family, destination_of(packet, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->destination, fragment->vip);
	flow = flow_of(family, &key);
	if (flow)
		fragment->hop = hop_of_flow(flow);
}

static always_inline int remember_fragment(const struct packet *packet, int family, __u32 owner, __u32 slot)
{
	struct fragment fragment = {
		.service = owner & 0xffff,
		.vip = owner >> 16,
		.server = slot & ~FRAGMENT_INBOUND,
		.inbound = !!(slot & FRAGMENT_INBOUND),
	};
	struct server *server = server_at(fragment.server);
	struct fragment_key key;

	if (!server)
		return 0;
	fragment.server_id = server->id;
	if (!fragment.inbound)
		add_hop(&fragment, packet, family);
	fragment_key(packet, family, &key);
	bpf_map_update_elem(&fragments, &key, &fragment, BPF_ANY);
	return count(fragment.service, REASON_FRAGMENT);
}

/*
 * Keeps the treatment of a first fragment for the others. `owner` is the slot of the service, and from bit 16 on of the
 * virtual address.
 */
never_inline int remember_v4(struct xdp_md *context, __u32 network, __u64 parsed, __u32 owner, __u32 slot)
{
	struct packet packet;

	return restore(&packet, context, network, parsed, 4) ? remember_fragment(&packet, 4, owner, slot) : 0;
}

never_inline int remember_v6(struct xdp_md *context, __u32 network, __u64 parsed, __u32 owner, __u32 slot)
{
	struct packet packet;

	return restore(&packet, context, network, parsed, 6) ? remember_fragment(&packet, 6, owner, slot) : 0;
}

static always_inline void remember(const struct packet *packet, int family, __u32 owner, __u32 slot)
{
	if (family == 4)
		remember_v4(packet->context, packet->network, packet->parsed, owner, slot);
	else
		remember_v6(packet->context, packet->network, packet->parsed, owner, slot);
}

static always_inline int fragment_from_client(const struct packet *packet, int family, const struct fragment *fragment,
					      const struct service *service, const struct server *server)
{
	__u64 difference;

	count_in(fragment->server, length_of(packet));
	if (service->forward != FORWARD_NAT)
		return tunnel_forward(packet->context, packet->network, fragment->vip, fragment->server);
	if (unlikely(service->next_hop == NEXT_HOP_ROUTE && exceeds(packet, server->mtu)))
		return reject(packet->context, place_of(packet, family), fragment->service, REASON_TOO_BIG);
	difference = rewrite_address(family, destination_of(packet, family), server->address);
	rewrite_network(packet, family, difference);
	return to_server(packet->context, packet->data, packet->network, fragment->service, service, server);
}

static always_inline int fragment_from_server(const struct packet *packet, int family, const struct fragment *fragment,
					      const struct service *service)
{
	struct vip *vip = vip_at(fragment->vip);
	__u64 difference;

	if (!vip)
		return reject(packet->context, place_of(packet, family), fragment->service, REASON_INTERNAL);
	count_out(fragment->server, length_of(packet));
	if (unlikely(service->next_hop == NEXT_HOP_ROUTE &&
		     exceeds(packet, mtu_towards_client(packet->context, fragment->hop))))
		return reject(packet->context, place_of(packet, family), fragment->service, REASON_TOO_BIG);
	difference = rewrite_address(family, source_of(packet, family), vip->address);
	rewrite_network(packet, family, difference);
	if (service->next_hop == NEXT_HOP_SENDER)
		return back_to_sender(packet->data);
	return to_client(packet->context, packet->data, packet->network, fragment->service, fragment->hop);
}

/* A fragment after the first: it has no ports, and no transport checksum to correct. */
static always_inline int handle_fragment(const struct packet *packet, int family)
{
	__u32 place = place_of(packet, family);
	struct fragment_key key;
	struct fragment *fragment;
	struct service *service;
	struct server *server;

	fragment_key(packet, family, &key);
	fragment = bpf_map_lookup_elem(&fragments, &key);
	if (!fragment)
		return leave(packet->context, place, 0, REASON_FRAGMENT_UNKNOWN);
	service = service_at(fragment->service);
	server = server_at(fragment->server);
	/* A server that takes no packets still sends, as in from_server(). */
	if (!service || !server || server->id != fragment->server_id || (fragment->inbound && server->takes < TAKES_KNOWN))
		return reject(packet->context, place, fragment->service, REASON_NO_SERVER);
	if (hops_of(packet, family) <= 1 && service->forward != FORWARD_DIRECT)
		return reject(packet->context, place, fragment->service, REASON_TTL_EXCEEDED);
	count(fragment->service, REASON_FRAGMENT);
	if (fragment->inbound)
		return fragment_from_client(packet, family, fragment, service, server);
	return fragment_from_server(packet, family, fragment, service);
}

#endif
