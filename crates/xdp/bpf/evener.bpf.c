// SPDX-License-Identifier: MIT OR Apache-2.0
/* The XDP program: forwards packets of the services that the loader wrote into the maps. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"
#include "maps.h"
#include "icmp.h"
#include "nat.h"
#include "parsed.h"

static always_inline int any_fragment(struct xdp_md *context, __u32 network, __u64 parsed, int family)
{
	struct packet packet;

	if (!restore(&packet, context, network, parsed, family))
		return XDP_DROP;
	return handle_fragment(&packet, family);
}

static always_inline int any_icmp(struct xdp_md *context, __u32 network, __u64 parsed, int family)
{
	struct packet packet;

	if (!restore(&packet, context, network, parsed, family) ||
	    packet.transport + sizeof(struct icmp_header) > packet.end)
		return XDP_DROP;
	return handle_icmp(&packet, family);
}

static always_inline int any_transport(struct xdp_md *context, __u32 network, __u64 parsed, int family)
{
	struct packet packet;

	if (!restore(&packet, context, network, parsed, family) ||
	    packet.transport + sizeof(struct udphdr) > packet.end)
		return XDP_DROP;
	return handle(&packet, family, 0);
}

never_inline int fragment_v4(struct xdp_md *context, __u32 network, __u64 parsed)
{
	return any_fragment(context, network, parsed, 4);
}

never_inline int fragment_v6(struct xdp_md *context, __u32 network, __u64 parsed)
{
	return any_fragment(context, network, parsed, 6);
}

never_inline int icmp_v4(struct xdp_md *context, __u32 network, __u64 parsed)
{
	return any_icmp(context, network, parsed, 4);
}

never_inline int icmp_v6(struct xdp_md *context, __u32 network, __u64 parsed)
{
	return any_icmp(context, network, parsed, 6);
}

never_inline int transport_v4(struct xdp_md *context, __u32 network, __u64 parsed)
{
	return any_transport(context, network, parsed, 4);
}

never_inline int transport_v6(struct xdp_md *context, __u32 network, __u64 parsed)
{
	return any_transport(context, network, parsed, 6);
}

/* All packets that are not simple: VLAN tags, options, extension headers, fragments, ICMP, truncated packets. */
never_inline int handle_any(struct xdp_md *context)
{
	__u64 packed = parse(context, 0, 0);
	struct layers layers;
	enum parsed parsed = unpack(packed, &layers);
	__u16 type;
	__u32 network = parse_ethernet((void *)(long)context->data, (void *)(long)context->data_end, &type);
	__u32 place = network | (__u32)layers.family << 20 | (__u32)layers.protocol << 24;
	int is_v4 = layers.family == 4;

	switch (parsed) {
	case PARSED_TRANSPORT:
		return is_v4 ? transport_v4(context, network, packed) : transport_v6(context, network, packed);
	case PARSED_ICMP:
		if (!is_v4 && has_tarpit() && tarpit(context) == XDP_TX)
			return XDP_TX;
		return is_v4 ? icmp_v4(context, network, packed) : icmp_v6(context, network, packed);
	case PARSED_FRAGMENT:
		return is_v4 ? fragment_v4(context, network, packed) : fragment_v6(context, network, packed);
	case PARSED_MALFORMED:
		return reject(context, place, 0, REASON_MALFORMED);
	default:
		return pass_other(context, place);
	}
}

SEC("xdp")
int evener(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethhdr *ethernet = data;
	struct packet packet = { .context = context, .data = data, .end = end, .ip = ethernet + 1, .network = ETH_HLEN };

	if (unlikely(packet.ip + sizeof(struct iphdr) + sizeof(struct udphdr) > end))
		return handle_any(context);
	if (ethernet->h_proto == NET16(ETH_P_IP)) {
		struct iphdr *ip = packet.ip;

		packet.transport = ip + 1;
		packet.protocol = ip->protocol;
		if (unlikely(*(__u8 *)ip != 0x45 || ip->frag_off & IPV4_FRAGMENTED))
			return handle_any(context);
		if (packet.protocol == IPPROTO_UDP)
			return handle(&packet, 4, 1);
		if (packet.protocol == IPPROTO_TCP && packet.transport + sizeof(struct tcphdr) <= end)
			return handle(&packet, 4, 1);
	} else if (ethernet->h_proto == NET16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = packet.ip;

		packet.transport = ip + 1;
		if (unlikely(packet.transport + sizeof(struct udphdr) > end || (*(__u8 *)ip & 0xf0) != 0x60))
			return handle_any(context);
		packet.protocol = ip->nexthdr;
		if (packet.protocol == IPPROTO_UDP)
			return handle(&packet, 6, 1);
		if (packet.protocol == IPPROTO_TCP && packet.transport + sizeof(struct tcphdr) <= end)
			return handle(&packet, 6, 1);
	}
	return handle_any(context);
}

char _license[] SEC("license") = "Dual MIT/GPL";
