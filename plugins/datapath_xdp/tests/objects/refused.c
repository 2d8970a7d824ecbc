/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 * Programs that the verifier refuses: they read the packet without asking how long that is. */
#include "kernel.h"

SEC("xdp")
int xdp_blind(struct xdp_md *ctx)
{
	return *(u8 *)(long)ctx->data;
}

/* The same, after so many steps that the verifier has much to say. */
SEC("xdp")
int xdp_long(struct xdp_md *ctx)
{
	volatile u64 sum = 0;

	for (u32 round = 0; round < 2000; round++)
		sum += round;
	return *(u8 *)(long)ctx->data + sum;
}

char LICENSE[] SEC("license") = "GPL";
