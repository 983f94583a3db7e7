// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs of `cargo xtask bench xdp`; they are no part of the plane. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PACKET_WORDS 8
#define PACKET_LENGTH (PACKET_WORDS * 8)

struct plan {
	/* The packet that the measured program gets. */
	__u64 packet[PACKET_WORDS];
	/* Number of clients less one, a power of two less one; 0: the packet is not changed. */
	__u32 mask;
	/* Offset of the word of the client's address that is changed. */
	__u32 offset;
	/* 1: the client's port is changed instead, by the last 16 bits of the counter. */
	__u32 port;
	__u32 reserved;
};

struct keys {
	/* Keys from `from` on, `step` apart. */
	__u32 from;
	__u32 step;
};

/* What the programs for an LRU map counted. */
struct counts {
	__u64 at;
	__u64 present;
	__u64 busy;
	__u64 no_memory;
	__u64 other_errors;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} measured SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} received SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct keys);
} ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counts);
} counted SEC(".maps");

/* Key and value have the sizes of flows_v4. */
struct lru_key {
	__u32 address;
	__u32 port_and_vip;
};

struct lru_value {
	__u64 word;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct lru_key);
	__type(value, struct lru_value);
} lru SEC(".maps");

/*
 * Restores the packet, which the kernel does not do between repetitions, changes the client, and calls the measured
 * program.
 */
SEC("xdp")
int measure(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	__u64 *counter = bpf_map_lookup_elem(&counters, &zero);

	if (!plan || !counter)
		return XDP_ABORTED;
	if (end - data != PACKET_LENGTH) {
		/* The measured program has put a header in front. */
		if (bpf_xdp_adjust_head(context, end - data - PACKET_LENGTH))
			return XDP_ABORTED;
		data = (void *)(long)context->data;
		end = (void *)(long)context->data_end;
	}
	if (data + PACKET_LENGTH > end)
		return XDP_ABORTED;
	for (int i = 0; i < PACKET_WORDS; i++)
		((__u64 *)data)[i] = plan->packet[i];
	if (plan->mask) {
		__u32 client = (__u32)(*counter)++ & plan->mask;
		__u32 offset = plan->offset & 63;

		if (plan->port) {
			if (data + offset + 2 > end)
				return XDP_ABORTED;
			*(__u16 *)(data + offset) = client;
		} else {
			if (data + offset + 4 > end)
				return XDP_ABORTED;
			/* An odd factor: each client has an address of its own. */
			*(__u32 *)(data + offset) = client * 2654435761u;
		}
	}
	bpf_tail_call(context, &measured, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int send_back(struct xdp_md *context __attribute__((unused)))
{
	return XDP_TX;
}

SEC("xdp")
int pass(struct xdp_md *context __attribute__((unused)))
{
	return XDP_PASS;
}

/* Counts the packets that come out of the measured system, and drops them. Other packets pass. */
SEC("xdp")
int receive(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&received, &zero);
	__u8 *packet = data;

	/* IPv4 without options, UDP. */
	if (!count || data + 42 > end)
		return XDP_PASS;
	if (packet[12] != 8 || packet[13] != 0 || packet[23] != 17)
		return XDP_PASS;
	(*count)++;
	return XDP_DROP;
}

static __always_inline struct lru_key next_key(struct keys *range, struct counts *counts)
{
	struct lru_key key = { .address = (range->from + (__u32)counts->at * range->step) * 2654435761u };

	counts->at++;
	return key;
}

/* Writes the next key. */
SEC("xdp")
int fill(struct xdp_md *context __attribute__((unused)))
{
	__u32 zero = 0;
	struct keys *range = bpf_map_lookup_elem(&ranges, &zero);
	struct counts *counts = bpf_map_lookup_elem(&counted, &zero);
	struct lru_value value = {};
	struct lru_key key;

	if (!range || !counts)
		return XDP_ABORTED;
	key = next_key(range, counts);
	switch (bpf_map_update_elem(&lru, &key, &value, BPF_ANY)) {
	case 0:
		break;
	case -16:
		counts->busy++;
		break;
	case -12:
		counts->no_memory++;
		break;
	default:
		counts->other_errors++;
	}
	return XDP_PASS;
}

/* Looks the next key up. */
SEC("xdp")
int find(struct xdp_md *context __attribute__((unused)))
{
	__u32 zero = 0;
	struct keys *range = bpf_map_lookup_elem(&ranges, &zero);
	struct counts *counts = bpf_map_lookup_elem(&counted, &zero);
	struct lru_key key;

	if (!range || !counts)
		return XDP_ABORTED;
	key = next_key(range, counts);
	if (bpf_map_lookup_elem(&lru, &key))
		counts->present++;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
