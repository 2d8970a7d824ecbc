/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * What the program needs of the kernel's interface, so that no header has to be installed. Source:
 * Linux include/uapi/linux/bpf.h, if_ether.h and in.h, by their numbers. */
#ifndef LVSKIT_KERNEL_H
#define LVSKIT_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
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

enum { HASH = 1, ARRAY = 2, PERCPU_ARRAY = 6, ARRAY_OF_MAPS = 12, RINGBUF = 27 };
enum { F_MMAPABLE = 1 << 10 };

enum { TCP = 6, UDP = 17 };

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define UINT(name, value) int(*name)[value]
#define TYPE(name, type) type *name
#define VALUES(name, type) __typeof__(type) *name[]

#define be16(number) __builtin_bswap16(number)
#define be32(number) __builtin_bswap32(number)
#define likely(claim) __builtin_expect(!!(claim), 1)
#define unlikely(claim) __builtin_expect(!!(claim), 0)
/* The compiler must not reason about the value from here on. */
#define opaque(variable) __asm__ volatile("" : "+r"(variable))
/* One load or store, where another CPU or Python writes or reads meanwhile. */
#define once(place) (*(volatile __typeof__(place) *)&(place))

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*xdp_adjust_head)(struct xdp_md *ctx, int delta) = (void *)44;
static long (*xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)65;
static u64 (*jiffies64)(void) = (void *)118;
static long (*ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static void *(*ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *record, u64 flags) = (void *)132;
static void (*ringbuf_discard)(void *record, u64 flags) = (void *)133;
static long (*xdp_load_bytes)(struct xdp_md *ctx, u32 offset, void *to, u32 length) = (void *)189;

#endif
