/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Defence of services: prefix lists, token buckets of source prefixes, and challenges during floods of SYNs. */
#ifndef EVENER_DEFEND_H
#define EVENER_DEFEND_H

#include "bucket.h"
#include "flows.h"
#include "report.h"
#include "segment.h"

/* Time for the SYN after a challenge: clients send it again after a timeout that they may have doubled already. */
#define ATTEMPT_NS 30000000000ULL
/* A challenge is answered within this time. */
#define STRICT_NS 10000000000ULL
/* Window of a challenge: connection tracking takes a RST only if its sequence number is within this window. */
#define CHALLENGE_WINDOW 0xffff

/* The verdict of defend(): admitted, or a reason. Its functions count nothing, because the stack is deep here. */
#define ADMITTED REASONS

/* Bits of one word of a prefix, in network order. */
static always_inline __u32 word_of_prefix(__u32 word, int length)
{
	if (length >= 32)
		return word;
	return length <= 0 ? 0 : word & NET32(~0U << (32 - length));
}

/* Verdict of a service's prefix list on an address. */
static always_inline __u32 prefix_verdict(int family, __u32 service, const void *address)
{
	struct defence *defence;
	__u32 *verdict;

	if (family == 4) {
		struct prefix_key_v4 key = { .prefix = 32 + 32, .service = service };

		key.address = *(const __u32 *)address;
		verdict = bpf_map_lookup_elem(&prefixes_v4, &key);
	} else {
		struct prefix_key key = { .prefix = 32 + 128, .service = service };

		__builtin_memcpy(key.address, address, sizeof(key.address));
		verdict = bpf_map_lookup_elem(&prefixes_v6, &key);
	}
	if (verdict)
		return *verdict;
	defence = bpf_map_lookup_elem(&defences, &service);
	return defence && !defence->default_denied ? PREFIX_ADMITTED : PREFIX_DENIED;
}

/*
 * The bucket of a client's prefix. A prefix without a bucket gets a full one; if it cannot be stored, the prefix shares
 * one bucket with all others in this situation, so that a map without room does not admit everything.
 */
static always_inline __u64 *bucket_of(int family, __u32 service, const struct defence *defence, const __u32 *address)
{
	struct source_key key = { .service = service };
	__u64 *bucket, empty = 0;

	if (family == 4) {
		key.address[0] = word_of_prefix(address[0], defence->prefix_v4);
	} else {
#pragma unroll
		for (int word = 0; word < 4; word++)
			key.address[word] = word_of_prefix(address[word], defence->prefix_v6 - 32 * word);
	}
	bucket = bpf_map_lookup_elem(&sources, &key);
	if (bucket)
		return bucket;
	bpf_map_update_elem(&sources, &key, &empty, BPF_NOEXIST);
	bucket = bpf_map_lookup_elem(&sources, &key);
	return bucket ? bucket : bpf_map_lookup_elem(&sources_without, &service);
}

static always_inline int has_token(int family, __u32 service, const struct defence *defence, const void *address)
{
	__u64 *bucket = bucket_of(family, service, defence, address);

	return bucket && take_token(bucket, bpf_ktime_get_ns(), defence->packet_ns, defence->burst_ns);
}

/*
 * The low 16 bits of the kernel's SYN cookie for the addresses and ports of a client's segment: a keyed hash that
 * changes each minute. Returns a negative number if the kernel has no SYN cookies.
 */
static always_inline int cookie_of(const struct packet *packet, int family)
{
	const struct ports *ports = packet->transport;
	struct tcphdr tcp = { .source = ports->source, .dest = ports->destination, .doff = sizeof(tcp) / 4 };
	__s64 cookie;

	if (family == 4) {
		const struct iphdr *from = packet->ip;
		struct iphdr ip = { .version = 4, .ihl = sizeof(ip) / 4, .saddr = from->saddr, .daddr = from->daddr };

		cookie = bpf_tcp_raw_gen_syncookie_ipv4(&ip, &tcp, sizeof(tcp));
	} else {
		const struct ipv6hdr *from = packet->ip;
		struct ipv6hdr ip = { .version = 6, .saddr = from->saddr, .daddr = from->daddr };

		cookie = bpf_tcp_raw_gen_syncookie_ipv6(&ip, &tcp, sizeof(tcp));
	}
	return cookie < 0 ? -1 : (int)(cookie & 0xffff);
}

/*
 * The acknowledgement number of a challenge: the last number before that of the SYN, or the number of the SYN itself,
 * whose low bits are the cookie. A client that sent the SYN does not accept it and answers with a RST that has this
 * number (RFC 9293, section 3.10.7.3). It is near enough for connection tracking in between to let it pass.
 */
static always_inline __u32 challenge_of(__u32 sequence, __u16 cookie)
{
	return sequence - ((sequence - cookie) & 0xffff);
}

static always_inline void attempt_key(struct attempt_key *key, const struct packet *packet, int family, __u32 service,
				      __u32 vip)
{
	const struct ports *ports = packet->transport;

	*key = (struct attempt_key){
		.service = service,
		.vip = vip,
		.port = ports->source,
		.vip_port = ports->destination,
	};
	copy_address(family, key->address, source_of(packet, family));
}

static always_inline int is_proven(const struct packet *packet, int family, __u32 service, __u32 vip, __u64 now)
{
	const struct tcphdr *tcp = packet->transport;
	struct attempt_key key;
	struct attempt *attempt;

	attempt_key(&key, packet, family, service, vip);
	attempt = bpf_map_lookup_elem(&attempts, &key);
	return attempt && now < attempt->until_ns && NET32(tcp->seq) - attempt->sequence <= 0xffff;
}

