/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * ICMP errors about forwarded packets. An error quotes the packet as it was behind the balancer, so the quotation is
 * translated back: addresses, ports and checksums. With it, path MTU discovery works through NAT (RFC 5508, section 4).
 */
#ifndef EVENER_ICMP_H
#define EVENER_ICMP_H

#include "associate.h"
#include "flows.h"
#include "forward.h"
#include "packet.h"
#include "parsed.h"
#include "report.h"
#include "tunnel.h"

#define ICMP4_UNREACHABLE 3
#define ICMP4_TIME_EXCEEDED 11
#define ICMP4_PARAMETER_PROBLEM 12
#define ICMP6_ERRORS_END 128
/* Offset of the checksum in the header of TCP. */
#define TCP_CHECK 16

static always_inline int is_icmp_error(int family, __u8 type)
{
	if (family == 6)
		return type < ICMP6_ERRORS_END;
	return type == ICMP4_UNREACHABLE || type == ICMP4_TIME_EXCEEDED || type == ICMP4_PARAMETER_PROBLEM;
}

/* Corrects the transport checksum of the quotation, if it is quoted. Returns the difference of the quotation. */
static always_inline __u64 rewrite_quoted_check(const struct packet *quoted, __u64 difference)
{
	__u16 *check, before;

	if (quoted->protocol == IPPROTO_UDP) {
		check = &((struct udphdr *)quoted->transport)->check;
		before = *check;
		*check = udp_checksum_after(before, difference);
	} else {
		check = quoted->transport + TCP_CHECK;
		if ((void *)(check + 1) > quoted->end)
			return 0;
		before = *check;
		*check = checksum_after(before, difference);
	}
	return difference16(before, *check);
}

/* Replaces an address and a port of the quotation. Returns the difference of all its words. */
static always_inline __u64 rewrite_quoted(const struct packet *quoted, int family, void *address, const void *after,
					  __u16 *port, __u16 port_after)
{
	__u64 addresses = rewrite_address(family, address, after);
	__u64 ports = rewrite_port(port, port_after);
	__u64 all = addresses + ports + rewrite_quoted_check(quoted, addresses + ports);
	struct iphdr *v4 = quoted->ip;
	__u16 before;

	if (family == 6)
		return all;
	before = v4->check;
	v4->check = checksum_after(before, addresses);
	return all + difference16(before, v4->check);
}

static always_inline void rewrite_icmp(const struct packet *packet, int family, __u64 quoted, __u64 outer)
{
	struct icmp_header *icmp = packet->transport;

	/* The checksum of ICMPv6 covers the addresses, that of ICMP does not. */
	icmp->check = checksum_after(icmp->check, family == 6 ? quoted + outer : quoted);
	rewrite_network(packet, family, outer);
}

