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

/* Number of the next hop of a client; 0 if it is unknown. */
static always_inline __u32 hop_of_flow(const struct flow *flow)
{
	return flow->hop_and_used & (HOPS_MAX - 1);
}

/* Sends a packet to a next hop of clients: to where their packets came from, or by the routing table if it is unknown. */
static always_inline int to_client(struct xdp_md *context, void *data, __u32 network, __u32 service, __u32 number)
{
	struct hop *hop = number ? bpf_map_lookup_elem(&hops, &number) : NULL;

	if (!hop || !hop->ifindex)
		return by_route(context, network, service);
	copy_mac(data, hop->mac);
	copy_mac(data + ETH_ALEN, hop->local_mac);
	return out_of(context, hop->ifindex);
}

/* MTU towards a client, by the number of its next hop, as mtu_towards. */
never_inline __u32 mtu_towards_client(struct xdp_md *context, __u32 number)
{
	struct hop *hop = number ? bpf_map_lookup_elem(&hops, &number) : NULL;

	return hop ? mtu_towards(context, hop->ifindex) : 0;
}

/* Gives a next hop a number. Returns 0 if all are taken. */
static always_inline __u32 number_hop(const struct hop *hop)
{
	__u32 zero = 0, number, *taken = bpf_map_lookup_elem(&hops_taken, &zero), *other;

	if (!taken || *taken >= HOPS_MAX - 1)
		return 0;
	number = __sync_fetch_and_add(taken, 1) + 1;
	if (number >= HOPS_MAX || bpf_map_update_elem(&hops, &number, hop, BPF_ANY))
		return 0;
	if (!bpf_map_update_elem(&hop_numbers, hop, &number, BPF_NOEXIST))
		return number;
	/* Another CPU was faster. */
	other = bpf_map_lookup_elem(&hop_numbers, hop);
	return other ? *other : 0;
}

/* Number of the next hop that a packet came from; 0 if there are too many. */
never_inline __u32 learn_hop(struct xdp_md *context)
{
	const void *data = (void *)(long)context->data;
	struct hop hop = { .ifindex = context->ingress_ifindex };
	__u32 *number;

	if (data + sizeof(struct ethhdr) > (void *)(long)context->data_end)
		return 0;
	copy_mac(hop.mac, data + ETH_ALEN);
	copy_mac(hop.local_mac, data);
	number = bpf_map_lookup_elem(&hop_numbers, &hop);
	return number ? *number : number_hop(&hop);
}

/* Keeps the next hop of a client up to date by its packet. */
static always_inline void follow_hop(struct xdp_md *context, const void *data, struct flow *flow)
{
	__u32 number = hop_of_flow(flow);
	struct hop *hop = bpf_map_lookup_elem(&hops, &number);
	const __u8 *mac = data + ETH_ALEN;

	if (!hop || likely(hop->ifindex == context->ingress_ifindex && *(__u32 *)hop->mac == *(const __u32 *)mac &&
			   *(__u16 *)(hop->mac + 4) == *(const __u16 *)(mac + 4)))
		return;
	flow->hop_and_used = (flow->hop_and_used & ~(HOPS_MAX - 1)) | learn_hop(context);
}

#endif
