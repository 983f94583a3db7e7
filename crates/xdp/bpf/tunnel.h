/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Forwarding to servers that have the virtual address and respond to clients directly: the packet stays as it is and gets
 * another Ethernet header (direct), or an IP header in front (IP in IP), or an IP and a UDP header (GUE).
 */
#ifndef EVENER_TUNNEL_H
#define EVENER_TUNNEL_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "hash.h"
#include "checksum.h"
#include "contract.h"
#include "forward.h"
#include "link.h"
#include "lookup.h"
#include "parse.h"
#include "respond.h"

#define TUNNEL_TTL 64
/* Source ports of GUE: the dynamic ports, so that 14 bits of the flow's hash vary (draft-ietf-intarea-gue, 5.6). */
#define TUNNEL_PORT_FIRST 49152
#define TUNNEL_PORT_MASK 0x3fff
/* Flow labels of IPv6 have 20 bits. */
#define TUNNEL_LABEL_MASK 0xfffff
/* Packets that every link of IPv6 carries. */
#define TUNNEL_MTU_MIN_V6 1280
#define TUNNEL_DF NET16(0x4000)

/* The parts of a packet that its tunnel depends on. */
struct tunnelled {
	/* Bytes of the IP packet. */
	__u32 length;
	/* The same for all packets of a flow. */
	__u32 hash;
	/* Traffic class: DSCP and ECN. */
	__u8 traffic;
	__u8 ttl;
	/* Routers may fragment the packet. */
	__u8 fragmentable;
	/* A fragment, but not the first one. */
	__u8 later_fragment;
};

static always_inline __u32 tunnel_hash(__u64 addresses, const void *l4, const void *end)
{
	__u32 ports = 0;

	if (l4 && l4 + sizeof(ports) <= end)
		ports = *(const __u32 *)l4;
	return hash_word(hash_word(0, addresses), ports) * HASH_SECOND >> 32;
}

/* Reads the IPv4 packet. Returns 0, or -1 if it is truncated. */
static always_inline int tunnel_read_v4(struct tunnelled *packet, const struct iphdr *ip, const void *end)
{
	const void *l4 = NULL;

	if ((const void *)(ip + 1) > end)
		return -1;
	if (!(ip->frag_off & IPV4_FRAGMENTED) && (ip->protocol == IPPROTO_UDP || ip->protocol == IPPROTO_TCP))
		l4 = (const void *)ip + ip->ihl * 4;
	packet->length = bpf_ntohs(ip->tot_len);
	packet->hash = tunnel_hash((__u64)ip->saddr << 32 | ip->daddr, l4, end);
	packet->traffic = ip->tos;
	packet->ttl = ip->ttl;
	packet->fragmentable = !(ip->frag_off & TUNNEL_DF);
	packet->later_fragment = !!(ip->frag_off & IPV4_OFFSET);
	return packet->length < sizeof(*ip) ? -1 : 0;
}

/* Reads the IPv6 packet. Ports behind extension headers do not count for the hash. */
static always_inline int tunnel_read_v6(struct tunnelled *packet, const struct ipv6hdr *ip, const void *end)
{
	const __u32 *source = ip->saddr.in6_u.u6_addr32, *destination = ip->daddr.in6_u.u6_addr32;
	const void *l4 = NULL;
	__u64 addresses;

	if ((const void *)(ip + 1) > end)
		return -1;
	if (ip->nexthdr == IPPROTO_UDP || ip->nexthdr == IPPROTO_TCP)
		l4 = ip + 1;
	addresses = (__u64)(source[0] ^ source[2]) << 32 | (source[1] ^ source[3]);
	addresses += (__u64)(destination[0] ^ destination[2]) << 32 | (destination[1] ^ destination[3]);
	packet->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	packet->hash = tunnel_hash(addresses, l4, end);
	packet->traffic = bpf_ntohs(*(const __be16 *)ip) >> 4;
	packet->ttl = ip->hop_limit;
	packet->fragmentable = 0;
	packet->later_fragment = 0;
	return 0;
}

/* Decrements the time to live of the packet in the tunnel: the tunnel is one hop (RFC 2003, 3.1; RFC 2473, 3.1). */
static always_inline void tunnel_decrement_v4(struct iphdr *ip)
{
	__u32 sum = ip->check + NET16(0x0100);

	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
}

