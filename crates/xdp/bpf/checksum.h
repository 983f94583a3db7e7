/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Incremental updates of Internet checksums (RFC 1624). A difference is a sum of words of 16 or 32 bits, in network
 * order, that is folded when it is applied: up to 2^16 words can be summed up before that.
 */
#ifndef EVENER_CHECKSUM_H
#define EVENER_CHECKSUM_H

#include "parse.h"

static always_inline __u64 difference16(__u16 before, __u16 after)
{
	return (__u64)(__u16)~before + after;
}

static always_inline __u64 difference32(__u32 before, __u32 after)
{
	return (__u64)(__u32)~before + after;
}

static always_inline __u64 difference128(const __u32 *before, const __u32 *after)
{
	return difference32(before[0], after[0]) + difference32(before[1], after[1]) +
	       difference32(before[2], after[2]) + difference32(before[3], after[3]);
}

static always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static always_inline __u16 checksum_after(__u16 check, __u64 difference)
{
	return ~fold((__u16)~check + difference);
}

/* A zero checksum of UDP means that there is none (RFC 768), and a computed zero is sent as 0xffff. */
static always_inline __u16 udp_checksum_after(__u16 check, __u64 difference)
{
	__u16 after = checksum_after(check, difference);

	if (check == 0)
		return 0;
	return after ? after : 0xffff;
}

#endif
