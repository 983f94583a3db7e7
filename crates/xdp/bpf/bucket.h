/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Rates as times (GCRA): a bucket is the time until which its tokens are used up, and each token moves it. No map or
 * helper is used here.
 */
#ifndef EVENER_BUCKET_H
#define EVENER_BUCKET_H

#include "parse.h"

/* Other CPUs that may take a token in between. */
#define TOKEN_TRIES 16
/* A flood is over when SYNs have been slower than the limit for this time. */
#define FLOOD_MEMORY_NS 1000000000ULL

/*
 * Takes a token out of a bucket that several CPUs use. The bucket changes by compare-and-exchange, so no token is taken
 * twice. Returns 0 if there is none, or if the other CPUs were always faster.
 */
static always_inline int take_token(__u64 *bucket, __u64 now, __u64 token_ns, __u64 burst_ns)
{
	for (int try = 0; try < TOKEN_TRIES; try++) {
		__u64 before = *(volatile __u64 *)bucket, after = before;

		if (after < now)
			after = now;
		/* The limit was changed: the old bucket was larger. */
		if (after > now + burst_ns)
			after = now + burst_ns;
		after += token_ns;
		if (after > now + burst_ns)
			return 0;
		if (__sync_val_compare_and_swap(bucket, before, after) == before)
			return 1;
	}
	return 0;
}

/* Notes an event in the bucket of one CPU. Unlike a token, an event is noted although the bucket is full. */
static always_inline int is_flood(__u64 *bucket, __u64 now, __u64 event_ns, __u64 burst_ns)
{
	__u64 after = (*bucket < now ? now : *bucket) + event_ns;
	__u64 limit = now + burst_ns;

	*bucket = after < limit + FLOOD_MEMORY_NS ? after : limit + FLOOD_MEMORY_NS;
	return after > limit;
}

#endif
