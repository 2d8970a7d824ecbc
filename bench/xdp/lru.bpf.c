/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * The same program with the kernel's LRU_HASH in the place of the buckets. */
#define LVSKIT_TABLE_H
#include "../../plugins/datapath_xdp/src/lvskit_datapath_xdp/bpf/parse.h"

enum { LRU_HASH = 9 };
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;

struct place {
	u64 address[2];
	u64 key;
	u32 buckets[2];
};

struct {
	UINT(type, LRU_HASH);
	UINT(max_entries, 1);
	TYPE(key, u64);
	TYPE(value, struct connection);
} connections4 SEC(".maps");

struct {
	UINT(type, LRU_HASH);
	UINT(max_entries, 1);
	UINT(key_size, 24);
	TYPE(value, struct connection);
} connections6 SEC(".maps");

INLINE struct place place4(const struct packet *packet, u16 service)
{
	u64 key = packet->address[0] | (u64)packet->port_be << 32 | (u64)service << 48;

	return (struct place){ .key = key };
}

INLINE struct place place6(const struct packet *packet, u16 service)
{
	return (struct place){ { packet->address[0], packet->address[1] },
			       packet->port_be | (u32)service << 16 };
}

INLINE struct connection *find4(const struct place *place, u32 *number)
{
	*number = 0;
	return map_lookup(&connections4, &place->key);
}

INLINE struct connection *find6(const struct place *place, u32 *number)
{
	*number = 0;
	return map_lookup(&connections6, place);
}

NOINLINE u32 insert4(const struct place *place, const struct connection *connection)
{
	return map_update(&connections4, &place->key, connection, 0) ? NO_SLOT : 0;
}

NOINLINE u32 insert6(const struct place *place, const struct connection *connection)
{
	return map_update(&connections6, place, connection, 0) ? NO_SLOT : 0;
}

#include "../../plugins/datapath_xdp/src/lvskit_datapath_xdp/bpf/director.h"
#include "bench.h"
