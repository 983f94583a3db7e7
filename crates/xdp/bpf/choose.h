/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Choice of servers as in core::policy: hashes and slots of tables. No map or helper is used here. */
#ifndef EVENER_CHOOSE_H
#define EVENER_CHOOSE_H

#include "hash.h"
#include "parse.h"

#define PLACEMENT_SEED 0x6576656e65722031ULL
#define MIX_LAST 0x5851f42d4c957f2dULL

/* Slots that are tried until one has a server that takes the client. */
#define PROBES_MAX 8

/* Exclusive or of the two halves of a product of 128 bits, which BPF does not have. */
static always_inline __u64 fold_product(__u64 a, __u64 b)
{
	__u64 a_low = (__u32)a, a_high = a >> 32, b_low = (__u32)b, b_high = b >> 32;
	__u64 middle = a_high * b_low + ((a_low * b_low) >> 32);
	__u64 other = a_low * b_high + (__u32)middle;
	__u64 high = a_high * b_high + (middle >> 32) + (other >> 32);

	return (a * b) ^ high;
}

/* core::hash::of_client; the address as a number of 128 bits in host order. */
static always_inline __u64 hash_client(__u64 high, __u64 low)
{
	return fold_product(fold_product(PLACEMENT_SEED ^ low, HASH_FIRST) ^ high, HASH_SECOND);
}

static always_inline __u64 hash_client_v4(__u32 address)
{
	return hash_client(0, __builtin_bswap32(address));
}

static always_inline __u64 hash_client_v6(const __u32 *address)
{
	__u64 high = ((__u64)__builtin_bswap32(address[0]) << 32) | __builtin_bswap32(address[1]);
	__u64 low = ((__u64)__builtin_bswap32(address[2]) << 32) | __builtin_bswap32(address[3]);

	return hash_client(high, low);
}

/* core::hash::mix */
static always_inline __u64 mix(__u64 a, __u64 b)
{
	return fold_product(fold_product(a ^ HASH_FIRST, b ^ HASH_SECOND) ^ a, MIX_LAST);
}

/* Slot that the client's hash names at a probe, as core::policy::maglev does. */
static always_inline __u32 slot_of_client(__u64 client, __u32 probe, __u32 slots)
{
	return (probe ? mix(client, probe) : client) % slots;
}

static always_inline __u32 slot_in_turn(__u64 turn, __u32 probe, __u32 slots)
{
	return (turn + probe) % slots;
}

#endif
