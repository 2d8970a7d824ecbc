/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * What becomes of a packet. Nothing is changed, neither a connection nor a counter, before it is
 * certain that the packet does not go the portable way, where the same would be done again. */
#ifndef LVSKIT_DIRECTOR_H
#define LVSKIT_DIRECTOR_H

#include "records.h"
#include "ring.h"
#include "states.h"
#include "tunnel.h"

INLINE void add(void *map, u32 id, u32 length)
{
	struct counters *counters = map_lookup(map, &id);

	if (counters) {
		counters->packets++;
		counters->bytes += length;
	}
}

INLINE int send(struct xdp_md *ctx, struct server *server, u32 id, u32 service,
		const struct packet *packet, int version)
{
	add(&server_counters, id, packet->length);
	add(&service_counters, service, packet->length);
	return forward(ctx, server, packet, version);
}

/* A packet of a known connection. */
INLINE int known(struct xdp_md *ctx, struct connection *connection, u32 number,
		 const struct packet *packet, const struct place *place,
		 const struct service *service, int version)
{
	union binding binding = { .word = once(connection->binding.word) };
	u32 id = binding.entry.server, now = seen_now();
	u8 next = binding.entry.state, flags = binding.entry.flags;
	struct server *server = map_lookup(&servers, &id);
	int reason;

	if (!server || server->kind == SERVER_NONE)
		goto hand_over;
	if (server->kind == SERVER_PASS)
		return pass(REASON_SERVER);
	if (packet->protocol == TCP) {
		next = next_state(next, packet->flags);
		if (next == ASK || (packet->flags & SYN && server->flags & SERVER_ASK_SYN))
			goto hand_over;
	}
	/* Only now: a client that begins anew gets another server. */
	if (!(server->flags & SERVER_AVAILABLE))
		return drop(REASON_REMOVED);
	reason = refused(server, packet);
	if (reason >= 0)
		return pass(reason);
	if (unlikely(next != binding.entry.state || flags & SLOT_TELL)) {
		struct record record = describe(packet, place, service->id, version);

		record.kind = RECORD_STATE;
		record.slot = number;
		record.server = id;
		record.state = next;
		record.old_state = binding.entry.state;
		if (tell(&record)) {
			count(REASON_STATE);
			/* Unless Python has given the slot to another connection meanwhile. */
			union binding changed = binding;

			changed.entry.state = next;
			changed.entry.flags = flags &= ~SLOT_TELL;
			__sync_val_compare_and_swap(&connection->binding.word, binding.word,
						    changed.word);
		} else if (next != binding.entry.state) {
			return drop(REASON_LOST);
		}
	}
	/* The first few are counted, for defences spare what has had more: ip_vs_conn.c,
	 * todrop_entry. */
	if (unlikely(!(flags & SLOT_MANY)))
		once(connection->binding.entry.flags) = flags + SLOT_ONE;
	/* A write costs the cache line's way back to memory. */
	if (once(connection->seen) != now)
		once(connection->seen) = now;
	return send(ctx, server, id, service->id, packet, version);

hand_over:
	if (service->flags & SERVICE_MARKS) {
		/* When the connection ends is Python's affair until another packet comes. */
		once(connection->binding.entry.flags) = flags | SLOT_TELL;
		return pass(REASON_NOT_OPENING);
	}
	struct record record = describe(packet, place, service->id, version);

	record.slot = number;
	record.server = id;
	record.state = record.old_state = binding.entry.state;
	return ask(ctx, &record, packet);
}

/* Whether the host takes no packets from an address: nobody's, its own, or of many. Source: Linux
 * net/ipv4/route.c (ip_route_input_slow), net/ipv6/ip6_input.c (ip6_rcv_core), by behaviour. */
INLINE int is_martian(const struct packet *packet, const struct service_key *to)
{
	u8 first = packet->address[0];
	struct service_key from = { .version = to->version };

	*(u64 *)&from.address[0] = packet->address[0];
	*(u64 *)&from.address[8] = packet->address[1];
	if (map_lookup(&services, &from))
		return 1;
	if (to->version == 4)
		return first == 0 || first == 127 || first >= 224;
	return first == 0xff ||
	       (!packet->address[0] && (packet->address[1] << 8) == 0); /* :: and ::1, or near */
}

