/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * One map of each kind that is used, variables of each section, and calls of each form. */
#include "kernel.h"

struct slot {
	u64 key;
	u64 value;
	u32 seen;
};

struct {
	UINT(type, ARRAY);
	UINT(max_entries, 100);
	UINT(map_flags, F_MMAPABLE);
	TYPE(key, u32);
	TYPE(value, struct slot);
} slots SEC(".maps");

struct {
	UINT(type, PERCPU_ARRAY);
	UINT(max_entries, 4);
	TYPE(key, u32);
	TYPE(value, u64);
} counters SEC(".maps");

struct {
	UINT(type, HASH);
	UINT(max_entries, 64);
	TYPE(key, u32);
	TYPE(value, u64);
} table SEC(".maps");

struct {
	UINT(type, LRU_HASH);
	UINT(max_entries, 64);
	UINT(key_size, 8);
	UINT(value_size, 16);
} recent SEC(".maps");

struct prefix {
	u32 length;
	u8 address[4];
};

struct {
	UINT(type, LPM_TRIE);
	UINT(max_entries, 16);
	UINT(map_flags, F_NO_PREALLOC);
	TYPE(key, struct prefix);
	TYPE(value, u32);
} routes SEC(".maps");

struct ring {
	UINT(type, ARRAY);
	UINT(max_entries, 8);
	TYPE(key, u32);
	TYPE(value, u32);
};

struct ring first SEC(".maps");

struct {
	UINT(type, ARRAY_OF_MAPS);
	UINT(max_entries, 4);
	TYPE(key, u32);
	VALUES(values, struct ring);
} rings SEC(".maps") = {
	.values = { [1] = &first },
};

int xdp_tail(struct xdp_md *ctx);

struct {
	UINT(type, PROG_ARRAY);
	UINT(max_entries, 2);
	TYPE(key, u32);
	UINT(value_size, 4);
	VALUES(values, int(struct xdp_md *));
} tails SEC(".maps") = {
	.values = { [1] = &xdp_tail },
};

const volatile u32 STEP = 1;
const volatile u8 ADDRESS[4] = { 10, 0, 0, 1 };
static const volatile u32 VERDICT = XDP_PASS;
u64 runs = 5;
u64 last[3];
static volatile u32 private_runs;

NOINLINE u64 twice(u64 number)
{
	volatile u64 doubled = number * 2;

	return doubled;
}

NOINLINE u64 four_times(u64 number)
{
	return twice(number) + twice(number);
}

static long add_one(u32 index, void *sum)
{
	*(u64 *)sum += 1;
	return 0;
}

SEC("xdp")
int xdp_count(struct xdp_md *ctx)
{
	u32 zero = 0;
	struct slot *slot = map_lookup(&slots, &zero);
	u64 *counter = map_lookup(&counters, &zero);

	if (slot && counter) {
		slot->value += STEP;
		slot->key = four_times(slot->value);
		slot->seen = ADDRESS[0];
		*counter += 1;
	}
	runs++;
	private_runs++;
	last[2] = twice(runs);
	return VERDICT;
}

SEC("xdp")
int xdp_loop(struct xdp_md *ctx)
{
	static volatile u64 loops; /* known as xdp_loop.loops */
	u64 sum = 0;

	loop(10, add_one, &sum, 0);
	loops++;
	last[1] = sum;
	return XDP_DROP;
}

/* The verdict is what the ring that is in place says. */
SEC("xdp/chosen")
int xdp_choose(struct xdp_md *ctx)
{
	u32 key = 1;
	void *ring = map_lookup(&rings, &key);
	u32 *verdict = ring ? map_lookup(ring, &key) : 0;

	return verdict ? *verdict : XDP_ABORTED;
}

SEC("xdp.frags")
int xdp_remember(struct xdp_md *ctx)
{
	u64 key = ctx->rx_queue_index, value[2] = { key, ctx->ingress_ifindex };
	u32 number = key;

	map_update(&recent, &key, value, 0);
	map_update(&table, &number, &key, 0);
	return map_lookup(&routes, &value) ? XDP_TX : XDP_PASS;
}

SEC("xdp")
int xdp_tail(struct xdp_md *ctx)
{
	return XDP_TX;
}

SEC("xdp")
int xdp_into_tail(struct xdp_md *ctx)
{
	tail_call(ctx, &tails, 1);
	return XDP_ABORTED;
}

/* Four bytes in front of the packet, and a mark in them. */
SEC("xdp")
int xdp_grow(struct xdp_md *ctx)
{
	if (xdp_adjust_head(ctx, -4))
		return XDP_ABORTED;
	u8 *data = (u8 *)(long)ctx->data;

	if (data + 4 > (u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	data[0] = data[1] = data[2] = data[3] = 0xee;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