static always_inline int tunnel_too_big(const struct tunnelled *packet, const struct server *server, __u32 overhead)
{
	return server->mtu && packet->length + overhead > server->mtu;
}

/* Bytes in front of the packet. */
static always_inline __u32 tunnel_overhead(const struct service *service, const struct server *server)
{
	__u32 overhead = server->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (service->forward == FORWARD_DIRECT)
		return 0;
	return service->forward == FORWARD_GUE ? overhead + sizeof(struct udphdr) : overhead;
}

/*
 * Writes the IPv4 header of the tunnel. The DSCP and ECN bits are copied (RFC 6040, 4.1, normal mode), and so is "do not
 * fragment" (RFC 2003, 3.1); a packet that may be fragmented needs an identification (RFC 6864, 4.1).
 */
static always_inline void tunnel_write_v4(struct iphdr *ip, const struct tunnelled *packet, __u32 overhead,
					    __u8 protocol, __u16 identification)
{
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = packet->traffic,
		.tot_len = bpf_htons(packet->length + overhead),
		.id = packet->fragmentable ? identification : 0,
		.frag_off = packet->fragmentable ? 0 : TUNNEL_DF,
		.ttl = TUNNEL_TTL,
		.protocol = protocol,
	};
}

/* Writes the IPv6 header of the tunnel, with the flow's hash as its label (RFC 6438). */
static always_inline void tunnel_write_v6(struct ipv6hdr *ip, const struct tunnelled *packet, __u32 overhead,
					    __u8 protocol)
{
	*ip = (struct ipv6hdr){
		.payload_len = bpf_htons(packet->length + overhead - sizeof(*ip)),
		.nexthdr = protocol,
		.hop_limit = TUNNEL_TTL,
	};
	*(__be32 *)ip = bpf_htonl(6U << 28 | packet->traffic << 20 | (packet->hash & TUNNEL_LABEL_MASK));
}

/*
 * Writes the UDP header of GUE. The checksum is zero, which receivers with IPv6 have to allow: the packet in the tunnel
 * has checksums of its own, over its addresses, too (RFC 6935, RFC 6936).
 */
static always_inline void tunnel_write_udp(struct udphdr *udp, const struct service *service,
					     const struct tunnelled *packet)
{
	udp->source = bpf_htons(TUNNEL_PORT_FIRST + (packet->hash & TUNNEL_PORT_MASK));
	udp->dest = service->tunnel_port;
	udp->len = bpf_htons(packet->length + sizeof(*udp));
	udp->check = 0;
}

/* Writes the addresses of an outer IPv4 header and its checksum. */
static always_inline void tunnel_address_v4(struct iphdr *ip, const struct service *service,
					      const struct server *server)
{
	ip->saddr = service->tunnel_source_v4;
	ip->daddr = server->address[0];
	ip->check = ~fold(respond_sum(ip, ip + 1));
}

/*
 * Drops a packet that does not fit, and tells its sender the size that does. IPv4 packets that routers may fragment have
 * this response, too, because the program cannot fragment: Linux then sends smaller ones. Senders of IPv6 never send less
 * than 1280 bytes, so there is nothing to tell them if that does not fit.
 */
static always_inline int tunnel_refuse(struct xdp_md *context, const struct tunnelled *packet, const struct vip *vip,
				       __u32 vip_slot, __u32 l3, __u32 mtu)
{
	int action = XDP_DROP;

	if (!packet->later_fragment && (vip->family == 4 || mtu >= TUNNEL_MTU_MIN_V6))
		action = respond(context, l3, vip_slot, RESPOND_TOO_BIG, mtu);
	count(vip->service, action == XDP_TX ? REASON_RESPONDED_TOO_BIG : REASON_TOO_BIG);
	return action;
}

/*
 * Replaces the Ethernet addresses by the next hop's, or exchanges them. With direct forwarding the MAC address is the one
 * that makes the server take the packet.
 */
static always_inline void tunnel_set_next_hop(struct link_header *link, const struct service *service,
						const struct server *server)
{
	if (service->next_hop == NEXT_HOP_SENDER && service->forward != FORWARD_DIRECT) {
		link_exchange(link);
		return;
	}
	__builtin_memcpy(link->words, server->destination_mac, 6);
	__builtin_memcpy(link->words + 3, server->source_mac, 6);
}