/* A packet of no known connection. */
INLINE int unknown(struct xdp_md *ctx, const struct packet *packet, const struct place *place,
		   const struct service *service, int version)
{
	if (service->flags & SERVICE_MARKS)
		return pass(REASON_NOT_OPENING);
	if (packet->protocol == TCP &&
	    (packet->flags & RST || !(packet->flags & SYN || service->flags & SERVICE_SLOPPY_TCP)))
		return pass(REASON_NOT_OPENING);
	/* Data connections of FTP, which servers open: Linux ip_vs_core.c, ip_vs_schedule. */
	if (packet->port_be == be16(20))
		return pass(REASON_NOT_OPENING);
	struct choice choice = choose(service->id, packet);
	u32 id = choice.server;
	u16 flags = 0;
	struct server *server = map_lookup(&servers, &id);

	if (!id || !server || !(server->flags & SERVER_AVAILABLE) ||
	    (server->kind != SERVER_TUNNEL4 && server->kind != SERVER_TUNNEL6) ||
	    refused(server, packet) >= 0)
		goto hand_over;

	union binding binding = { .entry = { .server = id, .flags = SLOT_PLACED | SLOT_ONE } };

	if (packet->protocol == TCP)
		binding.entry.state = next_state(NO, packet->flags);
	struct connection connection = { binding, seen_now() };
	/* Room for the record comes first: what Python does not hear of must not be. */
	struct record *told = ringbuf_reserve(&misses, sizeof(*told), 0);

	if (!told) {
		give_back(choice);
		return drop(REASON_LOST);
	}
	u32 number = version == 4 ? insert4(place, &connection) : insert6(place, &connection);

	if (number == NO_SLOT) {
		ringbuf_discard(told, 0);
		flags = RECORD_FULL;
		goto hand_over;
	}
	fill(told, packet, place, service->id, version);
	told->kind = RECORD_PLACED;
	told->slot = number;
	told->server = id;
	told->state = binding.entry.state;
	ringbuf_submit(told, 0);
	count(REASON_PLACED);
	return send(ctx, server, id, service->id, packet, version);

hand_over:
	give_back(choice);
	struct record record = describe(packet, place, service->id, version);

	record.flags = flags;
	return ask(ctx, &record, packet);
}

INLINE int direct(struct xdp_md *ctx, int version)
{
	void *start = (void *)(long)ctx->data + sizeof(struct ethernet);
	void *end = (void *)(long)ctx->data_end;
	struct packet packet;
	struct service_key to;
	int reason = version == 4 ? parse4(&packet, &to, start, end) :
				    parse6(&packet, &to, start, end);

	if (reason >= 0)
		return pass(reason);
	struct service *service = map_lookup(&services, &to);

	if (!service)
		return pass(REASON_NOT_OURS);
	struct place place = version == 4 ? place4(&packet, service->id) :
					    place6(&packet, service->id);
	u32 number = NO_SLOT;
	struct connection *connection = version == 4 ? find4(&place, &number) :
						       find6(&place, &number);

	if (likely(connection))
		return known(ctx, connection, number, &packet, &place, service, version);
	if (is_martian(&packet, &to))
		return pass(REASON_SOURCE);
	return unknown(ctx, &packet, &place, service, version);
}

/* The whole program. */
INLINE int balance(struct xdp_md *ctx)
{
	struct ethernet *ethernet = (void *)(long)ctx->data;

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return pass(REASON_NOT_IP);
	/* An interface that is promiscuous, or a bridge's, sees what others are to get. */
	if (*(u32 *)ethernet->target != once(here) ||
	    *(u16 *)(ethernet->target + 4) != once(here_end))
		return pass(REASON_NOT_HERE);
	if (ethernet->type_be == be16(ETHERTYPE_IPV4))
		return direct(ctx, 4);
	if (ethernet->type_be == be16(ETHERTYPE_IPV6))
		return direct(ctx, 6);
	return pass(REASON_NOT_IP);
}

#endif
