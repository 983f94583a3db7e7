/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Ways out of the program: link-layer addresses and next hops. */
#ifndef EVENER_FORWARD_H
#define EVENER_FORWARD_H

#include "lookup.h"

/* Exchanges the MAC addresses, as two words. */
static always_inline int back_to_sender(void *data)
{
	__u64 *first = data;
	__u32 *last = data + 8;
	__u64 a = *first;
	__u32 b = *last;

	*first = (a >> 48) | ((__u64)b << 16) | (a << 48);
	*last = a >> 16;
	return XDP_TX;
}

static always_inline void copy_mac(void *to, const void *from)
{
	__u16 *after = to;
	const __u16 *before = from;

	after[0] = before[0];
	after[1] = before[1];
	after[2] = before[2];
}

static always_inline int out_of(struct xdp_md *context, __u32 ifindex)
{
	if (ifindex == context->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect(ifindex, 0);
}

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

/*
 * Looks the next hop of a rewritten packet up in the routing table. A packet whose next hop the kernel does not know
 * passes to the kernel, which asks for it and, with forwarding switched on, sends the packet.
 */
never_inline int by_route(struct xdp_md *context, __u32 network, __u32 service)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct bpf_fib_lookup fib = {};
	struct ethhdr *ethernet = data;
	struct iphdr *ip = data + (network & 0x3f);
	struct ipv6hdr *ip6 = (void *)ip;
	long found;

	if ((void *)(ethernet + 1) > end || (void *)(ip + 1) > end)
		return drop(service, REASON_INTERNAL);
	fib.ifindex = context->ingress_ifindex;
	if (ip->version == 4) {
		fib.family = AF_INET;
		fib.tot_len = __builtin_bswap16(ip->tot_len);
		fib.ipv4_src = ip->saddr;
		fib.ipv4_dst = ip->daddr;
	} else {
		if ((void *)(ip6 + 1) > end)
			return drop(service, REASON_INTERNAL);
		fib.family = AF_INET6;
		fib.tot_len = __builtin_bswap16(ip6->payload_len) + sizeof(*ip6);
		__builtin_memcpy(fib.ipv6_src, &ip6->saddr, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, &ip6->daddr, sizeof(fib.ipv6_dst));
	}
	found = bpf_fib_lookup(context, &fib, sizeof(fib), 0);
	/* The kernel fragments a packet if that is allowed. An error about this rewritten packet would reach nobody. */
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED && (fib.family == AF_INET6 || ip->frag_off & NET16(0x4000)))
		return drop(service, REASON_TOO_BIG);
	if (found != BPF_FIB_LKUP_RET_SUCCESS)
		return pass(service, REASON_NO_NEXT_HOP);
	copy_mac(ethernet->h_dest, fib.dmac);
	copy_mac(ethernet->h_source, fib.smac);
	return out_of(context, fib.ifindex);
}

/*
 * MTU of another interface than the one the packet came from, which has no packets that are larger than its own; 0 if it
 * is that one or there is no such interface.
 */
never_inline __u32 mtu_towards(struct xdp_md *context, __u32 ifindex)
{
	__u32 mtu = 0;

	if (!ifindex || ifindex == context->ingress_ifindex || bpf_check_mtu(context, ifindex, &mtu, 0, 0) < 0)
		return 0;
	return mtu;
}

static always_inline int to_server(struct xdp_md *context, void *data, __u32 network, __u32 service_slot,
				   const struct service *service, const struct server *server)
{
	if (likely(service->next_hop == NEXT_HOP_SENDER))
		return back_to_sender(data);
	if (unlikely(!server->ifindex))
		return by_route(context, network, service_slot);
	*(__u64 *)data = *(const __u64 *)server->destination_mac;
	*(__u32 *)(data + 8) = *(const __u32 *)(server->source_mac + 2);
	return out_of(context, server->ifindex);
}

/* Sends a packet to where the client's packets came from. */
static always_inline int to_client(struct xdp_md *context, void *data, const struct flow *flow)
{
	copy_mac(data, flow->mac);
	copy_mac(data + 6, flow->local_mac);
	return out_of(context, flow->ifindex);
}

/* Learns the next hop of a client from its packet. */
static always_inline void learn_hop(struct xdp_md *context, const void *data, struct flow *flow)
{
	__u32 ifindex = context->ingress_ifindex;
	const __u8 *mac = data + 6;

	if (likely(flow->ifindex == ifindex && *(__u32 *)flow->mac == *(const __u32 *)mac &&
		   *(__u16 *)(flow->mac + 4) == *(const __u16 *)(mac + 4)))
		return;
	flow->ifindex = ifindex;
	copy_mac(flow->mac, mac);
	copy_mac(flow->local_mac, data);
}

#endif
