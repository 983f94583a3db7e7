// SPDX-License-Identifier: MIT OR Apache-2.0
/* A program that is not the plane's. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int foreign(struct xdp_md *context __attribute__((unused)))
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
