/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Captures of packets before and after rewriting. The functions are called for services with SERVICE_CAPTURED only, so
 * that other packets pay for one test of a flag that is loaded anyway.
 */
#ifndef EVENER_CAPTURE_H
#define EVENER_CAPTURE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"
#include "maps.h"
#include "parse.h"

/* Entries of capture_turns. */
enum capture_turn {
	CAPTURE_PACKETS = 0,
	CAPTURE_NUMBER = 1,
};

struct captured_packet {
	struct captured head;
	__u8 bytes[CAPTURE_BYTES];
};

_Static_assert((CAPTURE_BYTES & (CAPTURE_BYTES - 1)) == 0, "a length is masked");

/* Writes a packet to the ring. A packet that the ring has no room for is not captured. */
static always_inline void capture_packet(struct xdp_md *context, const struct captured *head, __u32 bytes)
{
	struct captured_packet *packet = bpf_ringbuf_reserve(&captures, sizeof(*packet), 0);
	__u64 stored = head->length < bytes ? head->length : bytes;

	if (!packet)
		return;
	packet->head = *head;
	packet->head.stored = 0;
	if (stored > CAPTURE_BYTES)
		stored = CAPTURE_BYTES;
	/*
	 * The verifier has to see the limits of the register that it gets, and that of Linux 6.1 does not learn from a
	 * comparison with 0. A length of 0 becomes more than the packet has, and nothing is read.
	 */
	asm volatile("" : "+r"(stored));
	stored = ((stored - 1) & (CAPTURE_BYTES - 1)) + 1;
	if (!bpf_xdp_load_bytes(context, 0, packet->bytes, stored))
		packet->head.stored = stored;
	bpf_ringbuf_submit(packet, 0);
}

/* Ends a capture whose time is over or whose service is another one: packets of the service cost nothing again. */
static always_inline void capture_end(__u32 slot)
{
	struct service *service = bpf_map_lookup_elem(&services, &slot);

	if (service)
		__sync_fetch_and_and(&service->flags, ~SERVICE_CAPTURED);
}

/*
 * Captures an arriving packet of a service, if it is its turn. Returns the number of the captured packet, which
 * capture_after wants, or 0.
 */
__attribute__((noinline)) __u32 capture_before(struct xdp_md *context, __u32 service)
{
	__u32 zero = 0, one = CAPTURE_NUMBER;
	struct capture *capture = bpf_map_lookup_elem(&capturing, &zero);
	__u64 *packets = bpf_map_lookup_elem(&capture_turns, &zero);
	__u64 *number = bpf_map_lookup_elem(&capture_turns, &one);
	struct service_counters *counters = bpf_map_lookup_elem(&service_counts, &service);
	struct captured head = {};

	if (!context || !capture || !packets || !number || !counters)
		return 0;
	head.time_ns = bpf_ktime_get_ns();
	if (head.time_ns >= capture->until_ns || capture->service != service) {
		capture_end(service);
		return 0;
	}
	if ((*packets)++ % (capture->every ? capture->every : 1))
		return 0;
	/* The numbers of the CPUs are apart. */
	*number = (*number + 1) & 0xffffff;
	head.number = (__u32)*number << 8 | (bpf_get_smp_processor_id() & 0xff);
	if (!head.number)
		head.number = 1 << 8;
	head.service = service;
	head.length = bpf_xdp_get_buff_len(context);
	head.stage = CAPTURE_BEFORE;
	head.reason = REASONS;
	counters->reasons[LAST_REASON] = REASONS;
	capture_packet(context, &head, capture->bytes);
	return head.number;
}

/* Captures the packet of this number as it leaves, with the decision. */
__attribute__((noinline)) int capture_after(struct xdp_md *context, __u32 number, int action)
{
	__u32 service = 0;
	struct capture *capture = bpf_map_lookup_elem(&capturing, &service);
	struct service_counters *counters;
	struct captured head = {};

	if (!context || !capture || !number)
		return 0;
	service = capture->service;
	counters = bpf_map_lookup_elem(&service_counts, &service);
	if (!counters)
		return 0;
	head.time_ns = bpf_ktime_get_ns();
	head.service = service;
	head.number = number;
	if (action != XDP_DROP && action != XDP_ABORTED)
		head.length = bpf_xdp_get_buff_len(context);
	head.stage = CAPTURE_AFTER;
	head.reason = counters->reasons[LAST_REASON];
	head.action = action;
	capture_packet(context, &head, capture->bytes);
	return 0;
}

#endif
