/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * A table scheduler's choice. Sources: Linux net/netfilter/ipvs/ip_vs_sh.c, ip_vs_mh.c,
 * include/linux/hash.h and lib/siphash.c, by behaviour; Aumasson and Bernstein, "SipHash". */
#ifndef LVSKIT_RING_H
#define LVSKIT_RING_H

#include "parse.h"

enum { SH_BITS = 8 };

#define rotated(word, by) ((word) << (by) | (word) >> (64 - (by)))

/* SipHash-1-3 of a 32-bit number under the key that all directors have, cut to 32 bits. */
INLINE u32 mh_hash(u32 number)
{
	const u64 key = 2654435761, block = 4ull << 56 | number;
	u64 v0 = key ^ 0x736f6d6570736575, v1 = key ^ 0x646f72616e646f6d;
	u64 v2 = key ^ 0x6c7967656e657261, v3 = key ^ 0x7465646279746573 ^ block;

#pragma unroll
	for (int turn = 0; turn < 4; turn++) {
		v0 += v1;
		v2 += v3;
		v1 = rotated(v1, 13) ^ v0;
		v3 = rotated(v3, 16) ^ v2;
		v0 = rotated(v0, 32);
		v2 += v1;
		v0 += v3;
		v1 = rotated(v1, 17) ^ v2;
		v3 = rotated(v3, 21) ^ v0;
		v2 = rotated(v2, 32);
		if (turn == 0) {
			v0 ^= block;
			v2 ^= 0xff;
		}
	}
	return v0 ^ v1 ^ v2 ^ v3;
}

/* The address as the kernel's schedulers see it: its 32-bit words, by XOR. */
INLINE u32 folded(const struct packet *packet)
{
	u64 both = packet->address[0] ^ packet->address[1];

	return be32((u32)both ^ (u32)(both >> 32));
}

/* What a service's ring has for a new connection. */
struct choice {
	u32 server; /* 0 = Python decides */
	struct ring *turned; /* it took a turn, to give back where nothing comes of it */
};

INLINE struct choice choose(u32 service, const struct packet *packet)
{
	struct choice choice = {};
	u32 zero = 0;
	u64 at;
	void *inner = map_lookup(&rings, &service);
	struct ring *ring = inner ? map_lookup(inner, &zero) : 0;

	if (!ring)
		return choice;
	u32 set = once(ring->current) & 1;
	const struct places *places = &ring->sets[set];
	u32 size = once(places->size), client = folded(packet);

	if (!size)
		return choice;
	if (places->port)
		client += be16(packet->port_be);
	if (places->kind == RING_TURN) {
		choice.turned = ring;
		at = __sync_fetch_and_add(&ring->placed, 1) + once(ring->skipped) - places->first;
		at %= size;
	} else if (places->kind == RING_SH) {
		at = client * 0x61c88647 >> (32 - SH_BITS);
	} else {
		at = mh_hash(client) % size;
	}
	opaque(at); /* or a 32-bit check is made of it, which says nothing of the upper half */
	if (at < RING_CAPACITY)
		choice.server = ring->servers[set][at];
	return choice;
}

/* The turn is the next connection's. */
INLINE void give_back(struct choice choice)
{
	if (choice.turned)
		__sync_fetch_and_add(&choice.turned->placed, -1);
}

#endif
