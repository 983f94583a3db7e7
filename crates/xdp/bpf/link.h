/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Ethernet headers with up to two VLAN tags, while the front of a packet moves. */
#ifndef EVENER_LINK_H
#define EVENER_LINK_H

#include "forward.h"

/* Bytes of an Ethernet header with two tags. */
#define LINK_MAX 22
/* Bound of the room in front of a packet that the verifier knows. */
#define LINK_ROOM_MASK 63

/* The address at an offset. The verifier needs a bound that the compiler cannot drop. */
static always_inline void *link_at(void *data, __u32 offset)
{
	asm volatile("" : "+r"(offset));
	return data + (offset & 127);
}

/*
 * Makes room bytes between the Ethernet header and the IP header at l3, whose type is replaced. Returns 0, or -1 if the
 * driver has no space.
 */
never_inline int link_open(struct xdp_md *context, __u32 l3, __u32 room, __u32 type)
{
	void *data, *end;
	__u16 *to, *from;

	room &= LINK_ROOM_MASK;
	if (bpf_xdp_adjust_head(context, -(int)room))
		return -1;
	data = (void *)(long)context->data;
	end = (void *)(long)context->data_end;
	to = data;
	from = data + room;
	if (data + LINK_MAX > end || (void *)from + LINK_MAX > end)
		return -1;
	/* The lower bytes are read before they are written: the header moves down. */
	for (__u32 i = 0; i < LINK_MAX / 2; i++) {
		if (i * 2 >= l3)
			break;
		to[i] = from[i];
	}
	to = link_at(data, l3 - 2);
	if ((void *)(to + 1) > end)
		return -1;
	*to = type;
	return 0;
}

#endif
