/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * The maps and constants; ../layout.py says what they are. User space changes the sizes. */
#ifndef LVSKIT_MAPS_H
#define LVSKIT_MAPS_H

#include "layout.h"

struct {
	UINT(type, HASH);
	UINT(max_entries, 4096);
	TYPE(key, struct service_key);
	TYPE(value, struct service);
} services SEC(".maps");

struct {
	UINT(type, ARRAY);
	UINT(max_entries, 4096);
	UINT(map_flags, F_MMAPABLE);
	TYPE(key, u32);
	TYPE(value, struct server);
} servers SEC(".maps");

struct inner_ring {
	UINT(type, ARRAY);
	UINT(max_entries, 1);
	UINT(map_flags, F_MMAPABLE);
	UINT(key_size, sizeof(u32));
	/* Of a struct that is only pointed to, the compiler would not write down the size. */
	UINT(value_size, sizeof(struct ring));
};

struct {
	UINT(type, ARRAY_OF_MAPS);
	UINT(max_entries, 4096);
	TYPE(key, u32);
	VALUES(values, struct inner_ring);
} rings SEC(".maps");

struct {
	UINT(type, RINGBUF);
	UINT(max_entries, 1 << 22);
} misses SEC(".maps");

struct {
	UINT(type, PERCPU_ARRAY);
	UINT(max_entries, 4096);
	TYPE(key, u32);
	TYPE(value, struct counters);
} server_counters SEC(".maps");

struct {
	UINT(type, PERCPU_ARRAY);
	UINT(max_entries, 4096);
	TYPE(key, u32);
	TYPE(value, struct counters);
} service_counters SEC(".maps");

struct {
	UINT(type, PERCPU_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct reasons);
} reasons SEC(".maps");

const volatile u64 hash_seed = 0;
const volatile u64 hash_multiplier = 0x9e3779b97f4a7c15;
const volatile u32 mask4 = 0;
const volatile u32 mask6 = 0;
const volatile u32 clock_shift = 6;

/* The interface's own hardware address, its first four bytes and the others. */
u32 here;
u16 here_end;

INLINE u32 seen_now(void)
{
	return jiffies64() >> clock_shift;
}

INLINE void count(enum reason reason)
{
	u32 zero = 0;
	struct reasons *counted = map_lookup(&reasons, &zero);

	if (counted)
		counted->packets[reason]++;
}

INLINE int pass(enum reason reason)
{
	count(reason);
	return XDP_PASS;
}

INLINE int drop(enum reason reason)
{
	count(reason);
	return XDP_DROP;
}

#endif
