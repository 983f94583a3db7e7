/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Events of decisions, for the ring buffer. Packets are reported before they are rewritten. */
#ifndef EVENER_REPORT_H
#define EVENER_REPORT_H

#include "lookup.h"
#include "packet.h"

static always_inline struct config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static always_inline int is_reported(__u32 level)
{
	struct config *settings = config();

	return settings && level <= settings->event_level;
}

static always_inline enum event_level level_of(__u32 reason)
{
	switch (reason) {
	case REASON_INTERNAL:
		return EVENT_CRITICAL;
	case REASON_NO_SERVER:
	case REASON_NO_NEXT_HOP:
		return EVENT_ERROR;
	case REASON_MALFORMED:
	case REASON_TTL_EXCEEDED:
		return EVENT_WARNING;
	default:
		return EVENT_INFO;
	}
}

/* Takes one event from the budget of this CPU and second. Returns 0 if it is used up. */
static always_inline int spend_event(__u64 now)
{
	struct config *settings = config();
	__u32 zero = 0;
	struct event_budget *budget = bpf_map_lookup_elem(&event_budgets, &zero);
	__u64 second = now / 1000000000;

	if (!settings || !budget)
		return 0;
	if (budget->second != second) {
		budget->second = second;
		budget->events = 0;
	}
	if (budget->events >= settings->events_per_second)
		return 0;
	budget->events++;
	return 1;
}

/* Parts of the argument `what` of report(). */
#define REPORT(kind_, reason_, level_) ((kind_) | (__u32)(reason_) << 8 | (__u32)(level_) << 16)

/* Positions of a packet in one word. */
static always_inline __u32 place_of(const struct packet *packet, int family)
{
	__u32 transport = packet->transport ? (__u32)(packet->transport - packet->data) : 0;

	return packet->network | (transport & 0xfff) << 8 | (__u32)family << 20 | (__u32)packet->protocol << 24;
}

/* New addresses: of the server for packets of clients, of the virtual address for packets of servers. */
static always_inline void add_rewritten(struct event *event, __u32 service, __u32 vip_slot)
{
	struct server *server = server_at(event->server);
	struct vip *vip = vip_at(vip_slot);
	struct service *by = service_at(service);
	int is_egress = event->kind == EVENT_EGRESS || event->kind == EVENT_FLOW_BY_SERVER;

	if (event->kind == EVENT_DROPPED || event->kind == EVENT_PASSED || !server || !vip || !by ||
	    by->forward != FORWARD_NAT)
		return;
	if (is_egress) {
		__builtin_memcpy(event->new_source, vip->address, sizeof(event->new_source));
		return;
	}
	__builtin_memcpy(event->new_destination, server->address, sizeof(event->new_destination));
	if (server->port)
		event->new_destination_port = server->port;
}

static always_inline void add_addresses(struct event *event, const void *data, const void *end, __u32 place)
{
	const struct iphdr *v4 = data + (place & 0x3f);
	const struct ipv6hdr *v6 = (const void *)v4;

	if (event->family == 4 && (const void *)(v4 + 1) <= end) {
		event->source[0] = v4->saddr;
		event->destination[0] = v4->daddr;
	} else if (event->family == 6 && (const void *)(v6 + 1) <= end) {
		__builtin_memcpy(event->source, &v6->saddr, sizeof(event->source));
		__builtin_memcpy(event->destination, &v6->daddr, sizeof(event->destination));
	}
}

/*
 * Reports a packet whose event has a level at most the configured one. `owner` is the slot of the service, and from bit 16
 * on of the virtual address.
 */
never_inline int report(struct xdp_md *context, __u32 place, __u32 what, __u32 owner, __u32 server)
{
	const void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	const struct ports *ports = data + (place >> 8 & 0xfff);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct event *event;

	if (!is_reported(what >> 16))
		return 0;
	event = spend_event(now) ? bpf_ringbuf_reserve(&events, sizeof(*event), 0) : NULL;
	if (!event) {
		/* Linux 6.1 has no stack left for a call from here. */
		count_deep(owner & 0xffff, REASON_EVENT_LOST);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time_ns = now;
	event->service = owner & 0xffff;
	event->server = server;
	event->kind = what;
	event->reason = what >> 8;
	event->level = what >> 16;
	event->protocol = place >> 24;
	event->family = place >> 20 & 0xf;
	add_addresses(event, data, end, place);
	if ((place >> 8 & 0xfff) && (const void *)(ports + 1) <= end) {
		event->source_port = ports->source;
		event->destination_port = ports->destination;
	}
	event->new_source_port = event->source_port;
	event->new_destination_port = event->destination_port;
	__builtin_memcpy(event->new_source, event->source, sizeof(event->source));
	__builtin_memcpy(event->new_destination, event->destination, sizeof(event->destination));
	add_rewritten(event, owner & 0xffff, owner >> 16);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Drops a packet: counts the reason and reports it. */
never_inline int reject(struct xdp_md *context, __u32 place, __u32 service, __u32 reason)
{
	count(service, reason);
	report(context, place, REPORT(EVENT_DROPPED, reason, level_of(reason)), service, 0);
	return XDP_DROP;
}

/* Leaves a packet to the kernel, counted. */
never_inline int leave(struct xdp_md *context, __u32 place, __u32 service, __u32 reason)
{
	count(service, reason);
	report(context, place, REPORT(EVENT_PASSED, reason, EVENT_TRACE), service, 0);
	return XDP_PASS;
}

#endif
