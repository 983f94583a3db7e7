/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Parsing of packets: functions over (data, data_end) that use no map and no helper, so that they are compiled natively,
 * too. A function that returns an enum parsed never read behind the end.
 */
#ifndef EVENER_PARSE_H
#define EVENER_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/types.h>
#include <linux/udp.h>

#define always_inline inline __attribute__((always_inline))
#define never_inline __attribute__((noinline))
#define likely(condition_) __builtin_expect(!!(condition_), 1)
#define unlikely(condition_) __builtin_expect(!!(condition_), 0)

/* Network order of constants. Addresses and ports are never converted otherwise. */
#define NET16(value_) ((__u16)__builtin_bswap16(value_))
#define NET32(value_) ((__u32)__builtin_bswap32(value_))

#define VLANS_MAX 2
#define EXTENSIONS_MAX 6
#define IPV4_FRAGMENTED NET16(0x3fff)
#define IPV4_OFFSET NET16(0x1fff)
#define IPV6_OFFSET NET16(0xfff8)
#define IPV6_MORE NET16(0x0001)

struct vlan_header {
	__u16 tag;
	__u16 protocol;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 rest;
};

struct ipv6_fragment_header {
	__u8 next;
	__u8 reserved;
	__u16 offset;
	__u32 id;
};

struct ports {
	__u16 source;
	__u16 destination;
};

enum parsed {
	/* UDP or TCP, with a whole header. */
	PARSED_TRANSPORT = 0,
	PARSED_ICMP,
	/* A fragment without a transport header. */
	PARSED_FRAGMENT,
	/* Not for this program. */
	PARSED_OTHER,
	PARSED_MALFORMED,
};

/* Positions in a packet, as offsets. */
struct layers {
	/* Of the IP header. */
	__u16 network;
	/* Of the header behind the IP header and its extensions. */
	__u16 transport;
	/* 4, 6, or 0 if the packet is not IP. */
	__u8 family;
	__u8 protocol;
	/* 1 if the packet is a fragment, the first or a later one. */
	__u8 fragmented;
	/* Set by the caller: the packet is a quotation in an ICMP error, with 8 bytes of the transport header at least. */
	__u8 quoted;
	__u32 fragment_id;
};

static always_inline int is_vlan(__u16 protocol)
{
	return protocol == NET16(ETH_P_8021Q) || protocol == NET16(ETH_P_8021AD);
}

/* Finds the network header behind Ethernet and VLAN tags. Returns the offset, or 0 if the headers are truncated. */
static always_inline __u32 parse_ethernet(const void *data, const void *end, __u16 *protocol)
{
	const struct ethhdr *ethernet = data;
	const struct vlan_header *vlan = (const void *)(ethernet + 1);
	__u32 offset = sizeof(*ethernet);

	if ((const void *)(ethernet + 1) > end)
		return 0;
	*protocol = ethernet->h_proto;
#pragma unroll
	for (int tags = 0; tags < VLANS_MAX; tags++) {
		if (!is_vlan(*protocol))
			break;
		if ((const void *)(vlan + 1) > end)
			return 0;
		*protocol = vlan->protocol;
		vlan++;
		offset += sizeof(*vlan);
	}
	return offset;
}

static always_inline __u32 transport_length(const struct layers *layers)
{
	return layers->protocol == IPPROTO_TCP && !layers->quoted ? sizeof(struct tcphdr) : sizeof(struct udphdr);
}

/* Classifies the header at an offset by its protocol. */
static always_inline enum parsed parse_transport(const void *data, const void *end, struct layers *layers, __u8 icmp)
{
	const void *header = data + layers->transport;

	if (layers->protocol == IPPROTO_UDP || layers->protocol == IPPROTO_TCP) {
		if (header + transport_length(layers) > end)
			return PARSED_MALFORMED;
		return PARSED_TRANSPORT;
	}
	if (layers->protocol != icmp)
		return PARSED_OTHER;
	if (header + sizeof(struct icmp_header) > end)
		return PARSED_MALFORMED;
	return PARSED_ICMP;
}

static always_inline enum parsed parse_ipv4(const void *data, const void *end, struct layers *layers)
{
	const struct iphdr *ip = data + layers->network;
	__u32 length;

	if ((const void *)(ip + 1) > end)
		return PARSED_MALFORMED;
	length = ip->ihl * 4;
	if (ip->version != 4 || length < sizeof(*ip))
		return PARSED_MALFORMED;
	layers->family = 4;
	layers->protocol = ip->protocol;
	layers->transport = layers->network + length;
	if (data + layers->transport > end)
		return PARSED_MALFORMED;
	layers->fragmented = !!(ip->frag_off & IPV4_FRAGMENTED);
	layers->fragment_id = ip->id;
	if (ip->frag_off & IPV4_OFFSET)
		return PARSED_FRAGMENT;
	return parse_transport(data, end, layers, IPPROTO_ICMP);
}

static always_inline int is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_FRAGMENT;
}

/* Parses IPv6 and its extension headers (RFC 8200, section 4); with more than EXTENSIONS_MAX the packet is not taken. */
static always_inline enum parsed parse_ipv6(const void *data, const void *end, struct layers *layers)
{
	const struct ipv6hdr *ip = data + layers->network;
	__u32 offset = layers->network + sizeof(*ip);
	__u8 protocol;

	if ((const void *)(ip + 1) > end || ip->version != 6)
		return PARSED_MALFORMED;
	layers->family = 6;
	protocol = ip->nexthdr;
	for (int headers = 0; headers < EXTENSIONS_MAX; headers++) {
		const struct ipv6_fragment_header *header = data + (offset & 0xfff);

		if (!is_extension(protocol))
			break;
		if ((const void *)(header + 1) > end)
			return PARSED_MALFORMED;
		if (protocol == IPPROTO_FRAGMENT) {
			layers->fragmented = !!(header->offset & (IPV6_OFFSET | IPV6_MORE));
			layers->fragment_id = header->id;
			protocol = header->next;
			offset += sizeof(*header);
			if (header->offset & IPV6_OFFSET) {
				layers->protocol = protocol;
				layers->transport = offset;
				return PARSED_FRAGMENT;
			}
			continue;
		}
		/* The destination is not the last one yet, which the checksum is over (RFC 8200, section 8.1). */
		if (protocol == IPPROTO_ROUTING && ((const __u8 *)header)[3])
			return PARSED_OTHER;
		protocol = header->next;
		/* The second byte is the length in units of 8 bytes, without the first 8. */
		offset += (header->reserved + 1) * 8;
	}
	if (is_extension(protocol) || offset > 0xfff)
		return PARSED_OTHER;
	layers->protocol = protocol;
	layers->transport = offset;
	return parse_transport(data, end, layers, IPPROTO_ICMPV6);
}

/* Parses a packet up to its transport header. */
static always_inline enum parsed parse_packet(const void *data, const void *end, struct layers *layers)
{
	__u16 protocol = 0;
	__u32 network = parse_ethernet(data, end, &protocol);

	if (!network)
		return PARSED_MALFORMED;
	layers->network = network;
	if (protocol == NET16(ETH_P_IP))
		return parse_ipv4(data, end, layers);
	if (protocol == NET16(ETH_P_IPV6))
		return parse_ipv6(data, end, layers);
	return PARSED_OTHER;
}

#endif