/* An error about a packet that a server sent through here: it is for that server. */
static always_inline int error_for_server(const struct packet *packet, const struct packet *quoted, int family,
					  __u32 service_slot, __u32 vip)
{
	struct service *service = service_at(service_slot);
	struct ports *ports = quoted->transport;
	__u32 place = place_of(packet, family);
	struct server *server;
	union flow_key key;
	struct flow *flow;
	__u64 inner, outer;
	__u32 slot = 0;

	if (!service)
		return reject(packet->context, place, 0, REASON_INTERNAL);
	flow_key(&key, family, destination_of(quoted, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->destination, vip);
	flow = flow_of(family, &key);
	server = flow ? known_server_of_flow(flow) : NULL;
	if (server && server->group == service->group)
		slot = slot_of_flow(flow);
	else if (service->choose_by == CHOOSE_BY_CLIENT)
		slot = choose_server(service_slot, hash_of_key(family, &key), 1);
	server = server_at(slot);
	if (!slot || !server)
		return reject(packet->context, place, service_slot, REASON_ICMP_UNKNOWN);
	count(service_slot, REASON_ICMP_TRANSLATED);
	count_in(slot, length_of(packet));
	if (service->forward != FORWARD_NAT)
		return tunnel_forward(packet->context, packet->network, vip, slot);
	inner = rewrite_quoted(quoted, family, source_of(quoted, family), server->address, &ports->source, server->port);
	outer = rewrite_address(family, destination_of(packet, family), server->address);
	rewrite_icmp(packet, family, inner, outer);
	return to_server(packet->context, packet->data, packet->network, service_slot, service, server);
}

/* An error about a packet that went to a server: it is for the client, as if the virtual address had sent it. */
static always_inline int error_for_client(const struct packet *packet, const struct packet *quoted, int family,
					  __u32 position)
{
	struct ports *ports = quoted->transport;
	__u32 place = place_of(packet, family);
	struct returns *returns;
	struct service *service;
	union flow_key key;
	struct flow *flow;
	__u64 inner, outer;
	struct vip *vip;

	flow_key(&key, family, source_of(quoted, family), ports->source, 0);
	position = search_returns(family, &key, position);
	returns = returns_at(position);
	if (!returns)
		return reject(packet->context, place, 0, REASON_ICMP_UNKNOWN);
	service = service_at(returns->service);
	vip = vip_at(returns->vip);
	if (!service || !vip)
		return reject(packet->context, place, returns->service, REASON_INTERNAL);
	flow_key(&key, family, source_of(quoted, family),
		 service->flags & SERVICE_BY_ADDRESS ? 0 : ports->source, returns->vip);
	flow = flow_of(family, &key);
	if (judge_egress(flow, returns->server) != EGRESS_KNOWN || !flow)
		return reject(packet->context, place, returns->service, REASON_ICMP_UNKNOWN);
	count(returns->service, REASON_ICMP_TRANSLATED);
	count_out(returns->server, length_of(packet));
	inner = rewrite_quoted(quoted, family, destination_of(quoted, family), vip->address, &ports->destination,
			       returns->port);
	outer = rewrite_address(family, source_of(packet, family), vip->address);
	rewrite_icmp(packet, family, inner, outer);
	if (service->next_hop == NEXT_HOP_SENDER)
		return back_to_sender(packet->data);
	return to_client(packet->context, packet->data, packet->network, returns->service, hop_of_flow(flow));
}

/* Fills in the quoted packet. Returns 0 if it is not one of UDP or TCP. */
static always_inline int parse_quoted(const struct packet *packet, int family, struct packet *quoted)
{
	__u32 network = ((packet->transport - packet->data) & 0xfff) + sizeof(struct icmp_header);
	struct layers layers;

	if (unpack(parse(packet->context, network, family), &layers) != PARSED_TRANSPORT)
		return 0;
	quoted->data = packet->data;
	quoted->end = packet->end;
	quoted->ip = packet->data + (network & 0x1fff);
	quoted->transport = packet->data + layers.transport;
	quoted->protocol = layers.protocol;
	if (quoted->transport + sizeof(struct udphdr) > packet->end)
		return 0;
	return quoted->ip + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) <= packet->end;
}

static always_inline int handle_icmp(const struct packet *packet, int family)
{
	struct icmp_header *icmp = packet->transport;
	struct packet quoted = {};
	struct ports *ports;
	__u64 found;

	if (!is_icmp_error(family, icmp->type) || !parse_quoted(packet, family, &quoted))
		return XDP_PASS;
	ports = quoted.transport;
	if (!is_same_address(family, destination_of(packet, family), source_of(&quoted, family)))
		return XDP_PASS;
	found = endpoint(family, source_of(&quoted, family), ports->source, quoted.protocol, ENDPOINT_VIP);
	if (!found)
		found = endpoint(family, destination_of(&quoted, family), ports->destination, quoted.protocol,
				 ENDPOINT_REAL) << 32;
	if (!found)
		return XDP_PASS;
	if (hops_of(packet, family) <= 1)
		return reject(packet->context, place_of(packet, family), 0, REASON_TTL_EXCEEDED);
	if ((__u32)found)
		return error_for_server(packet, &quoted, family, found, found >> 32);
	return error_for_client(packet, &quoted, family, found >> 32);
}

#endif
