// SPDX-License-Identifier: MIT OR Apache-2.0
/* A small program with the maps of the real one, which the kernel verifies in no time. It notes the source of each packet. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"
#include "maps.h"

SEC("xdp")
int evener(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct flow_key_v4 key = { .vip = 1 };
	struct flow flow = { .server = 1 | 1 << FLOW_SLOT_BITS };
	__u32 zero = 0;

	if (!bpf_map_lookup_elem(&settings, &zero) || (void *)(udp + 1) > end)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	key.address = ip->saddr;
	key.port = udp->source;
	bpf_map_update_elem(&flows_v4, &key, &flow, BPF_NOEXIST);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
