/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * What the test programs need of the kernel's interface, so that no header has to be installed. */
#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

enum { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };

enum {
	HASH = 1,
	ARRAY = 2,
	PROG_ARRAY = 3,
	PERCPU_ARRAY = 6,
	LRU_HASH = 9,
	LPM_TRIE = 11,
	ARRAY_OF_MAPS = 12,
	RINGBUF = 27,
};

enum { F_NO_PREALLOC = 1 << 0, F_MMAPABLE = 1 << 10 };

#define SEC(name) __attribute__((section(name), used))
#define NOINLINE static __attribute__((noinline))
#define UINT(name, value) int (*name)[value]
#define TYPE(name, type) type *name
#define VALUES(name, type) __typeof__(type) *name[]

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static long (*xdp_adjust_head)(struct xdp_md *ctx, int delta) = (void *)44;
static void *(*ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *record, u64 flags) = (void *)132;
static void (*ringbuf_discard)(void *record, u64 flags) = (void *)133;
static long (*loop)(u32 rounds, void *callback, void *ctx, u64 flags) = (void *)181;

#endif
