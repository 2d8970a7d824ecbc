/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * Known connections: buckets of four slots in memory that Python shares. A connection is in one of
 * two buckets, which are the halves of its hash; so a look-up reads two cache lines at most (IPv6:
 * four), and a table half full has room for all but a few in a hundred thousand. */
#ifndef LVSKIT_TABLE_H
#define LVSKIT_TABLE_H

#include "parse.h"

struct {
	UINT(type, ARRAY);
	UINT(max_entries, 1);
	UINT(map_flags, F_MMAPABLE);
	TYPE(key, u32);
	TYPE(value, struct bucket4);
} connections4 SEC(".maps");

struct {
	UINT(type, ARRAY);
	UINT(max_entries, 1);
	UINT(map_flags, F_MMAPABLE);
	TYPE(key, u32);
	TYPE(value, struct bucket6);
} connections6 SEC(".maps");

/* Whose connection it is, and the buckets that it may be in. */
struct place {
	u64 address[2];
	u64 key;
	u32 buckets[2];
};

INLINE u64 hash4(u64 client)
{
	u64 mixed = client ^ hash_seed;

	/* A product's lower bits know nothing of its factors' upper ones, where the ports are; and two
	 * shifts by the same, one after the other, would undo each other. */
	mixed = (mixed ^ mixed >> 32) * 0x9e3779b97f4a7c15;
	mixed = (mixed ^ mixed >> 32) * hash_multiplier;
	return mixed ^ mixed >> 29;
}

INLINE u64 hash6(u64 high, u64 low, u64 client)
{
	u64 mixed = (high ^ hash_seed) * hash_multiplier;

	mixed = (mixed ^ mixed >> 32 ^ low) * hash_multiplier;
	return hash4(mixed ^ client);
}

INLINE struct place place4(const struct packet *packet, u16 service)
{
	u64 key = packet->address[0] | (u64)packet->port_be << 32 | (u64)service << 48;
	u64 hash = hash4(key);

	return (struct place){ { 0, 0 }, key, { hash >> 32 & mask4, hash & mask4 } };
}

INLINE struct place place6(const struct packet *packet, u16 service)
{
	u64 key = packet->port_be | (u32)service << 16;
	u64 high = packet->address[0], low = packet->address[1], hash = hash6(high, low, key);

	return (struct place){ { high, low }, key, { hash >> 32 & mask6, hash & mask6 } };
}

/* Return a known connection and its slot's number, or nothing. */
INLINE struct connection *find4(const struct place *place, u32 *number)
{
#pragma unroll
	for (int way = 0; way < 2; way++) {
		struct bucket4 *bucket = map_lookup(&connections4, &place->buckets[way]);

		if (!bucket)
			return 0;
#pragma unroll
		for (int at = 0; at < SLOTS_PER_BUCKET; at++) {
			struct slot4 *slot = &bucket->slots[at];

			if (once(slot->client.key) == place->key) {
				*number = place->buckets[way] * SLOTS_PER_BUCKET + at;
				return &slot->connection;
			}
		}
	}
	return 0;
}

INLINE struct connection *find6(const struct place *place, u32 *number)
{
#pragma unroll
	for (int way = 0; way < 2; way++) {
		struct bucket6 *bucket = map_lookup(&connections6, &place->buckets[way]);

		if (!bucket)
			return 0;
#pragma unroll
		for (int at = 0; at < SLOTS_PER_BUCKET; at++) {
			struct slot6 *slot = &bucket->slots[at];

			if (once(slot->client.key) == (u32)place->key &&
			    slot->address[0] == place->address[0] &&
			    slot->address[1] == place->address[1]) {
				*number = place->buckets[way] * SLOTS_PER_BUCKET + at;
				return &slot->connection;
			}
		}
	}
	return 0;
}

/* Return how many slots of a bucket are taken. */
INLINE int taken4(struct bucket4 *bucket)
{
	int taken = 0;

#pragma unroll
	for (int at = 0; at < SLOTS_PER_BUCKET; at++)
		taken += once(bucket->slots[at].client.key) != KEY_FREE;
	return taken;
}

INLINE int taken6(struct bucket6 *bucket)
{
	int taken = 0;

#pragma unroll
	for (int at = 0; at < SLOTS_PER_BUCKET; at++)
		taken += once(bucket->slots[at].client.key) != KEY_FREE;
	return taken;
}

/* How many slots of its first bucket must be taken for a connection to be put in the second, where
 * a look-up finds it later. In a table half full, 1 puts 27 of 100 there, and for 1 of 100,000 both
 * are full; 2 puts 19 there, and for 3; 3 puts 10 there, and for 31. */
enum { CROWDED = 2 };

/* Write a new connection; return its slot's number, or NO_SLOT where both buckets are full. The key
 * is claimed first, for another CPU may want the slot, and written last, for readers go by it. */
INLINE u32 insert4(const struct place *place, const struct connection *connection)
{
	u32 number = place->buckets[0], second = place->buckets[1];
	struct bucket4 *bucket = map_lookup(&connections4, &number);
	struct bucket4 *other = map_lookup(&connections4, &second);

	if (!bucket || !other)
		return NO_SLOT;
	if (taken4(bucket) >= CROWDED && taken4(other) < taken4(bucket)) {
		bucket = other;
		number = second;
	}

#pragma unroll
	for (int at = 0; at < SLOTS_PER_BUCKET; at++) {
		struct slot4 *slot = &bucket->slots[at];

		if (once(slot->client.key) == KEY_FREE &&
		    __sync_bool_compare_and_swap(&slot->client.key, KEY_FREE, KEY_BUSY)) {
			slot->connection = *connection;
			__sync_lock_test_and_set(&slot->client.key, place->key);
			return number * SLOTS_PER_BUCKET + at;
		}
	}
	return NO_SLOT;
}

NOINLINE u32 insert6(const struct place *place, const struct connection *connection)
{
	u32 number = place->buckets[0], second = place->buckets[1];
	struct bucket6 *bucket = map_lookup(&connections6, &number);
	struct bucket6 *other = map_lookup(&connections6, &second);

	if (!bucket || !other)
		return NO_SLOT;
	if (taken6(bucket) >= CROWDED && taken6(other) < taken6(bucket)) {
		bucket = other;
		number = second;
	}

#pragma unroll
	for (int at = 0; at < SLOTS_PER_BUCKET; at++) {
		struct slot6 *slot = &bucket->slots[at];

		if (once(slot->client.key) == KEY_FREE &&
		    __sync_bool_compare_and_swap(&slot->client.key, KEY_FREE, KEY_BUSY)) {
			slot->address[0] = place->address[0];
			slot->address[1] = place->address[1];
			slot->connection = *connection;
			__sync_lock_test_and_set(&slot->client.key, (u32)place->key);
			return number * SLOTS_PER_BUCKET + at;
		}
	}
	return NO_SLOT;
}

#endif
