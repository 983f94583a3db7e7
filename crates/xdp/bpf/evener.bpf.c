// SPDX-License-Identifier: MIT OR Apache-2.0
/* The XDP program: forwards packets of the services that the loader wrote into the maps. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"
#include "maps.h"
#include "nat.h"

/* All packets that are not simple: VLAN tags, options, extension headers, fragments, ICMP, truncated packets. */
never_inline int handle_any(struct xdp_md *context)
{
	struct packet packet = {
		.context = context,
		.data = (void *)(long)context->data,
		.end = (void *)(long)context->data_end,
	};
	struct layers layers = {};
	enum parsed parsed = parse_packet(packet.data, packet.end, &layers);

	if (parsed == PARSED_MALFORMED)
		return drop(0, REASON_MALFORMED);
	if (parsed != PARSED_TRANSPORT)
		return pass_or_tarpit(context);
	packet.network = layers.network;
	packet.ip = packet.data + (layers.network & 0x3f);
	packet.transport = packet.data + (layers.transport & 0xfff);
	packet.protocol = layers.protocol;
	packet.fragmented = layers.fragmented;
	packet.fragment_id = layers.fragment_id;
	if (packet.transport + sizeof(struct udphdr) > packet.end ||
	    (packet.protocol == IPPROTO_TCP && packet.transport + sizeof(struct tcphdr) > packet.end))
		return drop(0, REASON_MALFORMED);
	if (layers.family == 4 && packet.ip + sizeof(struct iphdr) <= packet.end)
		return handle(&packet, 4, 0);
	if (layers.family == 6 && packet.ip + sizeof(struct ipv6hdr) <= packet.end)
		return handle(&packet, 6, 0);
	return XDP_PASS;
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
		if (unlikely(packet.transport + sizeof(struct udphdr) > end))
			return handle_any(context);
		packet.protocol = ip->nexthdr;
		if (packet.protocol == IPPROTO_UDP)
			return handle(&packet, 6, 1);
		if (packet.protocol == IPPROTO_TCP && packet.transport + sizeof(struct tcphdr) <= end)
			return handle(&packet, 6, 1);
	} else if (!is_vlan(ethernet->h_proto)) {
		return pass_or_tarpit(context);
	}
	return handle_any(context);
}

char _license[] SEC("license") = "Dual MIT/GPL";
