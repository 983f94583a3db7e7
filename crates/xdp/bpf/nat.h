/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Packets of clients and of servers: associations and address translation. */
#ifndef EVENER_NAT_H
#define EVENER_NAT_H

#include "associate.h"
#include "capture.h"
#include "defend.h"
#include "flows.h"
#include "forward.h"
#include "fragment.h"
#include "packet.h"
#include "report.h"
#include "tarpit.h"

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
	__u64 client = family == 4 ? hash_of_key(4, key) : hash_of_key(6, key);
	__u32 slot = choose_server(service, client, facts & FACT_MID_FLOW);
	struct server *server = server_at(slot);
	struct flow flow;
	long error;

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

/* Reports the decision about a client's packet. */
static always_inline void report_client(const struct packet *packet, int family, __u32 service, __u32 vip, __u32 server,
					__u32 facts, int had_flow)
{
	__u32 kind = facts & FACT_MOVED ? EVENT_FLOW_MOVED :
		     !had_flow || facts & FACT_EXPIRED ? EVENT_FLOW_NEW : EVENT_FLOW_REUSED;

	report(packet->context, place_of(packet, family), REPORT(kind, REASONS, EVENT_DEBUG), service | vip << 16, server);
}

/* A packet for the virtual address and port of a service. */
static always_inline int from_client(const struct packet *packet, int family, int plain, __u32 service_slot, __u32 vip,
				    __u32 *captured)
{
	struct service *service = service_at(service_slot);
	struct ports *ports = packet->transport;
	__u32 slot = 0, facts = family, bytes = length_of(packet);
	struct server *server = NULL;
	union flow_key key;
	struct flow *flow;
	__u64 difference;

	if (unlikely(!service))
		return reject(packet->context, place_of(packet, family), 0, REASON_INTERNAL);
	if (unlikely(hops_of(packet, family) <= 1))
		return reject(packet->context, place_of(packet, family), service_slot, REASON_TTL_EXCEEDED);
	if (unlikely(service->flags & (SERVICE_CAPTURED | SERVICE_DEFENDED))) {
		__u32 position = position_of(packet, family);
		int defended = DEFENDED_ADMITTED;

		if (service->flags & SERVICE_CAPTURED)
			*captured = capture_before(packet->context, service_slot);
		if (service->flags & SERVICE_DEFENDED)
			defended = defend(packet->context, service_slot, vip, position);
		if (defended == DEFENDED_CHALLENGED)
			return challenge(packet->context, service_slot, position);
		if (defended != DEFENDED_ADMITTED)
			return XDP_DROP;
	}
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
	if (unlikely(!server)) {
		if (is_mid_flow(packet) && !flow)
			facts |= FACT_MID_FLOW;
		slot = associate(packet->context, &key, service_slot, facts, ports->destination);
		server = server_at(slot);
		if (!slot || !server)
			return reject(packet->context, place_of(packet, family), service_slot, REASON_NO_SERVER);
	}
	if (unlikely(service->flags & SERVICE_REPORTED))
		report_client(packet, family, service_slot, vip, slot, facts, !!flow);
	count_in(slot, bytes);
	if (!plain && is_fragmented(packet))
		remember(packet, family, service_slot | vip << 16, slot | FRAGMENT_INBOUND);
	if (unlikely(service->forward != FORWARD_NAT))
		return forward_whole(packet->context, packet->network, service_slot, slot);
	difference = rewrite_address(family, destination_of(packet, family), server->address);
	rewrite_transport(packet, difference + rewrite_port(&ports->destination, server->port));
	rewrite_network(packet, family, difference);
	return to_server(packet->context, packet->data, packet->network, service_slot, service, server);
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
		return reject(packet->context, place_of(packet, family), returns->service, REASON_TTL_EXCEEDED);
	flow_key(&key, family, destination_of(packet, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->destination, returns->vip);
	flow = flow_of(family, &key);
	egress = judge_egress(flow, returns->server);
	if (unlikely(egress != EGRESS_KNOWN)) {
		if (returns->next && !is_searched) {
			flow_key(&key, family, destination_of(packet, family), ports->destination, 0);
			is_searched = family == 4 ? search_returns(4, &key, position) : search_returns(6, &key, position);
			if (is_searched) {
				position = is_searched;
				goto again;
			}
			egress = EGRESS_REFUSED;
		}
		if (egress == EGRESS_REFUSED)
			return reject(packet->context, place_of(packet, family), returns->service, REASON_REFUSED_EGRESS);
		associate_by_server(family, &key, returns->service, returns->server);
		flow = NULL;
		kind = EVENT_FLOW_BY_SERVER;
	}
	if (unlikely(service->flags & SERVICE_REPORTED))
		report(packet->context, place_of(packet, family), REPORT(kind, REASONS, EVENT_DEBUG),
		       returns->service | returns->vip << 16, returns->server);
	count_out(returns->server, bytes);
	if (!plain && is_fragmented(packet))
		remember(packet, family, returns->service | returns->vip << 16, returns->server);
	difference = rewrite_address(family, source_of(packet, family), vip->address);
	rewrite_transport(packet, difference + rewrite_port(&ports->source, flow && flow->vip_port ? flow->vip_port :
												     returns->port));
	rewrite_network(packet, family, difference);
	if (likely(service->next_hop == NEXT_HOP_SENDER))
		return back_to_sender(packet->data);
	if (!flow || !flow->ifindex)
		return by_route(packet->context, packet->network, returns->service);
	return to_client(packet->context, packet->data, flow);
}

/* A packet that no service takes: for the tarpit if there is one, else for the kernel. */
static always_inline int pass_other(struct xdp_md *context, __u32 place)
{
	struct config *settings = config();

	if (likely(settings && settings->event_level < EVENT_TRACE && !(settings->flags & CONFIG_TARPIT)))
		return XDP_PASS;
	if (settings && settings->event_level >= EVENT_TRACE)
		report(context, place, REPORT(EVENT_PASSED, REASONS, EVENT_TRACE), 0, 0);
	return pass_or_tarpit(context);
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
