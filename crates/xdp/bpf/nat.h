/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Packets of clients and of servers: associations and address translation. */
#ifndef EVENER_NAT_H
#define EVENER_NAT_H

#include <linux/errno.h>

#include "associate.h"
#include "capture.h"
#include "defend.h"
#include "flows.h"
#include "forward.h"
#include "fragment.h"
#include "packet.h"
#include "quic_route.h"
#include "report.h"
#include "respond.h"
#include "tarpit.h"
#include "tunnel.h"

/*
 * Stores the association of a client with the server in a slot. Returns the slot of the client's server: another one if
 * another CPU made the association first, of another packet of the client.
 */
static never_inline __u32 associate(struct xdp_md *context, const union flow_key *key, __u32 service, __u32 facts)
{
	__u32 slot = facts >> FACT_SLOT_SHIFT;
	struct server *server = server_at(slot);
	struct flow flow = {}, *other;
	__u64 flags = facts & FACT_NONE ? BPF_NOEXIST : BPF_ANY;
	long error;

	if (!server)
		return slot;
	flow.server = flow_server(slot, server);
	if (facts & FACT_IDLE)
		flow.hop_and_used = now_used();
	if (facts & FACT_ROUTE)
		flow.hop_and_used |= learn_hop(context);
	error = facts & FACT_IPV4 ? store_flow(4, key, &flow, flags) : store_flow(6, key, &flow, flags);
	if (error == -EEXIST) {
		other = facts & FACT_IPV4 ? flow_of(4, key) : flow_of(6, key);
		return other && known_server_of_flow(other) ? slot_of_flow(other) : slot;
	}
	count(service, error ? REASON_FLOW_NOT_STORED : reason_of(facts));
	if (!error)
		count_flow(slot);
	return slot;
}

/* Does what few services need for a packet of a known client. Returns 0 if the association has ended. */
static always_inline int touch_flow(const struct packet *packet, const struct service *service, struct flow *flow)
{
	if (unlikely(service->flags & SERVICE_IDLE)) {
		if (is_idle(flow, service))
			return 0;
		use_flow(flow);
	}
	if (unlikely(service->next_hop == NEXT_HOP_ROUTE))
		follow_hop(packet->context, packet->data, flow);
	return 1;
}

/* Reports the decision about a client's packet. */
static always_inline void report_client(const struct packet *packet, int family, __u32 service, __u32 vip, __u32 server,
					__u32 facts, int had_flow)
{
	__u32 kind = facts & FACT_MOVED ? EVENT_FLOW_MOVED :
		     !had_flow || facts & FACT_EXPIRED ? EVENT_FLOW_NEW : EVENT_FLOW_REUSED;

	report(packet->context, place_of(packet, family), REPORT(kind, REASONS, EVENT_DEBUG), service | vip << 16, server);
}

/* A packet that may not go another hop: its sender gets a response. With a time to live of 0 it should not be here. */
static always_inline int end_of_life(const struct packet *packet, int family, __u32 service, __u32 vip)
{
	if (hops_of(packet, family) == 0)
		return reject(packet->context, place_of(packet, family), service, REASON_MALFORMED);
	return respond_expired(packet->context, place_of(packet, family), service | vip << 16);
}

/*
 * True if a source is a virtual address and port. Only a forged packet has such a source: its response would be a request
 * again, and one packet could keep servers busy without an end.
 */
static never_inline int is_vip(int family, const union flow_key *key, __u16 port, __u8 protocol)
{
	__u64 address[2];

	if (family == 4)
		return endpoint_v4(key->v4.address, port, protocol, ENDPOINT_VIP) != 0;
	__builtin_memcpy(address, key->v6.address, sizeof(address));
	return endpoint_v6(address, port, protocol, ENDPOINT_VIP) != 0;
}

