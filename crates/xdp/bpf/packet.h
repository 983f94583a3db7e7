/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A packet on its way through the program. Functions get the family as a constant, so that they are compiled for each. */
#ifndef EVENER_PACKET_H
#define EVENER_PACKET_H

#include "checksum.h"
#include "parsed.h"

/* The pointers are valid: the headers were checked. */
struct packet {
	struct xdp_md *context;
	void *data;
	void *end;
	/* IP header and its offset. */
	void *ip;
	__u32 network;
	/* Header of UDP or TCP. */
	void *transport;
	__u8 protocol;
	/* Result of parse(); 0 for simple packets. */
	__u64 parsed;
};
/*
 * Restores a parsed packet. Returns 0 if it is too short, which was checked before: the check is for the verifier, which
 * knows nothing about results of functions that it verifies apart.
 */
static always_inline int restore(struct packet *packet, struct xdp_md *context, __u32 network, __u64 parsed, int family)
{
	struct layers layers;

	unpack(parsed, &layers);
	packet->context = context;
	packet->data = (void *)(long)context->data;
	packet->end = (void *)(long)context->data_end;
	packet->network = network;
	packet->ip = packet->data + (network & 0x3f);
	packet->transport = packet->data + layers.transport;
	packet->protocol = layers.protocol;
	packet->parsed = parsed;
	if (packet->data + ETH_HLEN > packet->end)
		return 0;
	return packet->ip + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) <= packet->end;
}


static always_inline __u32 length_of(const struct packet *packet)
{
	return packet->end - packet->data;
}

/* True if the IP packet is larger than an MTU. 0: the MTU is not known. */
static always_inline int exceeds(const struct packet *packet, __u32 mtu)
{
	return mtu && length_of(packet) - packet->network > mtu;
}

static always_inline void *source_of(const struct packet *packet, int family)
{
	struct iphdr *v4 = packet->ip;
	struct ipv6hdr *v6 = packet->ip;

	return family == 4 ? (void *)&v4->saddr : (void *)&v6->saddr;
}

static always_inline void *destination_of(const struct packet *packet, int family)
{
	struct iphdr *v4 = packet->ip;
	struct ipv6hdr *v6 = packet->ip;

	return family == 4 ? (void *)&v4->daddr : (void *)&v6->daddr;
}

static always_inline __u8 hops_of(const struct packet *packet, int family)
{
	struct iphdr *v4 = packet->ip;
	struct ipv6hdr *v6 = packet->ip;

	return family == 4 ? v4->ttl : v6->hop_limit;
}

static always_inline void copy_address(int family, void *to, const void *from)
{
	__u64 *after = to;
	const __u64 *before = from;

	if (family == 4) {
		*(__u32 *)to = *(const __u32 *)from;
		return;
	}
	after[0] = before[0];
	after[1] = before[1];
}

static always_inline int is_same_address(int family, const void *a, const void *b)
{
	const __u64 *left = a, *right = b;

	if (family == 4)
		return *(const __u32 *)a == *(const __u32 *)b;
	return left[0] == right[0] && left[1] == right[1];
}

/* TCP packets that do not begin a connection. */
static always_inline int is_mid_flow(const struct packet *packet)
{
	const struct tcphdr *tcp = packet->transport;

	return packet->protocol == IPPROTO_TCP && (void *)(tcp + 1) <= packet->end && !tcp->syn;
}

/* Replaces an address. Returns the difference. */
static always_inline __u64 rewrite_address(int family, void *address, const void *after)
{
	__u64 difference = family == 4 ? difference32(*(__u32 *)address, *(const __u32 *)after) :
					 difference128(address, after);

	copy_address(family, address, after);
	return difference;
}

/* Replaces a port if the new one is not 0. Returns the difference. */
static always_inline __u64 rewrite_port(__u16 *port, __u16 after)
{
	__u16 before = *port;

	if (likely(!after))
		return 0;
	*port = after;
	return difference16(before, after);
}

static always_inline void rewrite_transport(const struct packet *packet, __u64 difference)
{
	if (packet->protocol == IPPROTO_UDP) {
		struct udphdr *udp = packet->transport;

		udp->check = udp_checksum_after(udp->check, difference);
	} else {
		struct tcphdr *tcp = packet->transport;

		/* The caller checked this; the verifier has forgotten it where the protocol was copied. */
		if ((void *)(tcp + 1) <= packet->end)
			tcp->check = checksum_after(tcp->check, difference);
	}
}

/* Subtracts one from the time to live: its word decreases by 1, that is, 0xfffe is added to the sum of IPv4. */
static always_inline void rewrite_network(const struct packet *packet, int family, __u64 difference)
{
	struct iphdr *v4 = packet->ip;
	struct ipv6hdr *v6 = packet->ip;

	if (family == 4) {
		v4->ttl--;
		v4->check = checksum_after(v4->check, difference + 0xfffe);
	} else {
		v6->hop_limit--;
	}
}

#endif
