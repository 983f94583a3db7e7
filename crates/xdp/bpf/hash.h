/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Hashes that the loader computes in the same way. No map or helper is used here. */
#ifndef EVENER_HASH_H
#define EVENER_HASH_H

#include <linux/types.h>

#define HASH_FIRST 0x9e3779b97f4a7c15ULL
#define HASH_SECOND 0xd6e8feb86659fd93ULL

static inline __attribute__((always_inline)) __u64 hash_word(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * HASH_FIRST;
	return hash ^ (hash >> 32);
}

/*
 * The hash of an endpoint. Its entry is in one of two buckets: the low bits of the hash name the first, the bits from 32
 * on the second.
 */
static inline __attribute__((always_inline)) __u64 hash_endpoint_v4(__u64 key)
{
	return hash_word(0, key) * HASH_SECOND;
}

static inline __attribute__((always_inline)) __u64 hash_endpoint_v6(__u64 high, __u64 low, __u32 port_protocol_kind)
{
	return hash_word(hash_word(hash_word(0, high), low), port_protocol_kind) * HASH_SECOND;
}

#endif