/* A packet for the virtual address and port of a service. */
static always_inline int from_client(const struct packet *packet, int family, int plain, __u32 service_slot, __u32 vip,
				    __u32 *captured)
{
	struct service *service = service_at(service_slot);
	struct ports *ports = packet->transport;
	__u32 slot = 0, facts = family == 4 ? FACT_IPV4 : 0, bytes = length_of(packet);
	struct server *server = NULL;
	union flow_key key;
	struct flow *flow;
	__u64 difference;

	if (unlikely(!service))
		return reject(packet->context, place_of(packet, family), 0, REASON_INTERNAL);
	/* Direct forwarding is not a hop. */
	if (unlikely(hops_of(packet, family) <= 1 && service->forward != FORWARD_DIRECT))
		return end_of_life(packet, family, service_slot, vip);
	if (unlikely(service->flags & (SERVICE_CAPTURED | SERVICE_DEFENDED))) {
		__u32 place = place_of(packet, family);
		__u32 reason = ADMITTED;

		if (service->flags & SERVICE_CAPTURED)
			*captured = capture_before(packet->context, service_slot);
		if (service->flags & SERVICE_DEFENDED)
			reason = defend(packet->context, service_slot, vip, place);
		if (reason != ADMITTED)
			return refuse(packet->context, service_slot, place, reason);
	}
	flow_key(&key, family, source_of(packet, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->source, vip);
	flow = flow_of(family, &key);
	if (likely(flow)) {
		slot = slot_of_flow(flow);
		server = known_server_of_flow(flow);
		if (unlikely(!server || server->group != service->group)) {
			facts |= FACT_MOVED;
			server = NULL;
		} else if (unlikely(!touch_flow(packet, service, flow))) {
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
		if (is_vip(family, &key, ports->source, packet->protocol))
			return reject(packet->context, place_of(packet, family), service_slot, REASON_MALFORMED);
		slot = facts >> FACT_SLOT_SHIFT;
		if (!slot) {
			slot = choose_server(service_slot, client_of(family, &key, service), is_mid_flow(packet) && !flow);
			facts |= flow ? 0 : FACT_NONE;
		}
		if (!slot)
			return reject(packet->context, place_of(packet, family), service_slot, REASON_NO_SERVER);
		facts |= slot << FACT_SLOT_SHIFT | (service->flags & SERVICE_IDLE ? FACT_IDLE : 0) |
			 (service->next_hop == NEXT_HOP_ROUTE ? FACT_ROUTE : 0);
		slot = associate(packet->context, &key, service_slot, facts);
		server = server_at(slot);
		if (!server)
			return reject(packet->context, place_of(packet, family), service_slot, REASON_INTERNAL);
	}
	if (unlikely(service->flags & SERVICE_REPORTED))
		report_client(packet, family, service_slot, vip, slot, facts, !!flow);
	count_in(slot, bytes);
	if (!plain && is_fragmented(packet))
		remember(packet, family, service_slot | vip << 16, slot | FRAGMENT_INBOUND);
	if (unlikely(service->forward != FORWARD_NAT))
		return tunnel_forward(packet->context, packet->network, vip, slot);
	if (unlikely(service->next_hop == NEXT_HOP_ROUTE && exceeds(packet, server->mtu)))
		return respond_too_big(packet->context, place_of(packet, family), service_slot | vip << 16, server->mtu);
	difference = rewrite_address(family, destination_of(packet, family), server->address);
	rewrite_transport(packet, difference + rewrite_port(&ports->destination, server->port));
	rewrite_network(packet, family, difference);
	return to_server(packet->context, packet->data, packet->network, service_slot, service, server);
}

/* True if the address of a key is one of this machine's addresses. */
static never_inline int is_local(int family, const union flow_key *key)
{
	__u64 address[2];

	if (family == 4)
		return endpoint_v4(key->v4.address, 0, 0, ENDPOINT_LOCAL) != 0;
	__builtin_memcpy(address, key->v6.address, sizeof(address));
	return endpoint_v6(address, 0, 0, ENDPOINT_LOCAL) != 0;
}

/* A packet from a server's address and port. */
static always_inline int from_server(const struct packet *packet, int family, int plain, __u32 position, __u32 *captured)
{
	struct ports *ports = packet->transport;
	__u32 bytes = length_of(packet), kind = EVENT_EGRESS, is_searched = 0;
	struct returns *returns;
	struct service *service;
	enum egress egress;
	union flow_key key;
	struct flow *flow;
	struct vip *vip;
	__u64 difference;

again:
	returns = returns_at(position);
	if (unlikely(!returns))
		return reject(packet->context, place_of(packet, family), 0, REASON_INTERNAL);
	service = service_at(returns->service);
	vip = vip_at(returns->vip);
	if (unlikely(!service || !vip))
		return reject(packet->context, place_of(packet, family), 0, REASON_INTERNAL);
	if (unlikely(service->flags & SERVICE_CAPTURED) && !*captured)
		*captured = capture_before(packet->context, returns->service);
	if (unlikely(hops_of(packet, family) <= 1))
		return end_of_life(packet, family, returns->service, returns->vip);
	flow_key(&key, family, destination_of(packet, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->destination, returns->vip);
	flow = flow_of(family, &key);
	egress = judge_egress(flow, returns->server);
	if (unlikely(egress != EGRESS_KNOWN)) {
		if (is_local(family, &key))
			return XDP_PASS;
		if (returns->next && !is_searched) {
			flow_key(&key, family, destination_of(packet, family), ports->destination, 0);
			is_searched = family == 4 ? search_returns(4, &key, position) : search_returns(6, &key, position);
			if (is_searched) {
				position = is_searched;
				goto again;
			}
			egress = EGRESS_REFUSED;
		}
		/* A client of QUIC can have connections with several servers. */
		if (egress == EGRESS_REFUSED && !(service->flags & SERVICE_QUIC))
			return reject(packet->context, place_of(packet, family), returns->service, REASON_REFUSED_EGRESS);
		if (egress == EGRESS_NEW) {
			associate(packet->context, &key, returns->service,
				  returns->server << FACT_SLOT_SHIFT | FACT_BY_SERVER | FACT_IDLE |
					  (family == 4 ? FACT_IPV4 : 0));
			flow = NULL;
			kind = EVENT_FLOW_BY_SERVER;
		}
	}
	if (unlikely(service->flags & SERVICE_REPORTED))
		report(packet->context, place_of(packet, family), REPORT(kind, REASONS, EVENT_DEBUG),
		       returns->service | returns->vip << 16, returns->server);
	if (unlikely(service->flags & SERVICE_IDLE) && flow)
		use_flow(flow);
	count_out(returns->server, bytes);
	if (!plain && is_fragmented(packet))
		remember(packet, family, returns->service | returns->vip << 16, returns->server);
	if (unlikely(service->next_hop == NEXT_HOP_ROUTE && flow)) {
		__u32 mtu = mtu_towards_client(packet->context, hop_of_flow(flow));

		if (exceeds(packet, mtu))
			return respond_too_big(packet->context, place_of(packet, family),
					       returns->service | returns->vip << 16, mtu);
	}
	difference = rewrite_address(family, source_of(packet, family), vip->address);
	rewrite_transport(packet, difference + rewrite_port(&ports->source, returns->port));
	rewrite_network(packet, family, difference);
	if (likely(service->next_hop == NEXT_HOP_SENDER))
		return back_to_sender(packet->data);
	return to_client(packet->context, packet->data, packet->network, returns->service, flow ? hop_of_flow(flow) : 0);
}

/* A packet that no service takes: for the tarpit if there is one, else for the kernel. */
static always_inline int pass_other(struct xdp_md *context, __u32 place)
{
	struct config *settings = config();

	if (likely(settings && settings->event_level < EVENT_TRACE && !(settings->flags & CONFIG_TARPIT)))
		return XDP_PASS;
	if (settings && settings->event_level >= EVENT_TRACE)
		report(context, place, REPORT(EVENT_PASSED, REASONS, EVENT_TRACE), 0, 0);
	return has_tarpit() ? tarpit(context) : XDP_PASS;
}

/* A packet of UDP or TCP, with its ports. */
static always_inline int handle(const struct packet *packet, int family, int plain)
{
	struct ports *ports = packet->transport;
	__u32 captured = 0;
	__u64 found;
	int action;

	found = endpoint(family, destination_of(packet, family), ports->destination, packet->protocol, ENDPOINT_VIP);
	if (found) {
		action = from_client(packet, family, plain, found, found >> 32, &captured);
		if (unlikely(captured))
			capture_after(packet->context, captured, action);
		return action;
	}
	found = endpoint(family, source_of(packet, family), ports->source, packet->protocol, ENDPOINT_REAL);
	if (found) {
		action = from_server(packet, family, plain, found, &captured);
		if (unlikely(captured))
			capture_after(packet->context, captured, action);
		return action;
	}
	if (unlikely(hops_of(packet, family) == 0))
		return reject(packet->context, place_of(packet, family), 0, REASON_MALFORMED);
	return pass_other(packet->context, place_of(packet, family));
}

#endif
