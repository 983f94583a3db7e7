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

#include "checksum.h"
#include "contract.h"
#include "forward.h"
#include "hash.h"
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
	/* Routers may fragment the packet. */
	__u8 fragmentable;
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
	packet->fragmentable = !(ip->frag_off & TUNNEL_DF);
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
	packet->fragmentable = 0;
	return 0;
}

/* Reads the packet whose IP header is at l3. Returns 0, or -1 if it is truncated. */
never_inline int tunnel_read(struct xdp_md *context, __u32 l3, __u32 family, struct tunnelled *packet)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	void *ip = link_at(data, l3);

	if (!packet || (family == 4 ? tunnel_read_v4(packet, ip, end) : tunnel_read_v6(packet, ip, end)))
		return -1;
	return l3 + packet->length > context->data_end - context->data ? -1 : 0;
}

/*
 * Decrements the time to live of the packet in the tunnel: the tunnel is one hop (RFC 2003, 3.1; RFC 2473, 3.1). Returns 0,
 * or -1.
 */
static always_inline int tunnel_decrement(void *data, const void *end, __u32 l3, __u32 family)
{
	struct iphdr *ip = link_at(data, l3);
	struct ipv6hdr *ip6 = (void *)ip;

	if ((void *)(ip + 1) > end)
		return -1;
	if (family == 4) {
		ip->ttl--;
		ip->check = checksum_after(ip->check, 0xfffe);
		return 0;
	}
	if ((void *)(ip6 + 1) > end)
		return -1;
	ip6->hop_limit--;
	return 0;
}

/* Bytes in front of the packet. */
static always_inline __u32 tunnel_overhead(const struct service *service, const struct server *server)
{
	__u32 overhead = server->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	if (service->forward == FORWARD_DIRECT)
		return 0;
	return service->forward == FORWARD_GUE ? overhead + sizeof(struct udphdr) : overhead;
}

/* MTU of the way to the server. If its next hop is not known, packets go back where they came from. */
static always_inline __u32 tunnel_mtu(struct xdp_md *context, const struct server *server)
{
	__u32 mtu = 0;

	if (server->mtu)
		return server->mtu;
	bpf_check_mtu(context, 0, &mtu, 0, 0);
	return mtu;
}

/*
 * Writes the IPv4 header of the tunnel. The DSCP and ECN bits are copied (RFC 6040, 4.1, normal mode), and so is "do not
 * fragment" (RFC 2003, 3.1); a packet that may be fragmented needs an identification (RFC 6864, 4.1).
 */
static always_inline void tunnel_write_v4(struct iphdr *ip, const struct tunnelled *packet, __u32 overhead, __u8 protocol,
					  const struct service *service, const struct server *server)
{
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = packet->traffic,
		.tot_len = bpf_htons(packet->length + overhead),
		.id = packet->fragmentable ? bpf_get_prandom_u32() : 0,
		.frag_off = packet->fragmentable ? 0 : TUNNEL_DF,
		.ttl = TUNNEL_TTL,
		.protocol = protocol,
		.saddr = service->tunnel_source_v4,
		.daddr = server->address[0],
	};
	ip->check = respond_header_checksum(ip);
}

/* Writes the IPv6 header of the tunnel, with the flow's hash as its label (RFC 6438). */
static always_inline void tunnel_write_v6(struct ipv6hdr *ip, const struct tunnelled *packet, __u32 overhead, __u8 protocol,
					  const struct service *service, const struct server *server)
{
	*(__be32 *)ip = bpf_htonl(6U << 28 | packet->traffic << 20 | (packet->hash & TUNNEL_LABEL_MASK));
	ip->payload_len = bpf_htons(packet->length + overhead - sizeof(*ip));
	ip->nexthdr = protocol;
	ip->hop_limit = TUNNEL_TTL;
	__builtin_memcpy(&ip->saddr, service->tunnel_source_v6, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, server->address, sizeof(ip->daddr));
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

/* Writes the headers of the tunnel at l3, around a packet of a family. Returns 0, or -1. */
never_inline int tunnel_write(struct xdp_md *context, __u32 l3, __u32 vip_slot, __u32 server_slot,
			      struct tunnelled *packet)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct server *server = server_at(server_slot);
	struct vip *vip = vip_at(vip_slot);
	void *ip = link_at(data, l3);
	struct service *service;
	__u32 overhead;
	__u8 protocol;

	if (!server || !vip || !packet)
		return -1;
	service = service_at(vip->service);
	if (!service || ip + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > end)
		return -1;
	overhead = tunnel_overhead(service, server);
	protocol = vip->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	if (service->forward == FORWARD_GUE)
		protocol = IPPROTO_UDP;
	if (server->family == 4) {
		tunnel_write_v4(ip, packet, overhead, protocol, service, server);
		ip += sizeof(struct iphdr);
	} else {
		tunnel_write_v6(ip, packet, overhead, protocol, service, server);
		ip += sizeof(struct ipv6hdr);
	}
	if (service->forward == FORWARD_GUE)
		tunnel_write_udp(ip, service, packet);
	return 0;
}

