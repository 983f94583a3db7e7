/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Test fixture: a program that passes every packet. A veth delivers the frames of XDP_TX and XDP_REDIRECT only if its
 * peer has an XDP program, too.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
