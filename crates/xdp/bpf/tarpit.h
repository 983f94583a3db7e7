/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Tarpit of dark addresses, which have no host: scanners get a MAC address and a TCP connection that takes no data and
 * does not end. Nothing is stored: the client's first sequence number is in the sequence numbers of the tarpit.
 */
#ifndef EVENER_TARPIT_H
#define EVENER_TARPIT_H

#include "defend.h"

#define ARP_REQUEST NET16(1)
#define ARP_REPLY NET16(2)
#define ARP_ETHERNET NET16(1)
#define SOLICITATION 135
#define ADVERTISEMENT 136
/* Solicited; not override, so that a host with the address is preferred (RFC 4861, section 4.4). */
#define ADVERTISEMENT_SOLICITED NET32(0x40000000)
#define SOURCE_ADDRESS 1
#define TARGET_ADDRESS 2
#define NEIGHBOUR_HOPS 255
/* Window of the SYN-ACK: clients send a few bytes, and repeat them. */
#define TARPIT_WINDOW 10

/* ARP for IPv4 on Ethernet (RFC 826). */
struct arp {
	__u16 hardware;
	__u16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

/* A solicitation or advertisement with one address option (RFC 4861, section 4.3). */
struct neighbour {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 flags;
	struct in6_addr target;
	__u8 option;
	__u8 option_length;
	__u8 mac[6];
};

static always_inline int is_dark(int family, const void *address)
{
	return prefix_verdict(family, 0, address) == PREFIX_ADMITTED;
}

/* Sends a frame back, from another MAC address than it came to: a request may have come to a group. */
static always_inline int back_from(struct xdp_md *context, const __u8 *mac)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;

	asm volatile("" : "+r"(data), "+r"(end));
	if (data + sizeof(struct ethhdr) > end)
		return XDP_DROP;
	copy_mac(data, data + 6);
	copy_mac(data + 6, mac);
	return XDP_TX;
}

/* ARP requests. Probes and announcements (RFC 5227) get no response, so that a host can take a dark address. */
static always_inline int tarpit_arp(struct xdp_md *context, __u32 network, const struct tarpit *tarpit)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct arp *arp = data + (network & 0x3f);
	__u32 sender, target;

	if ((void *)(arp + 1) > end)
		return XDP_PASS;
	__builtin_memcpy(&sender, arp->sender, sizeof(sender));
	__builtin_memcpy(&target, arp->target, sizeof(target));
	if (arp->hardware != ARP_ETHERNET || arp->protocol != NET16(ETH_P_IP) || arp->hardware_length != 6 ||
	    arp->protocol_length != 4 || arp->operation != ARP_REQUEST || !sender || sender == target ||
	    !is_dark(4, &target))
		return XDP_PASS;
	count(0, REASON_TARPIT_ARP);
	arp->operation = ARP_REPLY;
	__builtin_memcpy(arp->target_mac, arp->sender_mac, 6);
	__builtin_memcpy(arp->target, &sender, sizeof(sender));
	__builtin_memcpy(arp->sender_mac, tarpit->mac, 6);
	__builtin_memcpy(arp->sender, &target, sizeof(target));
	return back_from(context, tarpit->mac);
}

/* Neighbour solicitations with the address of the sender, that is, not those of duplicate address detection. */
static always_inline int tarpit_neighbour(struct xdp_md *context, __u32 network, const struct tarpit *tarpit)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ipv6hdr *ip = data + (network & 0x3f);
	struct neighbour *neighbour = (void *)(ip + 1);
	struct in6_addr target;
	__u32 sum;

	if ((void *)(neighbour + 1) > end)
		return XDP_PASS;
	target = neighbour->target;
	if (ip->nexthdr != IPPROTO_ICMPV6 || ip->hop_limit != NEIGHBOUR_HOPS || neighbour->type != SOLICITATION ||
	    neighbour->code || ip->payload_len != NET16(sizeof(*neighbour)) || neighbour->option != SOURCE_ADDRESS ||
	    neighbour->option_length != 1 || !is_dark(6, &target))
		return XDP_PASS;
	count(0, REASON_TARPIT_ARP);
	ip->daddr = ip->saddr;
	ip->saddr = target;
	neighbour->type = ADVERTISEMENT;
	neighbour->flags = ADVERTISEMENT_SOLICITED;
	neighbour->option = TARGET_ADDRESS;
	__builtin_memcpy(neighbour->mac, tarpit->mac, 6);
	neighbour->check = 0;
	sum = sum_of(&ip->saddr, 32) + sum_of(neighbour, sizeof(*neighbour));
	neighbour->check = ~fold(sum + NET16(sizeof(*neighbour)) + NET16(IPPROTO_ICMPV6));
	return back_from(context, tarpit->mac);
}