/* Puts the packet into a tunnel. Returns 0, or -1 if there is no room. */
static always_inline int tunnel_enter(struct xdp_md *context, __u32 l3, __u32 family, __u32 overhead, __u8 outer_family)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;

	if (tunnel_decrement(data, end, l3, family))
		return -1;
	return link_open(context, l3, overhead, outer_family == 4 ? NET16(ETH_P_IP) : NET16(ETH_P_IPV6));
}

/* The packet's place as for report(). */
static always_inline __u32 tunnel_place(__u32 l3, const struct vip *vip)
{
	return l3 | vip->family << 20;
}

/*
 * Drops a packet that does not fit, and tells its sender the size that does. IPv4 packets that routers may fragment have
 * this response, too, because the program cannot fragment: Linux then sends smaller ones. Senders of IPv6 never send less
 * than 1280 bytes, so there is nothing to tell them if that does not fit.
 */
static always_inline int tunnel_refuse(struct xdp_md *context, const struct vip *vip, __u32 vip_slot, __u32 l3, __u32 mtu)
{
	int action = XDP_DROP;

	report(context, tunnel_place(l3, vip), REPORT(EVENT_DROPPED, REASON_TOO_BIG, EVENT_INFO), vip->service, 0);
	if (vip->family == 4 || mtu >= TUNNEL_MTU_MIN_V6)
		action = respond(context, l3, vip_slot, RESPOND_TOO_BIG, mtu);
	count(vip->service, action == XDP_TX ? REASON_RESPONDED_TOO_BIG : REASON_TOO_BIG);
	return action;
}

/*
 * Sends the frame to the server's next hop, or back to where it came from. With direct forwarding the MAC address is the
 * one that makes the server take the packet.
 */
static always_inline int tunnel_leave(struct xdp_md *context, __u32 l3, __u32 service_slot, const struct service *service,
				      const struct server *server)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;

	if (data + ETH_HLEN > end)
		return reject(context, l3, service_slot, REASON_INTERNAL);
	if (service->next_hop == NEXT_HOP_SENDER && service->forward != FORWARD_DIRECT)
		return back_to_sender(data);
	if (!server->ifindex)
		return by_route(context, l3, service_slot);
	copy_mac(data, server->destination_mac);
	copy_mac(data + ETH_ALEN, server->source_mac);
	return out_of(context, server->ifindex);
}

/*
 * Forwards the packet of a client, whose IP header is at l3, to a server that has the virtual address. The caller checked
 * the time to live. Counts packets that are not forwarded. Returns the action.
 */
never_inline int tunnel_forward(struct xdp_md *context, __u32 l3, __u32 vip_slot, __u32 server_slot)
{
	struct server *server = server_at(server_slot);
	struct vip *vip = vip_at(vip_slot);
	struct tunnelled packet = {};
	struct service *service;
	__u32 overhead, mtu;

	if (!server || !vip)
		return reject(context, l3, 0, REASON_INTERNAL);
	service = service_at(vip->service);
	if (!service)
		return reject(context, tunnel_place(l3, vip), vip->service, REASON_INTERNAL);
	if (tunnel_read(context, l3, vip->family, &packet))
		return reject(context, tunnel_place(l3, vip), vip->service, REASON_MALFORMED);
	if (service->forward == FORWARD_DIRECT && !server->ifindex)
		return reject(context, tunnel_place(l3, vip), vip->service, REASON_NO_NEXT_HOP);
	overhead = tunnel_overhead(service, server);
	mtu = tunnel_mtu(context, server);
	if (mtu && packet.length + overhead > mtu)
		return tunnel_refuse(context, vip, vip_slot, l3, mtu > overhead ? mtu - overhead : 0);
	if (service->forward != FORWARD_DIRECT &&
	    (tunnel_enter(context, l3, vip->family, overhead, server->family) ||
	     tunnel_write(context, l3, vip_slot, server_slot, &packet)))
		return reject(context, tunnel_place(l3, vip), vip->service, REASON_INTERNAL);
	return tunnel_leave(context, l3, vip->service, service, server);
}

#endif
