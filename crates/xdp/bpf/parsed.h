/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The parser as a function that is verified apart: its many ways to a result become one value. */
#ifndef EVENER_PARSED_H
#define EVENER_PARSED_H

#include "parse.h"

static always_inline __u64 pack(enum parsed parsed, const struct layers *layers)
{
	return (parsed & 7) | (__u32)(layers->family & 7) << 3 | (__u32)(layers->fragmented & 1) << 6 |
	       (__u32)layers->protocol << 8 | (__u64)(layers->fragment_id) << 32 | (__u32)(layers->transport & 0xfff) << 16;
}

/* The offset of the network header is not in the result. */
static always_inline enum parsed unpack(__u64 packed, struct layers *layers)
{
	*layers = (struct layers){
		.family = packed >> 3 & 7,
		.fragmented = packed >> 6 & 1,
		.protocol = packed >> 8,
		.transport = packed >> 16 & 0xfff,
		.fragment_id = packed >> 32,
	};
	return packed & 7;
}

/* Parses the packet, or the quotation at an offset if that is not 0. */
never_inline __u64 parse(struct xdp_md *context, __u32 network, __u32 family)
{
	const void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct layers layers = { .network = network & 0xfff, .quoted = 1 };
	enum parsed parsed;

	if (network && family == 4) {
		parsed = parse_ipv4(data, end, &layers);
	} else if (network) {
		parsed = parse_ipv6(data, end, &layers);
	} else {
		layers.quoted = 0;
		parsed = parse_packet(data, end, &layers);
	}
	return pack(parsed, &layers);
}

#endif