static always_inline enum reason judge_syn(const struct packet *packet, int family, __u32 service, __u32 vip,
					     const struct defence *defence)
{
	struct syn_meter *meter = bpf_map_lookup_elem(&syn_meters, &service);
	__u64 now = bpf_ktime_get_ns();

	if (!meter || !is_flood(&meter->full_until_ns, now, defence->syn_ns, defence->syn_burst_ns))
		return ADMITTED;
	meter->strict_until_ns = now + STRICT_NS;
	return is_proven(packet, family, service, vip, now) ? ADMITTED : REASON_SYN_CHALLENGED;
}

/* A segment that is not the first of a client: the answer to a challenge, a segment of a connection, or forged. */
static always_inline enum reason judge_unknown(const struct packet *packet, int family, __u32 service_slot, __u32 vip,
						 const struct service *service)
{
	const struct tcphdr *tcp = packet->transport;
	struct syn_meter *meter = bpf_map_lookup_elem(&syn_meters, &service_slot);
	__u32 sequence = NET32(tcp->seq);
	__u64 now = bpf_ktime_get_ns();
	union flow_key flow;

	if (tcp->rst && cookie_of(packet, family) == (int)(sequence & 0xffff)) {
		struct attempt attempt = { .until_ns = now + ATTEMPT_NS, .sequence = sequence };
		struct attempt_key key;

		attempt_key(&key, packet, family, service_slot, vip);
		bpf_map_update_elem(&attempts, &key, &attempt, BPF_ANY);
		return REASON_SYN_VALIDATED;
	}
	if (!meter || now >= meter->strict_until_ns)
		return ADMITTED;
	flow_key(&flow, family, source_of(packet, family), service->flags & SERVICE_BY_ADDRESS ? 0 : tcp->source, vip);
	if (flow_of(family, &flow))
		return ADMITTED;
	return REASON_SYN_INVALID;
}

static always_inline enum reason defend_as(const struct packet *packet, int family, __u32 service_slot, __u32 vip)
{
	struct service *service = service_at(service_slot);
	struct defence *defence = bpf_map_lookup_elem(&defences, &service_slot);
	const struct tcphdr *tcp = packet->transport;

	if (!service || !defence)
		return ADMITTED;
	if (service->flags & SERVICE_LISTS &&
	    prefix_verdict(family, service_slot, source_of(packet, family)) == PREFIX_DENIED)
		return REASON_DENIED;
	if (service->flags & SERVICE_RATE && !has_token(family, service_slot, defence, source_of(packet, family)))
		return REASON_LIMITED;
	if (!(service->flags & SERVICE_SYN_COOKIES) || packet->protocol != IPPROTO_TCP ||
	    (void *)(tcp + 1) > packet->end)
		return ADMITTED;
	if (tcp->rst || (tcp->syn && tcp->ack))
		return judge_unknown(packet, family, service_slot, vip, service);
	return tcp->syn ? judge_syn(packet, family, service_slot, vip, defence) : ADMITTED;
}

/* Decides on a client's packet of a service with defence. */
never_inline int defend(struct xdp_md *context, __u32 service, __u32 vip, __u32 place)
{
	struct packet packet = {};

	if (!packet_at(&packet, context, place))
		return REASON_INTERNAL;
	if (FAMILY_AT(place) == 4) {
		if (packet.ip + sizeof(struct iphdr) > packet.end)
			return REASON_INTERNAL;
		return defend_as(&packet, 4, service, vip);
	}
	if (packet.ip + sizeof(struct ipv6hdr) > packet.end)
		return REASON_INTERNAL;
	return defend_as(&packet, 6, service, vip);
}

/* Sends a challenge to the sender of a SYN. Returns the action. */
never_inline int challenge(struct xdp_md *context, __u32 service, __u32 place)
{
	struct segment segment = { .flags = SEGMENT_SYN | SEGMENT_ACK, .window = CHALLENGE_WINDOW };
	int family = FAMILY_AT(place), cookie;
	struct packet packet = {};
	struct tcphdr *tcp;

	if (!packet_at(&packet, context, place) || packet.ip + sizeof(struct ipv6hdr) > packet.end)
		return drop(service, REASON_INTERNAL);
	tcp = packet.transport;
	if ((void *)(tcp + 1) > packet.end)
		return drop(service, REASON_INTERNAL);
	cookie = family == 4 ? cookie_of(&packet, 4) : cookie_of(&packet, 6);
	if (cookie < 0)
		return drop(service, REASON_INTERNAL);
	segment.acknowledgement = challenge_of(NET32(tcp->seq), cookie);
	segment.sequence = bpf_get_prandom_u32();
	return family == 4 ? respond_segment(&packet, 4, &segment) : respond_segment(&packet, 6, &segment);
}

/* Does what defend() decided about a packet that is not admitted. Returns the action. */
static always_inline int refuse(struct xdp_md *context, __u32 service, __u32 place, __u32 reason)
{
	if (reason != REASON_SYN_CHALLENGED && reason != REASON_SYN_VALIDATED)
		return reject(context, place, service, reason);
	count(service, reason);
	return reason == REASON_SYN_CHALLENGED ? challenge(context, service, place) : XDP_DROP;
}

#endif