/* Difference between the first sequence numbers of the tarpit and of a client. */
static always_inline __u32 tarpit_offset(const struct packet *packet, int family, __u64 key)
{
	const __u64 *words = source_of(packet, family);
	__u64 hash = hash_word(key, *(const __u32 *)packet->transport);

	/* Both addresses. */
	hash = hash_word(hash, words[0]);
	if (family == 6) {
		hash = hash_word(hash, words[1]);
		hash = hash_word(hash_word(hash, words[2]), words[3]);
	}
	return hash >> 32;
}

static always_inline __u32 data_length(const struct packet *packet, int family)
{
	const struct tcphdr *tcp = packet->transport;
	const struct iphdr *v4 = packet->ip;
	const struct ipv6hdr *v6 = packet->ip;
	__u32 length = family == 4 ? NET16(v4->tot_len) : NET16(v6->payload_len) + sizeof(*v6);

	return length - (__u32)(packet->transport - packet->ip) - tcp->doff * 4;
}

/*
 * A TCP segment for a dark address. A SYN gets a SYN-ACK. Data, FIN and probes of the closed window get the
 * acknowledgement of nothing, with the window closed: the client keeps the connection and tries again. Segments that
 * have none of these get no response, so that two tarpits do not answer each other.
 */
static always_inline int tarpit_tcp(struct packet *packet, int family, __u64 key)
{
	const struct tcphdr *tcp = packet->transport;
	__u32 offset = tarpit_offset(packet, family, key), sequence = NET32(tcp->seq), first;
	struct segment segment = { .flags = SEGMENT_ACK };

	if (tcp->syn && !tcp->ack && !tcp->rst) {
		count(0, REASON_TARPIT_SYN);
		segment.flags |= SEGMENT_SYN;
		segment.sequence = sequence + offset;
		segment.acknowledgement = sequence + 1;
		segment.window = TARPIT_WINDOW;
		return respond_segment(packet, family, &segment);
	}
	count(0, REASON_TARPIT_SEGMENT);
	if (tcp->syn || tcp->rst || !tcp->ack)
		return XDP_DROP;
	segment.sequence = NET32(tcp->ack_seq);
	first = segment.sequence - 1 - offset;
	/* Probes have the number before the next one. */
	if (sequence - first > 0xffff || (sequence != first && !tcp->fin && !data_length(packet, family)))
		return XDP_DROP;
	segment.acknowledgement = first + 1;
	return respond_segment(packet, family, &segment);
}

/* A TCP packet for no service. */
static always_inline int tarpit_packet(struct xdp_md *context, struct layers *layers, __u64 key)
{
	struct packet packet = { .network = layers->network, .protocol = layers->protocol };
	__u32 place = layers->network | (__u32)layers->transport << 8 | (__u32)layers->family << 20 |
		      (__u32)layers->protocol << 24;

	if (layers->protocol != IPPROTO_TCP || layers->fragmented || !packet_at(&packet, context, place) ||
	    packet.ip + sizeof(struct ipv6hdr) > packet.end || packet.transport + sizeof(struct tcphdr) > packet.end)
		return XDP_PASS;
	if (layers->family == 4)
		return is_dark(4, destination_of(&packet, 4)) ? tarpit_tcp(&packet, 4, key) : XDP_PASS;
	return is_dark(6, destination_of(&packet, 6)) ? tarpit_tcp(&packet, 6, key) : XDP_PASS;
}

static always_inline int has_tarpit(void)
{
	struct config *settings = config();

	return settings && settings->flags & CONFIG_TARPIT;
}

/* Decides on a frame that no service takes. Returns the action. */
never_inline int tarpit(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	__u32 zero = 0, ifindex = context->ingress_ifindex, network;
	struct config *config = bpf_map_lookup_elem(&settings, &zero);
	struct tarpit *tarpit = bpf_map_lookup_elem(&tarpits, &ifindex);
	struct layers layers = {};
	__u16 protocol = 0;
	enum parsed parsed;

	if (!config || !tarpit)
		return XDP_PASS;
	network = parse_ethernet(data, end, &protocol);
	if (!network)
		return XDP_PASS;
	if (protocol == NET16(ETH_P_ARP))
		return tarpit_arp(context, network, tarpit);
	parsed = parse_packet(data, end, &layers);
	if (parsed == PARSED_ICMP && layers.family == 6)
		return tarpit_neighbour(context, network, tarpit);
	if (parsed != PARSED_TRANSPORT)
		return XDP_PASS;
	return tarpit_packet(context, &layers, config->key);
}

#endif
