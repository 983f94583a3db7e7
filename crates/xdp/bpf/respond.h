/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * ICMP and ICMPv6 errors about packets that are not forwarded. The packet becomes the error: it is cut, gets an IP and an
 * ICMP header in front, and goes back to the host that it came from.
 */
#ifndef EVENER_RESPOND_H
#define EVENER_RESPOND_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "contract.h"
#include "link.h"
#include "lookup.h"
#include "parse.h"
#include "report.h"

/* Errors have at most 576 bytes (RFC 1812, 4.3.2.3) and 1280 bytes (RFC 4443, 2.4 c). */
#define RESPONSE_MAX_V4 576
#define RESPONSE_MAX_V6 1280
#define RESPONSE_TTL 64
/* Errors per CPU (RFC 4443, 2.4 f): 1000 a second, and up to 50 without a pause. */
#define RESPONSE_INTERVAL_NS 1000000ULL
#define RESPONSE_BURST_NS (50 * RESPONSE_INTERVAL_NS)

enum respond_to {
	/* Time to live, or hop limit, exceeded in transit. */
	RESPOND_TTL_EXCEEDED,
	/* Fragmentation needed, or packet too big. */
	RESPOND_TOO_BIG,
};

static always_inline int respond_allowed(void)
{
	__u32 zero = 0;
	__u64 *next = bpf_map_lookup_elem(&respond_limit, &zero);
	__u64 now = bpf_ktime_get_ns();

	if (!next)
		return 0;
	if (*next < now)
		*next = now;
	if (*next > now + RESPONSE_BURST_NS - RESPONSE_INTERVAL_NS)
		return 0;
	*next += RESPONSE_INTERVAL_NS;
	return 1;
}

/*
 * Returns the folded sum of the 16-bit words from an offset to the end of the packet, for a checksum. At most
 * RESPONSE_MAX_V6 bytes are added.
 */
never_inline __u32 respond_sum(struct xdp_md *context, __u32 from)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	__u16 *at = data + (from & 0x7f);
	__u64 sum = 0;

	for (__u32 i = 0; i < RESPONSE_MAX_V6 / 2; i++) {
		if ((void *)(at + 1) > end)
			break;
		sum += *at++;
	}
	if ((void *)at + 1 <= end)
		sum += *(__u8 *)at;
	return fold(sum);
}

/* Returns the checksum of an IPv4 header of 20 bytes. */
static always_inline __u16 respond_header_checksum(const struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	return ~fold(sum);
}

/*
 * No errors are sent about errors, later fragments, packets without one sender (RFC 1122, 3.2.2), and packets that no host
 * sends because their time to live is 0.
 */
static always_inline int respond_may_v4(const struct iphdr *ip, const void *end)
{
	__u8 first = bpf_ntohl(ip->saddr) >> 24;

	if (ip->frag_off & IPV4_OFFSET || ip->ttl == 0)
		return 0;
	if (first == 0 || first == 127 || first >= 224)
		return 0;
	if (ip->protocol == IPPROTO_ICMP) {
		const __u8 *type = (const void *)ip + ip->ihl * 4;

		if ((const void *)(type + 1) > end)
			return 0;
		/* Only requests and replies. */
		return *type == 0 || *type == 8;
	}
	return 1;
}

static always_inline int respond_may_v6(const struct ipv6hdr *ip, const void *end)
{
	const __be32 *source = ip->saddr.in6_u.u6_addr32;

	if (ip->saddr.in6_u.u6_addr8[0] == 0xff || ip->hop_limit == 0)
		return 0;
	/* Neither :: nor ::1 (RFC 4443, 2.4 e.6). */
	if ((source[0] | source[1] | source[2]) == 0 && (source[3] & ~NET32(1)) == 0)
		return 0;
	if (ip->nexthdr == IPPROTO_ICMPV6) {
		const __u8 *type = (const void *)(ip + 1);

		if ((const void *)(type + 1) > end)
			return 0;
		return *type >= 128;
	}
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		const __be16 *offset = (const void *)(ip + 1) + 2;

		if ((const void *)(offset + 1) > end)
			return 0;
		return (*offset & IPV6_OFFSET) == 0;
	}
	return 1;
}

