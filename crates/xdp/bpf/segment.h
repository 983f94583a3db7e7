/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Responses to TCP segments that no server sees: the frame becomes the response and goes back to its sender. */
#ifndef EVENER_SEGMENT_H
#define EVENER_SEGMENT_H

#include "checksum.h"
#include "forward.h"
#include "packet.h"

#define SEGMENT_HOPS 64

enum segment_flags {
	SEGMENT_SYN = 1 << 0,
	SEGMENT_ACK = 1 << 1,
};

/* A segment without data and options, in host order. */
struct segment {
	__u32 sequence;
	__u32 acknowledgement;
	__u16 window;
	__u16 flags;
};

#define FAMILY_AT(place_) (((place_) >> 20) & 0xf)
#define PROTOCOL_AT(place_) ((place_) >> 24)

/* Finds the headers of a packet of UDP or TCP again (see place_of). Returns 0 if the packet is too short. */
static always_inline int packet_at(struct packet *packet, struct xdp_md *context, __u32 place)
{
	__u32 network = place & 0x3f, transport = (place >> 8) & 0xfff;

	packet->context = context;
	packet->data = (void *)(long)context->data;
	packet->end = (void *)(long)context->data_end;
	packet->network = network;
	packet->protocol = PROTOCOL_AT(place);
	asm volatile("" : "+r"(network), "+r"(transport));
	packet->ip = packet->data + (network & 0x3f);
	packet->transport = packet->data + (transport & 0xfff);
	if (packet->ip + (FAMILY_AT(place) == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) > packet->end)
		return 0;
	return packet->transport + (PROTOCOL_AT(place) == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr)) <= packet->end;
}

static always_inline __u32 sum_of(const void *from, int bytes)
{
	const __u16 *word = from;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < bytes / 2; i++)
		sum += word[i];
	return sum;
}

static always_inline void write_segment(struct tcphdr *tcp, struct ports ports, const struct segment *segment, __u32 sum)
{
	*tcp = (struct tcphdr){
		.source = ports.destination,
		.dest = ports.source,
		.seq = NET32(segment->sequence),
		.ack_seq = NET32(segment->acknowledgement),
		.doff = sizeof(*tcp) / 4,
		.syn = !!(segment->flags & SEGMENT_SYN),
		.ack = !!(segment->flags & SEGMENT_ACK),
		.window = NET16(segment->window),
	};
	sum += sum_of(tcp, sizeof(*tcp)) + NET16(sizeof(*tcp)) + NET16(IPPROTO_TCP);
	tcp->check = ~fold(sum);
}

/* Replaces a packet by a response to it. Returns the action. */
static always_inline int respond_segment(struct packet *packet, int family, const struct segment *segment)
{
	struct ports ports = *(struct ports *)packet->transport;
	__u32 headers = family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	struct tcphdr *tcp = packet->ip + headers;
	void *data, *end;
	long surplus;

	if ((void *)(tcp + 1) > packet->end)
		return XDP_DROP;
	if (family == 4) {
		struct iphdr *ip = packet->ip;
		__u32 client = ip->saddr, local = ip->daddr;

		*ip = (struct iphdr){
			.version = 4,
			.ihl = sizeof(*ip) / 4,
			.tot_len = NET16(sizeof(*ip) + sizeof(*tcp)),
			.frag_off = NET16(0x4000),
			.ttl = SEGMENT_HOPS,
			.protocol = IPPROTO_TCP,
			.saddr = local,
			.daddr = client,
		};
		ip->check = ~fold(sum_of(ip, sizeof(*ip)));
		write_segment(tcp, ports, segment, sum_of(&ip->saddr, 8));
	} else {
		struct ipv6hdr *ip = packet->ip;
		struct in6_addr client = ip->saddr, local = ip->daddr;

		*ip = (struct ipv6hdr){
			.version = 6,
			.payload_len = NET16(sizeof(*tcp)),
			.nexthdr = IPPROTO_TCP,
			.hop_limit = SEGMENT_HOPS,
			.saddr = local,
			.daddr = client,
		};
		write_segment(tcp, ports, segment, sum_of(&ip->saddr, 32));
	}
	/* The verifier does not derive the length of the front from that of the whole. */
	data = (void *)(long)packet->context->data;
	end = (void *)(long)packet->context->data_end;
	asm volatile("" : "+r"(data), "+r"(end));
	if (data + sizeof(struct ethhdr) > end)
		return XDP_DROP;
	back_to_sender(data);
	surplus = end - data - (packet->network + headers + sizeof(*tcp));
	/* A frame that cannot be cut has a trailer, which receivers ignore. */
	if (surplus > 0)
		bpf_xdp_adjust_tail(packet->context, -surplus);
	return XDP_TX;
}

#endif
