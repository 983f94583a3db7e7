/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Servers of QUIC connections, by the server IDs in connection IDs. */
#ifndef EVENER_QUIC_ROUTE_H
#define EVENER_QUIC_ROUTE_H

#include "lookup.h"
#include "quic.h"

/*
 * Returns the slot of the server that the connection ID of a datagram names, or 0. The UDP header is at an offset. A server
 * that drains gets the packets of its connections.
 */
never_inline __u32 quic_server(struct xdp_md *context, __u32 transport, __u32 service_slot)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct service *service = service_at(service_slot);
	struct quic_key key = { .service = service_slot };
	struct slot_and_id *named;
	struct udphdr *udp;
	__u32 needed;

	if (!service)
		return 0;
	key.length = service->quic_id_length;
	udp = data + (transport & 0xfff);
	if ((void *)(udp + 1) + 1 > end)
		return 0;
	/* The padding of a short frame is not a connection ID. */
	needed = sizeof(*udp) + 2 + key.length + QUIC_NONCE_MIN;
	if (*(__u8 *)(udp + 1) & 0x80)
		needed += QUIC_LENGTH_AT;
	if (NET16(udp->len) < needed)
		return 0;
	if (!quic_read_id(udp + 1, end, key.length, key.id))
		return 0;
	named = bpf_map_lookup_elem(&quic_servers, &key);
	if (!named || !known_server(named->server, named->server_id)) {
		count(service_slot, REASON_QUIC_UNKNOWN);
		return 0;
	}
	count(service_slot, REASON_QUIC_ROUTED);
	return named->server;
}

#endif
