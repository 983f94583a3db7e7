/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Packets of clients and of servers: associations and address translation. */
#ifndef EVENER_NAT_H
#define EVENER_NAT_H

#include "associate.h"
#include "forward.h"
#include "fragment.h"
#include "packet.h"
#include "quic_route.h"
#include "respond.h"
#include "tunnel.h"

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

/* Values of a new association. */
static always_inline void begin_flow(struct flow *flow, __u32 slot, const struct server *server)
{
	*flow = (struct flow){ .server = slot, .server_id = server->id, .used = now_used() };
}

/* Chooses a server for a client's packet, and stores the association. Returns the server's slot, or 0. */
static never_inline __u32 associate(struct xdp_md *context, const union flow_key *key, __u32 service, __u32 facts,
				    __u16 vip_port)
{
	void *data = (void *)(long)context->data;
	int family = facts & 0xf;
	__u64 client = family == 4 ? hash_client_v4(key->v4.address) : hash_client_v6(key->v6.address);
	__u32 slot = facts >> FACT_SLOT_SHIFT;
	struct server *server;
	struct flow flow;
	long error;

	if (likely(!slot))
		slot = choose_server(service, client, facts & FACT_MID_FLOW);
	server = server_at(slot);

	if (!slot || !server || data + sizeof(struct ethhdr) > (void *)(long)context->data_end)
		return 0;
	begin_flow(&flow, slot, server);
	if (server->port)
		flow.vip_port = vip_port;
	flow.ifindex = context->ingress_ifindex;
	copy_mac(flow.mac, data + 6);
	copy_mac(flow.local_mac, data);
	error = family == 4 ? store_flow(4, key, &flow) : store_flow(6, key, &flow);
	count_stored(service, slot, error, facts & FACT_EXPIRED ? REASON_FLOW_EXPIRED :
					   facts & FACT_MOVED	? REASON_FLOW_MOVED :
								  REASON_FLOW_NEW);
	return slot;
}

/* Does what few services need for a packet of a known client. Returns 0 if the association has ended. */
static always_inline int touch_flow(const struct packet *packet, const struct service *service, struct flow *flow,
				    const struct server *server)
{
	const struct ports *ports = packet->transport;

	if (unlikely(service->flags & SERVICE_IDLE)) {
		if (is_idle(flow, service))
			return 0;
		if (flow->used != now_used())
			flow->used = now_used();
	}
	if (unlikely(service->next_hop == NEXT_HOP_ROUTE))
		learn_hop(packet->context, packet->data, flow);
	if (unlikely(server->port) && flow->vip_port != ports->destination)
		flow->vip_port = ports->destination;
	return 1;
}

