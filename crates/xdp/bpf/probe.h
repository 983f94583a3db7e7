/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Choice of a server from a table. Whoever includes this header defines slot_of_table and server_takes before: the
 * program by look-ups in maps, the native test by look-ups in arrays.
 */
#ifndef EVENER_PROBE_H
#define EVENER_PROBE_H

#include "choose.h"
#include "contract.h"

/*
 * Server of the slot that the number names; servers of other slots if it does not take the client, until so many slots
 * were tried. 0 if there is none.
 */
static always_inline __u32 choose_from(void *table, __u32 slots, __u64 number, __u8 by, __u32 probes)
{
	for (__u32 probe = 0; probe < PROBES_MAX && probe < probes; probe++) {
		__u32 slot = by == CHOOSE_BY_CLIENT ? slot_of_client(number, probe, slots) :
						     slot_in_turn(number, probe, slots);
		__u32 position = slot_of_table(table, slot);

		if (server_takes(position, TAKES_NEW))
			return position;
	}
	return 0;
}

#endif