/* Completes the error at an offset by its checksum, with a pseudo-header's sum. */
static always_inline int respond_finish(struct xdp_md *context, __u32 offset, __u64 pseudo_header)
{
	__u16 check = ~fold(pseudo_header + respond_sum(context, offset));
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct icmp_header *icmp = data + (offset & 0x7f);

	if ((void *)(icmp + 1) > end)
		return XDP_DROP;
	icmp->check = check;
	return XDP_TX;
}

static always_inline __u64 sum_address(const struct in6_addr *address)
{
	const __u32 *words = address->in6_u.u6_addr32;

	return (__u64)words[0] + words[1] + words[2] + words[3];
}

/* Bytes of the IP packet that an error quotes. A length in the header may be more than there is. */
static always_inline __u32 respond_length(struct xdp_md *context, __u32 l3, __u32 length, __u32 max)
{
	__u32 present = context->data_end - context->data - l3;

	if (length > present)
		length = present;
	return length > max ? max : length;
}

/* Makes room for the headers of an error about the first length bytes of the IP packet. Returns 0, or -1. */
static always_inline int respond_open(struct xdp_md *context, __u32 l3, __u32 length, __u32 room, __u16 type)
{
	__u32 before = context->data_end - context->data, after = l3 + length;

	if (after < before && bpf_xdp_adjust_tail(context, (int)after - (int)before))
		return -1;
	return link_open(context, l3, room, type);
}

static always_inline int respond_v4(struct xdp_md *context, __u32 l3, const struct vip *source, __u32 to, __u32 mtu)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	__u32 room = sizeof(struct iphdr) + sizeof(struct icmp_header), length, target;
	struct iphdr *ip = link_at(data, l3);
	struct icmp_header *icmp;

	if (data + ETH_HLEN > end || (void *)(ip + 1) > end || *(__u8 *)data & 1)
		return XDP_DROP;
	length = bpf_ntohs(ip->tot_len);
	target = ip->saddr;
	if (length < sizeof(*ip) || !respond_may_v4(ip, end) || !respond_allowed())
		return XDP_DROP;
	length = respond_length(context, l3, length, RESPONSE_MAX_V4 - room);
	if (respond_open(context, l3, length, room, NET16(ETH_P_IP)))
		return XDP_DROP;

	data = (void *)(long)context->data;
	end = (void *)(long)context->data_end;
	ip = link_at(data, l3);
	icmp = (void *)(ip + 1);
	if (data + ETH_HLEN > end || (void *)(icmp + 1) > end)
		return XDP_DROP;
	back_to_sender(data);
	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		/* Internetwork control (RFC 1812, 4.3.2.5). */
		.tos = 0xc0,
		.tot_len = bpf_htons(room + length),
		.id = bpf_get_prandom_u32(),
		.ttl = RESPONSE_TTL,
		.protocol = IPPROTO_ICMP,
		.saddr = source->address[0],
		.daddr = target,
	};
	ip->check = respond_header_checksum(ip);
	*icmp = (struct icmp_header){ .type = 11 };
	if (to == RESPOND_TOO_BIG)
		*icmp = (struct icmp_header){ .type = 3, .code = 4, .rest = bpf_htonl(mtu) };
	return respond_finish(context, l3 + sizeof(*ip), 0);
}

