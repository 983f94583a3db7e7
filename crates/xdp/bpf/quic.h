/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Server IDs in connection IDs of QUIC: the plaintext algorithm of draft-ietf-quic-load-balancers. Only the parts of
 * packets that are the same in all versions are read (RFC 8999). No map or helper is used here.
 */
#ifndef EVENER_QUIC_H
#define EVENER_QUIC_H

#include "parse.h"

/* Bytes of a server ID at most: the connection IDs of version 1 have 20 bytes, the first byte and the nonce have 5. */
#define QUIC_ID_MAX 15
/* Nonces have at least 4 bytes, so that a shorter connection ID was not made by a server. */
#define QUIC_NONCE_MIN 4
/* Position of the connection ID's length in a long header. */
#define QUIC_LENGTH_AT 5
/* Rotation bits of connection IDs without a server ID. */
#define QUIC_UNROUTABLE 7

/*
 * Reads the server ID of length bytes from the payload of a datagram into id, whose other bytes stay. Returns 1, or 0
 * if the packet has no connection ID that names a server. A client chooses the connection ID of its first packets at
 * random; such an ID can be read, too, and is unknown to the caller with high probability.
 */
static always_inline int quic_read_id(const void *payload, const void *end, __u32 length,
							       __u8 *id)
{
	const __u8 *at = payload;
	__u32 needed = 1 + length + QUIC_NONCE_MIN;

	if (length == 0 || length > QUIC_ID_MAX || (const void *)(at + 1) > end)
		return 0;
	if (*at & 0x80) {
		if ((const void *)(at + QUIC_LENGTH_AT + 1) > end || at[QUIC_LENGTH_AT] < needed)
			return 0;
		at += QUIC_LENGTH_AT;
	}
	/* Now at the byte before the connection ID. */
	if ((const void *)(at + 2) > end || at[1] >> 5 == QUIC_UNROUTABLE)
		return 0;
	if ((const void *)(at + 1 + needed) > end)
		return 0;
	at += 2;
	for (__u32 i = 0; i < QUIC_ID_MAX; i++) {
		if (i >= length)
			break;
		if ((const void *)(at + i + 1) > end)
			return 0;
		id[i] = at[i];
	}
	return 1;
}

#endif