/* A packet for the virtual address and port of a service. */
static always_inline int from_client(const struct packet *packet, int family, int plain, __u32 service_slot, __u32 vip)
{
	struct service *service = service_at(service_slot);
	struct ports *ports = packet->transport;
	__u32 slot = 0, facts = family, bytes = length_of(packet);
	struct server *server = NULL;
	union flow_key key;
	struct flow *flow;
	__u64 difference;

	if (unlikely(!service))
		return drop(0, REASON_INTERNAL);
	/* Direct forwarding is not a hop. */
	if (unlikely(hops_of(packet, family) <= 1 && service->forward != FORWARD_DIRECT))
		return respond_expired(packet->context, packet->network, service_slot, vip);
	flow_key(&key, family, source_of(packet, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->source, vip);
	flow = flow_of(family, &key);
	if (likely(flow)) {
		slot = flow->server;
		server = known_server(slot, flow->server_id);
		if (unlikely(!server)) {
			facts |= FACT_MOVED;
		} else if (unlikely(!touch_flow(packet, service, flow, server))) {
			facts |= FACT_EXPIRED;
			server = NULL;
		}
	}
	if (unlikely(service->flags & SERVICE_QUIC && packet->protocol == IPPROTO_UDP)) {
		__u32 named = quic_server(packet->context, packet->transport - packet->data, service_slot);

		/* The connection ID counts more than the association: another connection of the client may be elsewhere. */
		if (named && (!server || named != slot)) {
			facts |= named << FACT_SLOT_SHIFT | (flow ? FACT_MOVED : 0);
			server = NULL;
		}
	}
	if (unlikely(!server)) {
		if (is_mid_flow(packet) && !flow)
			facts |= FACT_MID_FLOW;
		slot = associate(packet->context, &key, service_slot, facts, ports->destination);
		server = server_at(slot);
		if (!slot || !server)
			return drop(service_slot, REASON_NO_SERVER);
	}
	count_in(slot, bytes);
	if (!plain && packet->fragmented)
		remember_fragment(packet, family, service_slot, vip, slot, NULL);
	if (unlikely(service->forward != FORWARD_NAT))
		return tunnel_forward(packet->context, packet->network, vip, slot);
	difference = rewrite_address(family, destination_of(packet, family), server->address);
	rewrite_transport(packet, difference + rewrite_port(&ports->destination, server->port));
	rewrite_network(packet, family, difference);
	return to_server(packet->context, packet->data, packet->network, service_slot, service, server);
}

/* What an association says about a packet of a server. */
enum egress {
	EGRESS_KNOWN = 0,
	/* There is no association, or one with a server that is not available any more. */
	EGRESS_NEW,
	EGRESS_REFUSED,
};

static always_inline enum egress judge_egress(const struct flow *flow, __u32 server)
{
	if (unlikely(!flow))
		return EGRESS_NEW;
	if (likely(flow->server == server))
		return EGRESS_KNOWN;
	return known_server(flow->server, flow->server_id) ? EGRESS_REFUSED : EGRESS_NEW;
}

/* Makes the association of traffic that a server began. */
static never_inline void associate_by_server(int family, const union flow_key *key, __u32 service, __u32 slot)
{
	struct server *server = server_at(slot);
	struct flow flow;
	long error;

	if (!server)
		return;
	begin_flow(&flow, slot, server);
	error = family == 4 ? store_flow(4, key, &flow) : store_flow(6, key, &flow);
	count_stored(service, slot, error, REASON_FLOW_BY_SERVER);
}

/* A packet from a server's address and port. */
static always_inline int from_server(const struct packet *packet, int family, int plain, __u32 position)
{
	struct ports *ports = packet->transport;
	struct returns *returns = returns_at(position);
	__u32 bytes = length_of(packet);
	struct service *service;
	enum egress egress;
	union flow_key key;
	struct flow *flow;
	struct vip *vip;
	__u64 difference;
	__u16 port;

	if (unlikely(!returns))
		return drop(0, REASON_INTERNAL);
	service = service_at(returns->service);
	vip = vip_at(returns->vip);
	if (unlikely(!service || !vip))
		return drop(0, REASON_INTERNAL);
	if (unlikely(hops_of(packet, family) <= 1))
		return respond_expired(packet->context, packet->network, returns->service, returns->vip);
	flow_key(&key, family, destination_of(packet, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->destination, returns->vip);
	flow = flow_of(family, &key);
	egress = judge_egress(flow, returns->server);
	if (unlikely(egress != EGRESS_KNOWN)) {
		/* A client of QUIC can have connections with several servers. */
		if (egress == EGRESS_REFUSED && !(service->flags & SERVICE_QUIC))
			return drop(returns->service, REASON_REFUSED_EGRESS);
		if (egress == EGRESS_NEW) {
			if (family == 4)
				associate_by_server(4, &key, returns->service, returns->server);
			else
				associate_by_server(6, &key, returns->service, returns->server);
			flow = NULL;
		}
	}
	count_out(returns->server, bytes);
	if (!plain && packet->fragmented)
		remember_fragment(packet, family, returns->service, returns->vip, returns->server, flow);
	port = flow && flow->vip_port ? flow->vip_port : returns->port;
	difference = rewrite_address(family, source_of(packet, family), vip->address);
	rewrite_transport(packet, difference + rewrite_port(&ports->source, port));
	rewrite_network(packet, family, difference);
	if (likely(service->next_hop == NEXT_HOP_SENDER))
		return back_to_sender(packet->data);
	if (!flow || !flow->ifindex)
		return by_route(packet->context, packet->network, returns->service);
	return to_client(packet->context, packet->data, flow);
}

static always_inline int handle(const struct packet *packet, int family, int plain)
{
	struct ports *ports = packet->transport;
	__u64 found;

	found = family == 4 ?
		endpoint_v4(*(__u32 *)destination_of(packet, 4), ports->destination, packet->protocol, ENDPOINT_VIP) :
		endpoint_v6(destination_of(packet, 6), ports->destination, packet->protocol, ENDPOINT_VIP);
	if (found)
		return from_client(packet, family, plain, found, found >> 32);
	found = family == 4 ?
		endpoint_v4(*(__u32 *)source_of(packet, 4), ports->source, packet->protocol, ENDPOINT_REAL) :
		endpoint_v6(source_of(packet, 6), ports->source, packet->protocol, ENDPOINT_REAL);
	if (found)
		return from_server(packet, family, plain, found);
	if (unlikely(hops_of(packet, family) == 0))
		return drop(0, REASON_MALFORMED);
	return XDP_PASS;
}

#endif
