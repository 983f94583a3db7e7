/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Ethernet headers with up to two VLAN tags, kept while the front of a packet moves. No map or helper is used here. */
#ifndef EVENER_LINK_H
#define EVENER_LINK_H

#include "parse.h"

/* Words of 16 bits: an Ethernet header has 7, a VLAN tag 2. */
#define LINK_WORDS 11

struct link_header {
	/* Destination, source, tags, and the type of the packet at the end. */
	__u16 words[LINK_WORDS];
};

#define LINK_COPY(to_, from_, words_)						\
	do {									\
		_Pragma("unroll") for (int word = 0; word < (words_); word++)	\
			(to_)[word] = (from_)[word];				\
	} while (0)

/* Copies the l3 bytes before the IP header. Returns 0, or -1 if there are not so many, or not 0 to 2 tags. */
static always_inline int link_save(struct link_header *link, const void *data, const void *end,
							   __u32 l3)
{
	const __u16 *from = data;

	if (data + 14 > end)
		return -1;
	LINK_COPY(link->words, from, 7);
	if (l3 == 14)
		return 0;
	if (data + 18 > end)
		return -1;
	LINK_COPY(link->words + 7, from + 7, 2);
	if (l3 == 18)
		return 0;
	if (data + 22 > end)
		return -1;
	LINK_COPY(link->words + 9, from + 9, 2);
	return l3 == 22 ? 0 : -1;
}

/* Writes the header of l3 bytes at data. Returns 0, or -1 if there is no room. */
static always_inline int link_restore(const struct link_header *link, void *data,
							      const void *end, __u32 l3)
{
	__u16 *to = data;

	if (data + 14 > end)
		return -1;
	LINK_COPY(to, link->words, 7);
	if (l3 == 14)
		return 0;
	if (data + 18 > end)
		return -1;
	LINK_COPY(to + 7, link->words + 7, 2);
	if (l3 == 18)
		return 0;
	if (data + 22 > end)
		return -1;
	LINK_COPY(to + 9, link->words + 9, 2);
	return l3 == 22 ? 0 : -1;
}

/* Returns the address of the IP header. The verifier needs a bound of l3 that the compiler cannot drop. */
static always_inline void *link_payload(void *data, __u32 l3)
{
	asm volatile("" : "+r"(l3));
	return data + (l3 & 31);
}

/* Exchanges source and destination. */
static always_inline void link_exchange(struct link_header *link)
{
#pragma unroll
	for (int word = 0; word < 3; word++) {
		__u16 destination = link->words[word];

		link->words[word] = link->words[word + 3];
		link->words[word + 3] = destination;
	}
}

/* Returns 1 if the frame was sent to a group of hosts, or to all. */
static always_inline int link_is_group(const struct link_header *link)
{
	return *(const __u8 *)link->words & 1;
}

/* Replaces the type of the packet, in network order. */
static always_inline void link_set_type(struct link_header *link, __u32 l3, __u16 type)
{
	if (l3 == 14)
		link->words[6] = type;
	else if (l3 == 18)
		link->words[8] = type;
	else
		link->words[10] = type;
}

#endif
