/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * What Python is told. A packet whose record finds no room is dropped and counted: the client sends
 * it again, and nothing happened meanwhile that Python does not know of. */
#ifndef LVSKIT_RECORDS_H
#define LVSKIT_RECORDS_H

#include "table.h"

struct short_record {
	struct record record;
	u8 packet[SHORT_PACKET];
};

struct long_record {
	struct record record;
	u8 packet[LONG_PACKET];
};

INLINE void fill(struct record *record, const struct packet *packet, const struct place *place,
		 u16 service, int version)
{
	*record = (struct record){
		.version = version,
		.tcp_flags = packet->flags,
		.service = service,
		.slot = NO_SLOT,
		.seen = seen_now(),
		.buckets = { place->buckets[0], place->buckets[1] },
		.port_be = packet->port_be,
		.protocol = packet->protocol,
	};

	if (version == 4)
		__builtin_memcpy(record->address + 12, packet->address, 4);
	else
		__builtin_memcpy(record->address, packet->address, sizeof(record->address));
}

INLINE struct record describe(const struct packet *packet, const struct place *place, u16 service,
			      int version)
{
	struct record record;

	fill(&record, packet, place, service, version);
	return record;
}

/* Tell of something that was done; whether there was room. */
INLINE int tell(struct record *record)
{
	return !ringbuf_output(&misses, record, sizeof(*record), 0);
}

#define HAND_OVER(name, kind, capacity)                                                   \
	NOINLINE int name(struct xdp_md *ctx, const struct record *record)                \
	{                                                                                 \
		struct kind *to = ringbuf_reserve(&misses, sizeof(*to), 0);               \
		u64 length = record->length;                                              \
                                                                                          \
		if (!to)                                                                  \
			return drop(REASON_LOST);                                         \
		to->record = *record;                                                     \
		opaque(length);                                                           \
		if (length - 1 >= capacity ||                                             \
		    xdp_load_bytes(ctx, sizeof(struct ethernet), to->packet, length)) {   \
			ringbuf_discard(to, 0);                                           \
			return drop(REASON_FAULT);                                        \
		}                                                                         \
		ringbuf_submit(to, 0);                                                    \
		return drop(REASON_MISS);                                                 \
	}

HAND_OVER(hand_over_short, short_record, SHORT_PACKET)
HAND_OVER(hand_over_long, long_record, LONG_PACKET)

/* Give a packet to Python, which forwards it in its own time. */
INLINE int ask(struct xdp_md *ctx, struct record *record, const struct packet *packet)
{
	if (packet->length > LONG_PACKET)
		return pass(REASON_TOO_BIG);
	record->kind = record->version == 4 && record->slot == NO_SLOT &&
				       packet->protocol == TCP && packet->flags & SYN ?
			       RECORD_SYN :
			       RECORD_MISS;
	record->length = packet->length;
	return packet->length <= SHORT_PACKET ? hand_over_short(ctx, record) :
						hand_over_long(ctx, record);
}

#endif