static always_inline int respond_v6(struct xdp_md *context, __u32 l3, const struct vip *source, __u32 to, __u32 mtu)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	__u32 room = sizeof(struct ipv6hdr) + sizeof(struct icmp_header), length;
	struct ipv6hdr *ip = link_at(data, l3), *quoted;
	struct icmp_header *icmp;
	__u64 sum;

	if (data + ETH_HLEN > end || (void *)(ip + 1) > end || *(__u8 *)data & 1)
		return XDP_DROP;
	length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (!respond_may_v6(ip, end) || !respond_allowed())
		return XDP_DROP;
	length = respond_length(context, l3, length, RESPONSE_MAX_V6 - room);
	if (respond_open(context, l3, length, room, NET16(ETH_P_IPV6)))
		return XDP_DROP;

	data = (void *)(long)context->data;
	end = (void *)(long)context->data_end;
	ip = link_at(data, l3);
	icmp = (void *)(ip + 1);
	quoted = (void *)(icmp + 1);
	if (data + ETH_HLEN > end || (void *)(quoted + 1) > end)
		return XDP_DROP;
	back_to_sender(data);
	*ip = (struct ipv6hdr){
		.version = 6,
		.payload_len = bpf_htons(sizeof(*icmp) + length),
		.nexthdr = IPPROTO_ICMPV6,
		.hop_limit = RESPONSE_TTL,
		.daddr = quoted->saddr,
	};
	__builtin_memcpy(&ip->saddr, source->address, sizeof(ip->saddr));
	*icmp = (struct icmp_header){ .type = 3 };
	if (to == RESPOND_TOO_BIG)
		*icmp = (struct icmp_header){ .type = 2, .rest = bpf_htonl(mtu) };
	/* The pseudo-header has the addresses, the length and the protocol (RFC 8200, 8.1). */
	sum = sum_address(&ip->saddr) + sum_address(&ip->daddr);
	sum += bpf_htons(sizeof(*icmp) + length) + NET16(IPPROTO_ICMPV6);
	return respond_finish(context, l3 + sizeof(*ip), sum);
}

/*
 * Sends an error about the packet whose IP header is at l3, with the address of a VIP's slot as its source. Returns XDP_TX,
 * or XDP_DROP if the packet must not have a response.
 */
never_inline int respond(struct xdp_md *context, __u32 l3, __u32 vip_slot, __u32 to, __u32 mtu)
{
	const struct vip *vip = vip_at(vip_slot);

	if (!vip)
		return XDP_DROP;
	if (vip->family == 4)
		return respond_v4(context, l3, vip, to, mtu);
	return respond_v6(context, l3, vip, to, mtu);
}

/* Packets that every link of IPv6 carries: its senders never send less. */
#define RESPOND_MTU_MIN_V6 1280

/*
 * Drops a packet that does not fit, and tells its sender the size that does. IPv4 packets that routers may fragment have
 * this response, too, because the program cannot fragment: Linux then sends smaller ones. The arguments are as for
 * respond_expired().
 */
never_inline int respond_too_big(struct xdp_md *context, __u32 place, __u32 owner, __u32 mtu)
{
	int action = XDP_DROP;

	report(context, place, REPORT(EVENT_DROPPED, REASON_TOO_BIG, EVENT_INFO), owner, 0);
	if ((place >> 20 & 0xf) == 4 || mtu >= RESPOND_MTU_MIN_V6)
		action = respond(context, place & 0x3f, owner >> 16, RESPOND_TOO_BIG, mtu);
	count(owner & 0xffff, action == XDP_TX ? REASON_RESPONDED_TOO_BIG : REASON_TOO_BIG);
	return action;
}

/*
 * Drops a packet at the end of its time to live, and tells its sender. The place is as for report(), the owner is the slot
 * of the service, and from bit 16 on of the virtual address.
 */
never_inline int respond_expired(struct xdp_md *context, __u32 place, __u32 owner)
{
	int action;

	report(context, place, REPORT(EVENT_DROPPED, REASON_TTL_EXCEEDED, EVENT_WARNING), owner, 0);
	action = respond(context, place & 0x3f, owner >> 16, RESPOND_TTL_EXCEEDED, 0);
	count(owner & 0xffff, action == XDP_TX ? REASON_RESPONDED_TTL : REASON_TTL_EXCEEDED);
	return action;
}

#endif