static always_inline int tunnel_needs_next_hop(const struct service *service)
{
	return service->next_hop != NEXT_HOP_SENDER || service->forward == FORWARD_DIRECT;
}

/* Writes the headers of the tunnel at ip. Returns 0, or -1 if there is no room. */
static always_inline int tunnel_write(void *ip, const void *end, const struct service *service,
					const struct server *server, const struct tunnelled *packet, __u32 family)
{
	__u32 overhead = tunnel_overhead(service, server);
	__u8 protocol = family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;

	if (service->forward == FORWARD_GUE)
		protocol = IPPROTO_UDP;
	if (server->family == 4) {
		if (ip + sizeof(struct iphdr) + sizeof(struct udphdr) > end)
			return -1;
		tunnel_write_v4(ip, packet, overhead, protocol, bpf_get_prandom_u32());
		tunnel_address_v4(ip, service, server);
		ip += sizeof(struct iphdr);
	} else {
		struct ipv6hdr *outer = ip;

		if (ip + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > end)
			return -1;
		tunnel_write_v6(outer, packet, overhead, protocol);
		__builtin_memcpy(&outer->saddr, service->tunnel_source_v6, sizeof(outer->saddr));
		__builtin_memcpy(&outer->daddr, server->address, sizeof(outer->daddr));
		ip += sizeof(struct ipv6hdr);
	}
	if (service->forward == FORWARD_GUE)
		tunnel_write_udp(ip, service, packet);
	return 0;
}

/*
 * Forwards the packet of a client, whose IP header is at l3, to a server that has the virtual address. Counts what does
 * not end in forwarding. Returns the action.
 */
never_inline int tunnel_forward(struct xdp_md *context, __u32 l3, __u32 vip_slot, __u32 server_slot)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end, *ip;
	struct server *server = server_at(server_slot);
	struct vip *vip = vip_at(vip_slot);
	struct tunnelled packet = {};
	struct link_header link = {};
	struct service *service;
	__u32 overhead;

	if (!server || !vip)
		return drop(0, REASON_INTERNAL);
	service = service_at(vip->service);
	if (!service || link_save(&link, data, end, l3))
		return drop(vip->service, REASON_INTERNAL);
	ip = link_payload(data, l3);
	if (vip->family == 4 ? tunnel_read_v4(&packet, ip, end) : tunnel_read_v6(&packet, ip, end))
		return drop(vip->service, REASON_MALFORMED);
	if (l3 + packet.length > context->data_end - context->data)
		return drop(vip->service, REASON_MALFORMED);
	if (service->forward != FORWARD_DIRECT && packet.ttl <= 1)
		return respond_expired(context, l3, vip->service, vip_slot);
	if (service->forward == FORWARD_DIRECT && !server->ifindex)
		return drop(vip->service, REASON_NO_NEXT_HOP);
	overhead = tunnel_overhead(service, server);
	if (tunnel_too_big(&packet, server, overhead))
		return tunnel_refuse(context, &packet, vip, vip_slot, l3,
				     server->mtu > overhead ? server->mtu - overhead : 0);

	if (service->forward != FORWARD_DIRECT) {
		if (vip->family == 4 && ip + sizeof(struct iphdr) <= end)
			tunnel_decrement_v4(ip);
		else if (vip->family == 6 && ip + sizeof(struct ipv6hdr) <= end)
			((struct ipv6hdr *)ip)->hop_limit--;
		if (bpf_xdp_adjust_head(context, -(int)overhead))
			return drop(vip->service, REASON_INTERNAL);
		data = (void *)(long)context->data;
		end = (void *)(long)context->data_end;
		link_set_type(&link, l3, server->family == 4 ? NET16(ETH_P_IP) : NET16(ETH_P_IPV6));
		ip = link_payload(data, l3);
		if (tunnel_write(ip, end, service, server, &packet, vip->family))
			return drop(vip->service, REASON_INTERNAL);
	}
	tunnel_set_next_hop(&link, service, server);
	if (link_restore(&link, data, end, l3))
		return drop(vip->service, REASON_INTERNAL);
	if (!tunnel_needs_next_hop(service))
		return XDP_TX;
	return server->ifindex ? out_of(context, server->ifindex) : by_route(context, l3, vip->service);
}

#endif
